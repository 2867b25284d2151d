"""The one loop of a device: messages, outcomes of slow work and the clock, each handed to the part it is for.

    transport, workers, HTTP -> inbox -> loop -> installer (deployments), trainer (rounds), bencher -> transport

Nothing that arrives can end the loop: what cannot be accepted is counted, logged once in a while, and left.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import random
import secrets
import threading
import time
from pathlib import Path
from typing import Any

from edgeml_runtime import __version__, bencher, config, installer
from edgeml_runtime.bencher import Bencher
from edgeml_runtime.config import HTTP, SAMPLES, Config
from edgeml_runtime.errors import DeviceError, MalformedMessage, WireError
from edgeml_runtime.identity import device_key
from edgeml_runtime.installer import Installer
from edgeml_runtime.interfaces import http
from edgeml_runtime.memory import give_back
from edgeml_runtime.metrics import Counters, rss_bytes
from edgeml_runtime.notify import notify, watchdog_s
from edgeml_runtime.personal import OwnModels
from edgeml_runtime.presence import Presence, Verdict
from edgeml_runtime.protocol import MAX_DETAIL, Phase
from edgeml_runtime.reports import Reports
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Serving
from edgeml_runtime.stem import Stem
from edgeml_runtime.trainer import Trainer
from edgeml_runtime.transport import Connected, Disconnected, Incoming, MqttTransport, Will
from edgeml_runtime.wire import blocks, signed, topics
from edgeml_runtime.wire.messages import JobStatus, Online, decode, encode
from edgeml_runtime.wire.plain import to_plain
from edgeml_runtime.worker import Outcome

YIELD_S = 60.0  # off the broker after another agent took the id
BUSY_S, WATCH_S, IDLE_S = 0.1, 0.25, 1.0  # at most between two looks at the clock
MAX_JOB = 64  # characters of a job's name that nobody vouches for
MAX_ENVELOPE = {
    "desired": 8 << 10,
    "task": 64 << 10,
    "bench": 64 << 10,
    "ask": 64 << 10,
}  # bytes, before anything is parsed

log = logging.getLogger(__name__)


class Agent:
    """One enrolled device: construct it, `run` it, `stop` it from anywhere."""

    def __init__(self, state: Path, settings: Config, *, stem: Stem | None = None) -> None:
        """Take the folder's lock and open the local port; nothing is loaded and there is no network yet."""
        self.state, self.config = state, settings
        self._lock = config.lock(state)
        (state / HTTP).unlink(missing_ok=True)  # of an agent that was killed
        self.boot_id, self.conflict = secrets.token_hex(8), ""
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._stopping, self._samples_changed = threading.Event(), threading.Event()
        self._presence, self._return_at, self._was_busy = Presence(self.boot_id), 0.0, True
        counters = Counters(self.boot_id, started=time.monotonic())
        self.serving, self.samples = Serving(counters), Samples(state / SAMPLES)
        self._transport, key = self._new_transport(), device_key(state)
        self.reports = Reports(
            settings,
            state,
            counters=counters,
            serving=self.serving,
            samples=self.samples,
            send=self._transport.send,
            key=signed.public_hex(key),
        )
        self.installer = Installer(
            settings,
            state,
            serving=self.serving,
            own=OwnModels(state, settings.policy, self.samples),
            post=self._inbox.put,
            report=self.reports.state,
        )
        self.trainer = Trainer(
            settings,
            state,
            boot_id=self.boot_id,
            serving=self.serving,
            samples=self.samples,
            post=self._inbox.put,
            send=self._transport.send,
            key=key,
            stem=stem,
        )
        self.bencher = Bencher(
            settings,
            state,
            boot_id=self.boot_id,
            serving=self.serving,
            post=self._inbox.put,
            send=self._transport.send,
            at_work=self._at_work,
            graph_of=self.installer.graph_of,
        )
        self._hands: tuple[Installer | Trainer | Bencher, ...] = (self.installer, self.trainer, self.bencher)
        doors = http.Doors(self.serving, self.samples, counters, self.status, self._samples_changed.set)
        self._http = http.serve(doors, settings.http_port)
        self.http_port = int(self._http.server_address[1])

    def run(self) -> None:
        """Serve until `stop`. The broker may be absent at any time."""
        self.installer.start(time.monotonic())
        self.bencher.start(time.monotonic())
        threading.Thread(target=self._http.serve_forever, name="http", daemon=True).start()
        config.write_atomic(self.state / HTTP, json.dumps({"port": self.http_port, "pid": os.getpid()}).encode())
        self._open()
        notify("READY=1")
        log.info("device %s answers on http://%s:%d", self.config.device, http.HOST, self.http_port)
        beat, beat_due = watchdog_s() / 3, 0.0
        while not self._stopping.is_set():
            self._turn()
            if beat and time.monotonic() >= beat_due:
                notify("WATCHDOG=1")
                beat_due = time.monotonic() + beat
        self._close()

    def stop(self) -> None:
        """Make `run` return soon; safe in a signal handler."""
        self._stopping.set()
        self._inbox.put(None)

    def status(self) -> dict[str, Any]:
        """Return what `edgeml-agent status` shows; called from the HTTP threads."""
        job, running, local_round = self.installer.machine.status, self.serving.running, self.trainer.machine
        offer, bench = local_round.offer, self.bencher.machine
        return {
            "device": self.config.device,
            "board": self.config.board,
            "agent": __version__,
            "boot_id": self.boot_id,
            "key": self.trainer.masker.public,
            "pid": os.getpid(),
            "broker": {"host": self.config.host, "port": self.config.port, "connected": self._transport.connected},
            "conflict": self.conflict,
            "running": to_plain(running) if running else None,
            "personal": self._personal,
            "job": to_plain(job) if job else None,
            "round": {"round": offer.round, "phase": local_round.phase, "reason": local_round.reason}
            if offer
            else None,
            "bench": {"task": bench.task.task, "phase": bench.phase, "reason": bench.reason, "detail": bench.detail}
            if bench.task
            else None,
            "samples": {"stored": self.samples.count(), "labelled": self.samples.labelled()},
            "malformed": {
                "count": self.reports.malformed + self._transport.dropped,
                "last": self.reports.last_malformed,
            },
            "rss_bytes": rss_bytes(),
            "http_port": self.http_port,
        }

    @property
    def _personal(self) -> dict[str, Any] | None:
        """Whether this device's own tensors serve; None where it has none."""
        found = self.serving.loaded.personal if self.serving.loaded else None
        return to_plain(found) if found else None

    def _turn(self) -> None:
        """Handle what is in the inbox, or wait a little for it; then let the clock have its say."""
        try:
            self._handle(self._inbox.get(timeout=self._patience))
            for _ in range(min(self._inbox.qsize(), 2 * blocks.WINDOW_BLOCKS)):
                self._handle(self._inbox.get_nowait())
        except queue.Empty:
            pass
        try:
            self._tick(time.monotonic())
        except Exception:  # a bug must not take the predictions down; the log has the trace
            log.exception("in the agent's loop")

    @property
    def _patience(self) -> float:
        """How long the loop may sleep: a benchmark must notice traffic soon, and the loop must not disturb it."""
        if self._busy and self.installer.machine.phase is not Phase.SOAKING:  # which lasts for hours, perhaps
            return BUSY_S
        return WATCH_S if self.bencher.machine.active else IDLE_S

    @property
    def _busy(self) -> bool:
        return self.installer.machine.active or self.trainer.machine.active

    def _at_work(self) -> str:
        """Return what a benchmark must wait for."""
        if self.installer.machine.active:
            return "a deployment is under way"
        return "a federated round is under way" if self.trainer.machine.active else ""

    def _handle(self, item: Any) -> None:
        now = time.monotonic()
        try:
            match item:
                case Incoming():
                    self._receive(item, now)
                case Outcome(who=installer.WHO):
                    self.installer.ended(item, now)
                case Outcome(who=bencher.WHO):
                    self.bencher.ended(item, now)
                case Outcome():
                    self.trainer.ended(item, now)
                case Connected():
                    self._connected(now)
                case Disconnected() if not self.conflict:
                    log.warning("lost the broker at %s:%d; trying again", self.config.host, self.config.port)
        except WireError as error:
            self.reports.not_accepted(error)
        except Exception:  # a bug must not take the predictions down; the log has the trace
            log.exception("while handling %s", type(item).__name__)

    def _receive(self, message: Incoming, now: float) -> None:
        topic, payload = topics.parse(message.topic), message.payload
        limit = MAX_ENVELOPE.get(topic.kind)
        if limit is not None and len(payload) > limit:
            raise MalformedMessage(f"{len(payload):,} bytes on {topic.kind}; the limit is {limit:,}")
        match topic.kind:
            case "blk":
                self._take(blocks.decode(payload), now)
            case "desired" if payload:  # an empty one clears what was retained
                self._assign(payload, now)
            case "task":
                self.trainer.offered(payload, topic.detail, now)
            case "ask":
                self.trainer.asked(payload, topic.detail, now)
            case "bench":
                self.bencher.offered(payload, now)
            case "online" if payload:
                self._meet(decode(Online, payload), now)

    def _assign(self, payload: bytes, now: float) -> None:
        try:
            self.installer.assign(payload, now)
        except WireError as error:
            self.reports.not_accepted(error)
            job, known = claimed_job(payload), self.installer.machine.status
            if job and not (known and known.job == job):
                detail = str(error)[:MAX_DETAIL]
                self.reports.state(JobStatus(job=job, state="REJECTED", reason=error.reason, detail=detail))
                self.reports.state(known)  # what stays on the topic is the device's own state

    def _take(self, block: blocks.Block, now: float) -> None:
        for hands in self._hands:
            if hands.pull is None:
                continue
            try:
                if hands.pull.take(block):
                    hands.pulled(now)
                    self._ask(hands, now)
                    return
            except (DeviceError, OSError) as error:
                hands.failed(error, now)

    def _ask(self, hands: Installer | Trainer | Bencher, now: float) -> None:
        if hands.pull is None:
            return
        try:
            if (request := hands.pull.request(now)) is not None:
                self._transport.send(topics.request(self.config.device), encode(request))
        except (DeviceError, OSError) as error:
            hands.failed(error, now)

    def _tick(self, now: float) -> None:
        for hands in self._hands:
            self._ask(hands, now)
            hands.pulled(now)
            hands.tick(now)
        if self._was_busy and not self._busy:
            installer.free_blobs(self.installer.blobs, self.installer.keep() | self.trainer.keep())
            give_back()
        self._was_busy = self._busy
        self.reports.telemetry(now)
        if self._samples_changed.is_set() or self.reports.grown:
            self._samples_changed.clear()
            self.reports.count_rows()
            self.reports.state(self.installer.machine.status)
        if self._return_at and now >= self._return_at:
            self._return_at = 0.0
            self._open()

    def _connected(self, now: float) -> None:
        log.info("connected to the broker at %s:%d", self.config.host, self.config.port)
        self.conflict = ""
        self.reports.online()
        self.reports.state(self.installer.machine.status)
        for hands in self._hands:
            if hands.pull is not None:
                hands.pull.restart()
                self._ask(hands, now)
        self.trainer.reconnected(now)
        self.bencher.reconnected(now)

    def _meet(self, message: Online, now: float) -> None:
        match self._presence.seen(message):
            case Verdict.SPEAK_UP:
                self.reports.online()
            case Verdict.CONFLICT if not self.conflict:
                device = self.config.device
                self.conflict = f"another agent uses the id {device}: enroll one of them under another id"
                log.warning("%s; off the broker for %.0f s, serving locally", self.conflict, YIELD_S)
                self._transport.close()
                self._return_at = now + YIELD_S * random.uniform(1.0, 1.25)

    def _new_transport(self) -> MqttTransport:
        device = self.config.device
        will = Will(topics.online(device), encode(Online(online=False, boot_id=self.boot_id)))
        address = self.config.host, self.config.port
        return MqttTransport(address, device, will=will, filters=topics.for_device(device))

    def _open(self) -> None:
        self._transport.open(self._inbox.put, backlog=self._inbox.qsize)

    def _close(self) -> None:
        notify("STOPPING=1")
        self.bencher.close()
        self.trainer.close()
        self._transport.close(encode(Online(online=False, boot_id=self.boot_id)))
        self._http.shutdown()
        self._http.server_close()
        for hands in self._hands:
            if hands.pull is not None:
                hands.pull.close()
        self.samples.close()
        (self.state / HTTP).unlink(missing_ok=True)
        os.close(self._lock)


def claimed_job(envelope: bytes) -> str:
    """Return the job that an assignment nobody vouches for says it is of, "" when it says nothing usable."""
    try:
        job = signed.unverified(envelope).get("job")
    except MalformedMessage:
        return ""
    return job[:MAX_JOB] if isinstance(job, str) else ""
