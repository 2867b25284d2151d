"""The queues of benchmarks on devices: one at a time per device, the oldest first, taken up again after a restart.

Rows of the registry become `Errand` machines; their effects become signed tasks and stored measurements.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgeml.errors import NotFound
from edgeml.registry import BenchRecord, DeviceMeasurement, Registry
from edgeml.registry.records import FAILED, RUNNING, SUCCEEDED
from edgeml.server.errand import Ask, Effect, End, Errand, Note, TakeBack, check_sender
from edgeml.server.roster import Roster
from edgeml_runtime.wire import WireError, blocks, messages, signed, topics
from edgeml_runtime.wire.bench import BenchResult
from edgeml_runtime.wire.messages import BENCH_ENDED, BenchStatus, BenchTask
from edgeml_runtime.wire.plain import to_plain

Publish = Callable[..., None]
log = logging.getLogger(__name__)


@dataclass
class Active:
    """A benchmark whose turn has come."""

    record: BenchRecord
    errand: Errand
    envelope: bytes
    written: BenchRecord


class BenchQueues:
    """All unfinished benchmarks of the registry."""

    def __init__(self, registry: Registry, roster: Roster, publish: Publish) -> None:
        self._registry, self._roster, self._publish = registry, roster, publish
        self._active: dict[str, Active] = {}  # by device

    def poll(self, now: float) -> None:
        """Take up the oldest request of every device that has none at work, and see which are not wanted any more."""
        for bench_id, device, canceled in self._registry.benches.waiting():
            active = self._active.get(device)
            if active is not None and active.record.id == bench_id and canceled:
                self._do(active, active.errand.cancel())
            elif canceled and (active is None or active.record.id != bench_id):
                record = self._registry.benches.find(bench_id)
                gone = dataclasses.replace(record, state=FAILED, reason="Canceled", detail="taken back before its turn")
                self._registry.benches.update(gone)
            elif active is None:
                self._begin(self._registry.benches.find(bench_id), now)

    def tick(self, now: float) -> None:
        """Let deadlines pass."""
        for device, active in list(self._active.items()):
            self._do(active, active.errand.tick(now, online=self._roster[device].online))

    def came(self, device: str, now: float) -> None:
        """A device is online (again): what it may have missed is asked once more."""
        if active := self._active.get(device):
            active.errand.came(now)
            self._do(active, active.errand.tick(now, online=True))

    def took(self, device: str, payload: bytes, now: float) -> None:
        """Take a status or a block of a result; raise WireError for one that cannot be accepted.

        A status of another task is of the past and left aside; one that still runs is taken back.
        """
        active = self._active.get(device)
        if blocks.is_block(payload):
            if active is not None:
                self._accept(active, lambda: active.errand.took(blocks.decode(payload), now))
            return
        status = check_sender(messages.decode(BenchStatus, payload), device)
        if active is not None and status.task == active.record.id:
            self._accept(active, lambda: active.errand.heard(status, now))
        elif status.state not in BENCH_ENDED and not self._wanted(status.task):
            self._take_back(device, status.task)

    def resend(self, now: float) -> None:
        """The broker may have forgotten what was published."""
        for device in list(self._active):
            if self._roster[device].online:
                self.came(device, now)

    def flush(self) -> None:
        """Write progress to the registry and let go of what has ended."""
        for device, active in list(self._active.items()):
            if active.record != active.written:
                self._registry.benches.update(active.record)
                active.written = active.record
            if active.record.is_over:
                del self._active[device]

    def _begin(self, record: BenchRecord, now: float) -> None:
        task = BenchTask(
            device=record.device,
            task=record.id,
            kind=record.kind,
            seq=self._registry.fleet.next_seq(record.device),
            jobs=record.work.jobs,
            blobs=record.work.blobs,
            deadline_s=record.options.deadline_s,
        )
        envelope = signed.sign(to_plain(task), self._registry.signing_key())
        running = dataclasses.replace(record, state=RUNNING)
        active = Active(running, Errand(task, now, gone_s=record.options.gone_s), envelope, record)
        self._active[record.device] = active
        log.info("benchmark %s of %s on %s: %d jobs", record.id, record.model, record.device, len(task.jobs))
        self._do(active, active.errand.tick(now, online=self._roster[record.device].online))

    def _wanted(self, bench_id: str) -> bool:
        try:
            return not self._registry.benches.find(bench_id).is_over
        except NotFound:
            return False

    def _accept(self, active: Active, take: Callable[[], Iterable[Effect]]) -> None:
        try:
            self._do(active, take())
        except WireError as error:
            self._do(active, active.errand.refused(error))
            raise

    def _do(self, active: Active, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Ask():
                    self._publish(topics.bench(active.record.device), active.envelope, qos=1)
                case TakeBack():
                    self._take_back(active.record.device, active.record.id)
                case Note(status):
                    active.record = dataclasses.replace(
                        active.record,
                        step=status.state,
                        progress=min(1.0, max(0.0, status.progress)),
                        reason=status.reason[:64],
                        detail=status.detail[:300],
                    )
                case End():
                    self._end(active, effect)

    def _take_back(self, device: str, bench_id: str) -> None:
        task = BenchTask(device=device, task=bench_id, kind="cancel", seq=self._registry.fleet.next_seq(device))
        envelope = signed.sign(to_plain(task), self._registry.signing_key())
        self._publish(topics.bench(device), envelope, qos=1)

    def _end(self, active: Active, end: End) -> None:
        record, result = active.record, end.result
        if result is None:
            active.record = dataclasses.replace(record, state=FAILED, reason=end.reason[:64], detail=end.detail[:1000])
        else:
            digest = self._registry.put_blob(end.data)
            if record.kind == "measure":
                self._registry.benches.keep(self._measured(record, result))
            active.record = dataclasses.replace(
                record, state=SUCCEEDED, reason="", detail="", result=digest, progress=1.0
            )
        log.info("benchmark %s on %s %s: %s", record.id, record.device, active.record.state, active.record.detail)

    def _measured(self, record: BenchRecord, result: BenchResult) -> Iterable[DeviceMeasurement]:
        graphs = {job.name: job.graph for job in record.work.jobs}
        for job in result.jobs:
            if job.document:
                nodes = [
                    {"name": n.name, "operator": n.operator, "ms": n.ms, "parameter_bytes": n.parameter_bytes}
                    for n in job.nodes
                ]
                yield DeviceMeasurement(
                    bench=record.id,
                    device=record.device,
                    board=self._roster[record.device].board,
                    model=record.model,
                    variant=job.name,
                    digest=graphs[job.name],
                    time=time.time(),
                    agent=result.agent,
                    hardware=result.hardware,
                    document={**job.document, "operators": nodes},
                )
