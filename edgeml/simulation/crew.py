"""Worker processes, each with its share of the virtual devices; or none, and all of it in this process.

A worker is told in turn: load this graph, run these calls, judge. It ends when its pipe closes, so that a killed parent
leaves none behind; Ctrl-C is the parent's to handle.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from edgeml.artifacts import ModelTask, OnnxModel, Rows
from edgeml.simulation.device import Call, Household, Judged, Reply
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.messages import TaskOffer


class Crew:
    """All virtual devices of a simulation. Use as a context manager: leaving it ends the processes."""

    def __init__(self, shares: Mapping[str, Rows], held_out: Mapping[str, Rows], *, workers: int) -> None:
        names = sorted(shares)
        parts = [names[i::workers] for i in range(workers)] if workers else [names]
        homes = [({n: shares[n] for n in part}, {n: held_out[n] for n in part if n in held_out}) for part in parts]
        self._where = {name: i for i, part in enumerate(parts) for name in part}
        self._here = Household(*homes[0]) if not workers else None
        self._loaded: set[str] = set()
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        context = multiprocessing.get_context("spawn")
        for home in homes if workers else ():
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, *home), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join(0.0 if kind else 2.0)
            if process.is_alive():
                process.terminate()
                process.join()

    def load(self, digest: str, data: bytes, *, max_update_bytes: int) -> None:
        """Give every worker a task graph, once."""
        if digest not in self._loaded:
            self._loaded.add(digest)
            for _ in self._ask([("load", digest, data, max_update_bytes)] * max(1, len(self._pipes))):
                pass

    def train(self, calls: Sequence[Call], offer: TaskOffer, parameters: bytes) -> Iterator[Reply]:
        """Yield what each called device answers, in no order."""
        parts: list[list[Call]] = [[] for _ in range(max(1, len(self._pipes)))]
        for call in calls:
            parts[self._where[call.device]].append(call)
        yield from self._ask([("train", part, offer, parameters) for part in parts])

    def judge(self, model: OnnxModel, parameters: bytes, *, kind: ModelTask, metric: str) -> list[Judged]:
        """Return how every device's own model does on the rows it held out."""
        request = ("judge", model, parameters, kind, metric)
        return sorted(self._ask([request] * max(1, len(self._pipes))), key=lambda one: one.device)

    def _ask(self, requests: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        if self._here is not None:
            yield from _answers(self._here, requests[0])
            return
        for pipe, request in zip(self._pipes, requests, strict=True):
            pipe.send(request)
        busy = list(self._pipes)
        while busy:
            for ready in wait(busy):
                pipe = next(one for one in busy if one is ready)
                answer = pipe.recv()
                if isinstance(answer, Exception):
                    raise answer
                if answer is None:
                    busy.remove(pipe)
                else:
                    yield answer


def _answers(home: Household, request: tuple[Any, ...]) -> Iterator[Any]:
    what, *rest = request
    if what == "load":
        digest, data, limit = rest
        home.load(digest, data, max_update_bytes=limit)
    elif what == "train":
        calls, offer, blob = rest
        parameters = tensors.unpack(blob)
        for call in calls:
            yield home.train(call, offer, parameters)
    else:
        model, blob, kind, metric = rest
        yield from home.judge(model, tensors.unpack(blob), kind=kind, metric=metric)


def _work(pipe: Connection, shares: Mapping[str, Rows], held_out: Mapping[str, Rows]) -> None:
    """The life of a worker: a request, its answers, None; until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    home = Household(shares, held_out)
    while True:
        try:
            request = pipe.recv()
        except EOFError:
            return
        try:
            for answer in _answers(home, request):
                pipe.send(answer)
            pipe.send(None)
        except BrokenPipeError:
            return
        except Exception as error:  # the parent raises it
            pipe.send(error)
