"""A benchmark's jobs in a child process: whatever a graph does there, the agent and its predictions live on.

The child is `python -m edgeml_runtime.bench_child FOLDER TASK`, which runs every job of FOLDER/TASK.json that
FOLDER/TASK.jsonl does not have yet, and appends each as it ends: a line with the job's name when it begins,
one with what it gave when it is done. So it may be killed at any time and goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime import measure
from edgeml_runtime.children import available_memory, ended_by, stand_back
from edgeml_runtime.errors import BadDigest, DeviceError, ModelRefused
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.bench import JobResult, NodeTime
from edgeml_runtime.wire.messages import BenchBlob, BenchJob, BenchTask
from edgeml_runtime.wire.plain import from_plain, to_plain


class Child:
    """The jobs of one task, run until all are done or `stop`."""

    def __init__(self, folder: Path, task: BenchTask, *, max_s: float) -> None:
        """Prepare; nothing runs yet. `max_s` bounds this run as a whole."""
        self._folder, self._task, self._max_s = folder, task, max_s
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = self._overdue = False
        self._lock = threading.Lock()
        self._seen = 0, 0.0  # size of the file of what is done, and the share that was

    @property
    def progress(self) -> float:
        """The share of the jobs that are done, 0 to 1."""
        path = self._folder / f"{self._task.task}.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if size != self._seen[0]:
            self._seen = size, len(finished(self._folder, self._task)[0]) / max(1, len(self._task.jobs))
        return self._seen[1]

    def run(self) -> tuple[JobResult, ...] | None:
        """Return what every job gave, None when it was stopped.

        A job that kills its child has the signal as its reason, and the others go on. Raises ModelRefused when
        no child can start at all, or the time is over.
        """
        write_task(self._folder, self._task)
        timer = threading.Timer(self._max_s, self._expire)
        timer.daemon = True
        timer.start()
        try:
            while len(finished(self._folder, self._task)[0]) < len(self._task.jobs):
                code, said = self._start()
                if self._overdue:
                    raise ModelRefused(f"Timeout: not done within {self._max_s:g} s: ask for less")
                if self._stopped:
                    return None
                if code:
                    self._blame(code, said)
        finally:
            timer.cancel()
        done = finished(self._folder, self._task)[0]
        return tuple(done[job.name] for job in self._task.jobs)

    def stop(self) -> None:
        """End the child; from any thread."""
        with self._lock:
            self._stopped = True
            self._kill()

    def _expire(self) -> None:
        with self._lock:
            self._overdue = True
            self._kill()

    def _kill(self) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)  # the processes of a cold start, too

    def _start(self) -> tuple[int, str]:
        threads = max(job.session.threads for job in self._task.jobs)
        limits = ["--memory", str(available_memory()), "--cpu", str(int(self._max_s * threads) + 1)]
        command = [sys.executable, "-m", "edgeml_runtime.bench_child", str(self._folder), self._task.task, *limits]
        with tempfile.TemporaryFile() as errors:
            with self._lock:
                if self._stopped or self._overdue:
                    return 0, ""
                self._process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
                )
            code = self._process.wait()
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 4096))
            lines = errors.read().decode(errors="replace").strip().splitlines()
        return code, lines[-1][:200] if lines else "no message"

    def _blame(self, code: int, said: str) -> None:
        """Put the end of a child on the job that it was at."""
        reason, detail = ended_by(-code, said) if code < 0 else (f"ExitCode{code}", said)
        begun = finished(self._folder, self._task)[1]
        if not begun:
            raise ModelRefused(f"{reason}: the child cannot start here: {detail}")
        _append(self._folder, self._task.task, {"done": to_plain(JobResult(name=begun, reason=reason, detail=detail))})


def write_task(folder: Path, task: BenchTask) -> None:
    """Have the task where its child finds it."""
    (folder / f"{task.task}.json").write_text(json.dumps(to_plain(task)), encoding="utf-8")


def finished(folder: Path, task: BenchTask) -> tuple[dict[str, JobResult], str]:
    """Return the jobs that are done by name, and the one that was begun and is not; damaged lines do not count."""
    done: dict[str, JobResult] = {}
    begun, path = "", folder / f"{task.task}.jsonl"
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
            if "begun" in entry:
                begun = str(entry["begun"])
            else:
                result = from_plain(JobResult, entry["done"])
                done[result.name] = result
        except (ValueError, KeyError, TypeError, DeviceError):
            continue  # the line that was being written when the power went
    names = {job.name for job in task.jobs}
    return {name: result for name, result in done.items() if name in names}, begun if begun not in done else ""


def _append(folder: Path, task: str, entry: Mapping[str, Any]) -> None:
    with (folder / f"{task}.jsonl").open("ab") as file:
        if file.tell() and not _ends_whole(folder / f"{task}.jsonl"):
            file.write(b"\n")
        file.write(json.dumps(entry).encode() + b"\n")
        file.flush()
        if "done" in entry:  # that a job began matters to those who outlive this process, not to a power cut
            os.fsync(file.fileno())


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"


def perform(folder: Path, job: BenchJob, blobs: Mapping[str, BenchBlob]) -> JobResult:
    """Return what `job` gives in this very process; what the graph refuses becomes the reason."""
    try:
        packed = blobs[job.graph].inflated
        graph = unpacked(folder, blobs[job.graph]) if packed else folder / job.graph  # a file needs half the memory
        return _perform(job, graph, tensors.unpack(unpacked(folder, blobs[job.rows])))
    except DeviceError as error:
        memory = "bad_alloc" in str(error) or "allocate memory" in str(error)
        return JobResult(name=job.name, reason="OutOfMemory" if memory else error.reason, detail=str(error)[:300])
    except MemoryError:
        return JobResult(name=job.name, reason="OutOfMemory", detail="out of memory: choose a smaller variant")


def _perform(job: BenchJob, graph: Path | bytes, feeds: Mapping[str, np.ndarray]) -> JobResult:
    document: Mapping[str, Any] = {}
    nodes: tuple[NodeTime, ...] = ()
    if job.verb != "operators":
        whole, plan = job.verb == "benchmark", measure.Plan(**asdict(job.plan))
        starts = job.starts if whole else 0
        found = measure.benchmark(graph, feeds, plan, settings=job.session, starts=starts, profile=whole).plain()
        document = {key: value for key, value in found.items() if key != "operators"}
    if job.verb != "timing":
        timed = measure.operators(graph, feeds, runs=job.runs, settings=job.session, weights=True)
        nodes = tuple(_node(node) for node in timed)
    return JobResult(name=job.name, document=_finite(document), nodes=nodes)


def _node(node: measure.OperatorTime) -> NodeTime:
    plain = {key: value for key, value in asdict(node).items() if key != "shapes"}
    return NodeTime(
        **plain, types=tuple(kind for kind, _ in node.shapes), dims=tuple(shape for _, shape in node.shapes)
    )


def _finite(value: Any) -> Any:
    """Return `value` without numbers that JSON does not have: a median of one sample has no interval."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


def unpacked(folder: Path, blob: BenchBlob) -> bytes:
    """Return the bytes of `blob`, inflated to no more than was promised; raise BadDigest when they are others."""
    data = (folder / blob.digest).read_bytes()
    if not blob.inflated:
        return data
    try:
        packed = zlib.decompressobj()
        data = packed.decompress(data, blob.inflated + 1)
    except zlib.error as error:
        raise BadDigest(f"blob {blob.digest[:12]} is not what it is said to be: {error}") from error
    if not packed.eof or len(data) != blob.inflated:
        raise BadDigest(f"blob {blob.digest[:12]} inflates to other than the promised {blob.inflated:,} bytes")
    return data


def main() -> None:
    """Run the child's side: limit this process, then one job after the other."""
    parser = argparse.ArgumentParser(prog="python -m edgeml_runtime.bench_child", description=main.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("task")
    parser.add_argument("--memory", type=int, default=0, help="bytes of private memory; 0: no limit")
    parser.add_argument("--cpu", type=int, default=0, help="seconds of CPU time; 0: no limit")
    options = parser.parse_args()
    stand_back(options.memory, options.cpu)
    task = from_plain(BenchTask, json.loads((options.folder / f"{options.task}.json").read_bytes()))
    blobs = {blob.digest: blob for blob in task.blobs}
    done, _ = finished(options.folder, task)
    for job in task.jobs:
        if job.name not in done:
            _append(options.folder, task.task, {"begun": job.name})
            result = perform(options.folder, job, blobs)
            _append(options.folder, task.task, {"done": to_plain(result)})


if __name__ == "__main__":
    main()
