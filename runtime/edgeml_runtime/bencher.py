"""The hands of a benchmark: fetch its graphs, run them in a child in a calm moment, send back what they took.

The task as it arrived and how far it came are in bench.json, what is finished in bench/: after a power cut the
benchmark goes on with what is missing.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgeml_runtime import __version__, measure
from edgeml_runtime.bench_child import Child
from edgeml_runtime.bench_protocol import SAID, Effect, Facts, Fetch, LocalBench, Phase, Record, Report, Run, Save, Stop
from edgeml_runtime.children import free_memory
from edgeml_runtime.config import BENCH, BENCH_JOB, Config, read_json, write_atomic
from edgeml_runtime.errors import DeviceError, MalformedMessage, StorageFull, TaskRefused, WireError
from edgeml_runtime.measure.conditions import THROTTLED_NOW, look
from edgeml_runtime.pull import Pull, Want
from edgeml_runtime.serving import Serving
from edgeml_runtime.wire import blocks, signed, topics
from edgeml_runtime.wire.bench import BenchResult, JobResult, encode_result
from edgeml_runtime.wire.messages import BENCH_ENDED, BenchStatus, BenchTask, encode, from_document
from edgeml_runtime.wire.plain import to_plain
from edgeml_runtime.worker import Outcome, Worker

WHO = "bench"
RATE_S = 5.0  # over which predictions are counted
LOOK_S = 1.0  # between two looks at heat and memory
RESULT = "result"
log = logging.getLogger(__name__)


class Bencher:
    """Carries one benchmark at a time; `send(topic, payload, qos=...)` publishes.

    `at_work` says what else the device is at, "" when nothing; `graph_of` finds a graph that is installed already.
    """

    def __init__(
        self,
        config: Config,
        state: Path,
        *,
        boot_id: str,
        serving: Serving,
        post: Callable[[Outcome], None],
        send: Callable[..., object],
        at_work: Callable[[], str],
        graph_of: Callable[[str], Path | None],
    ) -> None:
        self._config, self._boot_id, self._serving, self._send = config, boot_id, serving, send
        self._at_work, self._graph_of = at_work, graph_of
        self._job, self.folder = state / BENCH_JOB, state / BENCH
        self._envelope, self._received, self.machine = _read(self._job, config)
        self.pull: Pull | None = None
        self._worker, self._runs = Worker(WHO, post), 0
        self._child: Child | None = None
        self._served: deque[tuple[float, int]] = deque()
        self._looked, self._facts = -LOOK_S, Facts()

    def start(self, now: float) -> None:
        """Go on with the benchmark that a restart interrupted."""
        task = self.machine.task
        spent = max(0.0, time.time() - self._received)
        self.do(self.machine.resume(now, remaining_s=max(0.0, task.deadline_s - spent) if task else 0.0))

    def offered(self, envelope: bytes, now: float) -> None:
        """Take a signed task; raise WireError when it is not for this device, too old, or nobody trusted signed it."""
        task = read_task(envelope, self._config)
        before = self.machine.task
        effects = self.machine.offered(task, now)
        if self.machine.task is not before or (before and before.task == task.task and task.kind != "cancel"):
            self._envelope = envelope.decode()
        if self.machine.task is not before:
            self._received = time.time()
            self._forget(task)
        self.do(effects)

    def ended(self, outcome: Outcome, now: float) -> None:
        """Take what the worker has done; what a stopped run says is of the past."""
        task = self.machine.task
        if task is None or outcome.tag != self._tag(task):
            return
        self._child = None
        if outcome.error is not None:
            self.do(self.machine.outcome("failed", now, reason=outcome.reason, detail=outcome.detail))
        elif outcome.value is not None:
            self._finish(task, outcome.value, now)

    def tick(self, now: float) -> None:
        """Let time pass, and see what the device is doing meanwhile."""
        rate = self._rate(now)
        if not self.machine.active:
            return
        if self._child is not None:
            self.do(self.machine.advance(self._child.progress, now))
        self.do(self.machine.tick(now, self._look(now, rate)))

    def pulled(self, now: float) -> None:
        """Take note of the progress of `pull`, which the loop drives."""
        if self.pull is not None and self.pull.done:
            self.pull = None
            self.do(self.machine.outcome("arrived", now))

    def failed(self, error: DeviceError | OSError, now: float) -> None:
        """Take note that `pull` cannot go on."""
        self.do(self.machine.outcome("failed", now, reason=type(error).__name__, detail=str(error)))

    def reconnected(self, now: float) -> None:
        """The broker was away: say how it stands."""
        if self.machine.task is not None:
            self._report()

    def do(self, effects: list[Effect]) -> None:
        """Carry out what the machine asks for, in order."""
        for effect in effects:
            match effect:
                case Save():
                    self._save()
                case Stop():
                    self.close()
                case Report(upload):
                    self._report(upload=upload)
                case Fetch(task):
                    self._fetch(task)
                case Run(task):
                    self._run(task)

    def close(self) -> None:
        """End the child and put the download on the disk."""
        if self._child is not None:
            self._child.stop()
            self._child, self._runs = None, self._runs + 1
        if self.pull is not None:
            self.pull.close()
            self.pull = None

    def _fetch(self, task: BenchTask) -> None:
        self.folder.mkdir(exist_ok=True)
        for blob in task.blobs:
            here, path = self._graph_of(blob.digest), self.folder / blob.digest
            if here is not None and not path.exists():
                with contextlib.suppress(OSError):  # then it is fetched
                    os.link(here, path)
            elif path.exists():
                os.utime(path)  # the last to be made room for
        self._make_room(task)
        self.pull = Pull(self.folder, [Want(digest=blob.digest, size=blob.size) for blob in task.blobs])

    def _make_room(self, task: BenchTask) -> None:
        """Delete the blobs used longest ago until this task's fit beside the rest within the owner's limit."""
        wanted = {blob.digest: blob.size for blob in task.blobs}
        others = [path for path in self.folder.iterdir() if len(path.name) == 64 and path.name not in wanted]
        others.sort(key=lambda path: path.stat().st_mtime)
        total = sum(wanted.values()) + sum(path.stat().st_size for path in others)
        while others and total > self._config.policy.bench.max_bytes:
            total -= others[0].stat().st_size
            others.pop(0).unlink()

    def _run(self, task: BenchTask) -> None:
        self._runs += 1
        self._child = Child(self.folder, task, max_s=self._config.policy.bench.max_s)
        self._worker.submit(self._tag(task), "ran", self._child.run)

    def _finish(self, task: BenchTask, jobs: tuple[JobResult, ...], now: float) -> None:
        result = BenchResult(
            task=task.task,
            device=self._config.device,
            boot_id=self._boot_id,
            agent=__version__,
            environment=measure.environment(),
            hardware=measure.hardware(),
            jobs=jobs,
        )
        data = encode_result(result)
        try:
            if len(data) > task.max_result_bytes:
                raise TaskRefused(f"a result of {len(data):,} bytes, and {task.max_result_bytes:,} are allowed")
            write_atomic(self.folder / RESULT, data)
        except (DeviceError, OSError) as error:
            self.failed(error, now)
            return
        self.machine.progress = 1.0
        self.do(self.machine.outcome("ran", now))

    def _report(self, *, upload: bool = False) -> None:
        machine, data = self.machine, b""
        if machine.task is None or machine.phase not in SAID:
            return
        if machine.phase is Phase.DONE:
            data = self._result()
        status = BenchStatus(
            task=machine.task.task,
            device=self._config.device,
            boot_id=self._boot_id,
            state=SAID[machine.phase] if data or machine.phase is not Phase.DONE else "FAILED",
            progress=machine.progress,
            reason=machine.reason,
            detail=machine.detail if data or machine.phase is not Phase.DONE else "the result is gone from the disk",
            digest=blocks.digest_of(data) if data else "",
            size=len(data),
        )
        if status.state in BENCH_ENDED:
            log.info("benchmark %s: %s %s", status.task, status.state, status.detail)
        topic = topics.telemetry(self._config.device, WHO)
        self._send(topic, encode(status), qos=1)
        for index, part in enumerate(blocks.split(data) if upload else ()):
            self._send(topic, blocks.encode(status.digest, index, part), qos=1)

    def _result(self) -> bytes:
        try:
            return (self.folder / RESULT).read_bytes()
        except OSError:
            return b""

    def _save(self) -> None:
        plain = {"envelope": self._envelope, "received": self._received, "record": to_plain(self.machine.record)}
        try:
            write_atomic(self._job, json.dumps(plain).encode())
        except (StorageFull, OSError) as error:
            log.warning("%s", error)

    def _forget(self, task: BenchTask) -> None:
        """Delete what earlier tasks gave."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if (path.suffix in (".json", ".jsonl") and path.stem != task.task) or path.name == RESULT:
                path.unlink(missing_ok=True)

    def _rate(self, now: float) -> float:
        """Return the predictions a second over the last RATE_S."""
        self._served.append((now, self._serving.counters.predictions))
        while len(self._served) > 2 and self._served[1][0] <= now - RATE_S:
            self._served.popleft()
        first, before = self._served[0]
        return (self._served[-1][1] - before) / max(now - first, RATE_S)

    def _look(self, now: float, rate: float) -> Facts:
        if now >= self._looked + LOOK_S:
            self._looked, seen, local = now, look(), time.localtime()
            self._facts = Facts(
                free_bytes=free_memory(),
                temperature_c=seen.temperature_c,
                throttled=bool((seen.throttled or 0) & THROTTLED_NOW),
                minute=local.tm_hour * 60 + local.tm_min,
            )
        facts = self._facts
        return Facts(
            at_work=self._at_work(),
            rate=rate,
            free_bytes=facts.free_bytes,
            temperature_c=facts.temperature_c,
            throttled=facts.throttled,
            minute=facts.minute,
        )

    def _tag(self, task: BenchTask) -> str:
        return f"{task.task}/{self._runs}"


def read_task(envelope: bytes, config: Config) -> BenchTask:
    """Return the task in `envelope`; raise WireError unless a trusted key signed it for this device."""
    task = from_document(BenchTask, signed.verify(envelope, config.trusted))
    if task.device != config.device:
        raise MalformedMessage(f"a benchmark for {task.device} arrived at {config.device}")
    topics.check_device_id(task.task)  # it becomes a file's name
    return task


def _read(path: Path, config: Config) -> tuple[str, float, LocalBench]:
    """Return the envelope, when it came, and the machine as they were left; nothing of it when none can be believed."""
    found = read_json(path)
    envelope, received = str(found.get("envelope", "")), found.get("received")
    record = _record(found.get("record"))
    try:
        task = read_task(envelope.encode(), config)
    except WireError:  # none, or enrolled anew with another key
        return "", 0.0, LocalBench(config.policy, None, record)
    machine = LocalBench(config.policy, task, record)
    return envelope, float(received) if isinstance(received, int | float) else 0.0, machine


def _record(plain: Any) -> Record:
    """Return the record in `plain`, the empty one when it is damaged: the worst of it is a benchmark done twice."""
    try:
        return Record(
            phase=Phase(plain["phase"]),
            seq=int(plain["seq"]),
            starts=int(plain["starts"]),
            reason=str(plain["reason"]),
            detail=str(plain["detail"]),
        )
    except (KeyError, TypeError, ValueError):
        return Record()
