"""A task in a child process: vetted, checked, run over the local rows, bounded in memory and time.

The child is forked from the agent's stem, or `python -m edgeml_runtime.task_child STATE`: an order is a line of JSON on
its standard input, the answer one on its standard output, the update a file beside. It stays for the next round, whose
graph it then knows, until the agent has had no use for it for IDLE_S, and dies with the agent. Whatever a graph does
there, runs out of memory, crashes, never ends, becomes a refusal, and the agent and its predictions live on.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from edgeml_runtime import task
from edgeml_runtime.children import LEAST_MEMORY, available_memory, ended_by, stand_back
from edgeml_runtime.config import BLOBS, KEPT, SAMPLES, SLOTS, TASKS, write_atomic
from edgeml_runtime.errors import DeviceError, MalformedMessage, TaskRefused
from edgeml_runtime.kept import Kept
from edgeml_runtime.ledger import Ledger
from edgeml_runtime.memory import give_back
from edgeml_runtime.rehearsal import Play, check_marks, rehearse
from edgeml_runtime.samples import Samples
from edgeml_runtime.session import Session, is_program
from edgeml_runtime.stem import Sprout, Stem, loads
from edgeml_runtime.task import Limits, Rows
from edgeml_runtime.vetting import OPERATORS, Allowed, vet
from edgeml_runtime.wire import holdout, tensors
from edgeml_runtime.wire.plain import from_plain, to_plain
from edgeml_runtime.wire.tasks import HELD_OUT, TaskKind

IDLE_S = 5.0
ENGINE = "edgeml_runtime.ort_session"
INPUT = "input."  # prefix of a release's example rows among its goldens
UPDATE, LOG, ERRORS = "update.safetensors", "ran.jsonl", "child.err"
MAX_ANSWER = 64 << 10  # bytes of the line that comes back
Process = subprocess.Popen[bytes] | Sprout
_rehearsed: dict[tuple[str, str], frozenset[str]] = {}  # graph and kind -> outputs that are marks, in this process


@dataclass(frozen=True, kw_only=True)
class Order:
    """One run: an offer and the owner's policy, as far as the child needs them."""

    round: str
    run: str
    kind: TaskKind
    graph: str  # digests of two blobs
    parameters: str
    scalars: Mapping[str, float]
    min_rows: int
    update_bytes: int
    kept_bytes: int
    constant_bytes: int
    operators: tuple[str, ...] = ()  # instead of the built-in list
    held_out: float = 0.0  # share of the rows that no training sees


@dataclass(frozen=True, kw_only=True)
class Ran:
    """How it ended: `reason` is the name of an error, "" when the update is in its file."""

    rows: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    reason: str = ""
    detail: str = ""


class TaskChild:
    """The agent's side; `run` is called by one thread at a time, `stop` and `rest` from any."""

    def __init__(self, state: Path, *, memory: int = 0, stem: Stem | None = None) -> None:
        """Prepare; no process yet. `memory` bounds what the child may reserve, 0: what is free when it starts.

        Children are forked from `stem` where there is one, else started as programs.
        """
        self._state, self._memory, self._stem = state, memory, stem
        self._process: Process | None = None
        self._lock = threading.Lock()
        self._why = ""  # it was killed, by whom
        self._busy, self._idle_since = False, 0.0

    def run(self, order: Order, *, max_s: float) -> tuple[Ran, bytes]:
        """Return how `order` ended and the update; raise TaskRefused when it was refused, crashed or took too long."""
        with self._lock:
            self._why, self._busy = "", True
            process = self._ready()
        timer = threading.Timer(max_s, self._kill, (f"Timeout: not done within {max_s:g} s: ask for less",))
        timer.daemon = True
        timer.start()
        try:
            line = _ask(process, order)
        finally:
            timer.cancel()
            with self._lock:
                self._busy, self._idle_since = False, time.monotonic()
        if not line.endswith(b"\n"):
            raise TaskRefused(self._end(process))
        ran = from_plain(Ran, json.loads(line))
        if ran.reason:
            raise TaskRefused(ran.detail if ran.reason == "TaskRefused" else f"{ran.reason}: {ran.detail}")
        path = self._state / TASKS / UPDATE
        update = path.read_bytes()
        path.unlink()
        return ran, update

    def stop(self) -> None:
        """End a run that nobody waits for any more."""
        with self._lock:
            if self._busy:
                self._kill_now("stopped: the round is over")

    def rest(self, now: float) -> None:
        """Let the process go when it has been idle long enough."""
        with self._lock:
            if self._process is not None and not self._busy and now - self._idle_since > IDLE_S:
                self._kill_now("idle")

    def close(self) -> None:
        """End the process, if there is one."""
        with self._lock:
            self._kill_now("the agent ends")

    def _ready(self) -> Process:
        if self._process is not None and self._process.poll() is None:
            return self._process
        memory = min(available_memory(), self._memory or sys.maxsize)
        arguments = [str(self._state), "--memory", str(max(memory, LEAST_MEMORY))]
        (self._state / TASKS).mkdir(mode=0o700, exist_ok=True)
        with (self._state / TASKS / ERRORS).open("wb") as errors:
            self._process = self._stem.start(arguments, errors) if self._stem is not None else None
            if self._process is None:
                command = [sys.executable, "-m", "edgeml_runtime.task_child", *arguments]
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
                )
        return self._process

    def _kill(self, why: str) -> None:
        with self._lock:
            self._kill_now(why)

    def _kill_now(self, why: str) -> None:
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            self._why = why
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if not self._busy:
                process.wait()
                _close(process)

    def _end(self, process: Process) -> str:
        """Return why the process ended before it answered."""
        code = process.wait()
        _close(process)
        if self._why:
            return self._why
        lines = (self._state / TASKS / ERRORS).read_bytes()[-4096:].decode(errors="replace").strip().splitlines()
        said = lines[-1][:200] if lines else "no message"
        return ": ".join(ended_by(-code, said) if code < 0 else (f"ExitCode{code}", said))


def _ask(process: Process, order: Order) -> bytes:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(to_plain(order)).encode() + b"\n")
        process.stdin.flush()
        return process.stdout.readline(MAX_ANSWER)
    except (BrokenPipeError, ValueError):  # it died, or was let go
        return b""


def _close(process: Process) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def grown(state: Path) -> Stem:
    """Return the stem of the children of the agent in `state`; call it while this process has one thread.

    onnxruntime is imported first, for the agent and all children at once, wherever that is found not to kill a process
    and no numpy program serves, which needs none.
    """
    program = is_program(state / SLOTS / "current" / "model.onnx")
    if not program and loads(ENGINE):
        importlib.import_module(ENGINE)
    give_back()
    return Stem(main)


def perform(state: Path, order: Order) -> Ran:
    """Run `order` in this very process, its update into its file; what cannot be becomes the reason."""
    try:
        return _perform(state, order)
    except DeviceError as error:
        memory = "bad_alloc" in str(error) or "allocate memory" in str(error)
        return Ran(reason="OutOfMemory" if memory else error.reason, detail=str(error)[:300])
    except MemoryError:
        return Ran(reason="OutOfMemory", detail="the task needs more memory than is free here: ask for less")


def _perform(state: Path, order: Order) -> Ran:
    start = time.perf_counter()
    session = _loaded(state / BLOBS / order.graph, order.operators, order.constant_bytes)
    limits = Limits(order.update_bytes, order.kept_bytes)
    task.check_graph(session.inputs, session.outputs, kind=order.kind, limits=limits)
    parameters = tensors.unpack((state / BLOBS / order.parameters).read_bytes())
    with contextlib.closing(Samples(state / SAMPLES)) as samples:
        if (order.graph, order.kind) not in _rehearsed:
            play = Play(session, order.kind, order.scalars, parameters, samples.layout(), _examples(state))
            _rehearsed[order.graph, order.kind] = rehearse(play)
        told = {"at": time.time(), "round": order.round, "kind": order.kind, "graph": order.graph}
        Ledger(state / TASKS / LOG).note(told)
        rows, held_out = _rows(samples, order, labelled=task.takes_labels(session.inputs))
    kept = Kept(state / KEPT, most=order.kept_bytes)
    was = kept.before(order.run, order.round)
    answer = task.run(session, rows, kind=order.kind, scalars=order.scalars, parameters=parameters, kept=was)
    check_marks(answer.update, _rehearsed[order.graph, order.kind])
    data = tensors.pack(answer.update)
    if len(data) > order.update_bytes:
        raise TaskRefused(f"an update of {len(data):,} bytes, and {order.update_bytes:,} are allowed")
    kept.after(order.run, order.round, was=was, now=answer.keep)
    write_atomic(state / TASKS / UPDATE, data)
    metrics = {**answer.metrics, **held_out, "seconds": time.perf_counter() - start}
    return Ran(rows=answer.rows, metrics=metrics)


@functools.lru_cache(1)
def _loaded(path: Path, operators: tuple[str, ...], constant_bytes: int) -> Session:
    """Return the graph at `path`, named by its digest, vetted and loaded; the last one is kept for the next round."""
    vet(path.read_bytes(), Allowed(operators or OPERATORS, constant_bytes))
    session = Session(path)
    give_back()
    return session


def _examples(state: Path) -> dict[str, np.ndarray]:
    """Return the inputs of the goldens of the release that serves here, by name; {} where there are none."""
    path = state / SLOTS / "current" / "goldens.safetensors"  # edgeml_runtime.slots would bring cryptography along
    if not path.is_file():
        return {}
    arrays = tensors.unpack(path.read_bytes())
    return {name.removeprefix(INPUT): array for name, array in arrays.items() if name.startswith(INPUT)}


def _rows(samples: Samples, order: Order, *, labelled: bool) -> tuple[Rows, dict[str, float]]:
    """Return the rows a task may see, and how many are held out of it; raise TaskRefused when they are too few."""
    part = holdout.part_of(order.kind, order.held_out)
    rows: Rows = samples.rows(part=part) if labelled else (samples.inputs(part=part), None)
    others = holdout.Part(0.0, part.low), holdout.Part(part.high, 1.0)  # counted themselves: labels come meanwhile
    needed, aside = order.min_rows, sum(map(samples.labelled, others))
    if (count := task.count(rows)) < needed:
        few = holdout.too_few(count, needed, order.kind, aside=aside)
        raise TaskRefused(few if labelled else f"{count} rows, and {needed} are needed")
    return rows, {HELD_OUT: float(aside)} if order.kind == "training" and order.held_out else {}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the child's side: limit this process, then one order after the other until standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m edgeml_runtime.task_child", description=main.__doc__)
    parser.add_argument("state", type=Path)
    parser.add_argument("--memory", type=int, default=0, help="bytes of private memory; 0: no limit")
    options = parser.parse_args(arguments)
    stand_back(options.memory, 0)
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing but answers may come where the agent reads them
    while line := sys.stdin.buffer.readline():
        try:
            ran = perform(options.state, from_plain(Order, json.loads(line)))
        except MalformedMessage as error:
            ran = Ran(reason=error.reason, detail=str(error)[:300])
        answers.write(json.dumps(to_plain(ran)).encode() + b"\n")
        answers.flush()
        give_back()  # the next order may be minutes away


if __name__ == "__main__":
    main()
