"""What a device says of itself: presence, full state, telemetry, and how many messages it could not accept."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

from edgeml_runtime import __version__, measure
from edgeml_runtime.config import Config
from edgeml_runtime.errors import WireError
from edgeml_runtime.metrics import Counters
from edgeml_runtime.owned import tells_gain
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Personal, Serving
from edgeml_runtime.supply import supply
from edgeml_runtime.wire import topics
from edgeml_runtime.wire.messages import TERMINAL, JobStatus, Online, Reported, encode

Send = Callable[..., object]  # (topic, payload, *, qos, retain)
LOG_EVERY = 100  # messages that were not accepted
GROWN = 1.5  # times the rows last reported: time to tell that there are more

log = logging.getLogger(__name__)


class Reports:
    """Publishes through `send`; while there is no broker that drops everything, and `all` follows a connection."""

    def __init__(
        self,
        config: Config,
        state: Path,
        *,
        counters: Counters,
        serving: Serving,
        samples: Samples,
        send: Send,
        key: str = "",
    ) -> None:
        self._config, self._state, self._send, self._key = config, state, send, key
        self._counters, self._serving, self._samples = counters, serving, samples
        self._hardware, self._labelled, self._rows = measure.hardware(), samples.labelled(), samples.usable()
        self._seq, self._telemetry_due = 0, 0.0
        self.grown = False  # whether predictions have left many more rows here than were reported
        self.malformed, self.last_malformed = 0, ""

    def online(self) -> None:
        """Say that this boot is there; the will says the opposite."""
        message = Online(online=True, boot_id=self._counters.boot_id)
        self._send(topics.online(self._config.device), encode(message), qos=1, retain=True)

    def state(self, job: JobStatus | None) -> None:
        """Publish the full state with this job status; a job that ended brings its telemetry along."""
        self._seq += 1
        reported = Reported(
            boot_id=self._counters.boot_id,
            seq=self._seq,
            agent=__version__,
            board=self._config.board,
            hardware=self._hardware,
            free_bytes=shutil.disk_usage(self._state).free,
            samples=self._labelled,
            key=self._key,
            rows=self._rows,
            running=self._serving.running,
            job=job,
        )
        self._send(topics.reported(self._config.device), encode(reported), qos=1, retain=True)
        if job is not None and job.state in TERMINAL:
            self._telemetry_due = 0.0

    def count_rows(self) -> None:
        """Count the rows anew, for the next state."""
        self._labelled, self._rows = self._samples.labelled(), self._samples.usable()

    def telemetry(self, now: float) -> None:
        """Publish the metrics if it is time."""
        self.grown = False
        if now >= self._telemetry_due:
            self.grown = self._samples.usable() > GROWN * self._rows
            self._telemetry_due = now + self._config.telemetry_s
            own = self._serving.loaded.personal if self._serving.loaded else None
            metrics = dataclasses.replace(
                self._counters.snapshot(now),
                **dataclasses.asdict(supply()),
                personal=own.serves if own else None,
                gain=self._gain(own),
            )
            self._send(topics.telemetry(self._config.device, "metrics"), encode(metrics))

    def _gain(self, own: Personal | None) -> float | None:
        """Return what may be told of the gain; JSON has no number for one that is not finite."""
        if own is None or own.gain is None or not tells_gain(self._config.policy):
            return None
        return own.gain if math.isfinite(own.gain) else None

    def not_accepted(self, error: WireError) -> None:
        """Count a message that cannot be accepted; telemetry carries the last one, the log the first of a hundred."""
        self.malformed += 1
        self.last_malformed = f"{error.reason}: {error}"
        self._counters.failed(self.last_malformed)
        if self.malformed % LOG_EVERY == 1:
            log.warning("message no. %d that was not accepted: %s", self.malformed, error)
