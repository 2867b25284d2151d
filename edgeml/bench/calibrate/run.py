"""Calibration of a device: its kernels' times, from micro-models, and five reference nets end to end.

    micro-models x device -calibrate-> Calibration

Every finished micro-model is kept in a journal beside the calibration: what is interrupted goes on where it was.
The device needs only `edgeml_runtime.measure`; the models are made here.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from edgeml.bench.calibrate.blocks import EVICTION, Builder, feeds
from edgeml.bench.calibrate.calibration import SCHEMA, Calibration, Reference
from edgeml.bench.calibrate.kernels import Kernel, kernels
from edgeml.bench.calibrate.reference import REFERENCES
from edgeml.bench.calibrate.work import Work, with_cold, work_of
from edgeml_runtime.measure import OperatorTime, Plan, Timing, environment, measure, operators
from edgeml_runtime.session import DEFAULTS, Session
from edgeml_runtime.wire.manifest import Settings

ROUNDS, RUNS = 3, 20  # over all micro-models in a new random order each, so that a mood of the machine meets few
REFERENCE_PLAN = Plan(min_s=0.5, min_count=30, max_s=4.0)
LEAST_CACHE = 1 << 20  # bytes, where the kernel does not tell: a Raspberry Pi 4's
CHAINS = 2, 62  # nodes
Feeds = Mapping[str, np.ndarray]


class Device(Protocol):
    """What calibration asks of a device; `Here` is this machine."""

    def environment(self) -> dict[str, Any]: ...
    def nodes(self, model: bytes, inputs: Feeds, runs: int) -> Sequence[OperatorTime]: ...
    def time(self, model: bytes, inputs: Feeds, plan: Plan) -> Timing: ...


@dataclass(frozen=True)
class Here:
    """This machine, with sessions of these settings."""

    settings: Settings = DEFAULTS

    def environment(self) -> dict[str, Any]:
        return environment()

    def nodes(self, model: bytes, inputs: Feeds, runs: int) -> Sequence[OperatorTime]:
        return operators(model, inputs, runs=runs, settings=self.settings, weights=True)

    def time(self, model: bytes, inputs: Feeds, plan: Plan) -> Timing:
        return measure(Session(model, self.settings), inputs, plan)


def calibrate(
    device: Device,
    *,
    name: str,
    settings: Settings = DEFAULTS,
    journal: Path | None = None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Calibration:
    """Return the calibration of `device`, which has the board name `name`.

    With `journal`, a file, each finished micro-model is appended to it and not run again after an interruption;
    the caller removes it. `progress` is told (done, of, what).
    """
    before = device.environment()
    log = _Journal(journal, {"settings": asdict(settings), "onnxruntime": before["onnxruntime"]})
    cache = int(before.get("cache_bytes", LEAST_CACHE))
    every = [(round_, kernel) for round_ in range(ROUNDS) for kernel in _shuffled(round_, cache)]
    total = len(every) + 2 * len(REFERENCES)
    for done, (round_, kernel) in enumerate(every):
        key = f"{round_} {kernel.name}"
        progress(done, total, kernel.name)
        if key not in log.rows:
            log.add(key, _rows(device.nodes(kernel.data, feeds(kernel.shape), RUNS), kernel, cache))
    references = []
    for done, (net, int8) in enumerate((net, int8) for net in REFERENCES for int8 in (False, True)):
        progress(len(every) + done, total, net)
        references.append(_reference(device, net, int8=int8, cache=cache))
    node_ms = float(np.median([added for _, added, _ in references]))
    return Calibration(
        device=name,
        settings=asdict(settings),
        environment=before,
        cache_bytes=cache,
        call_ms=_call(device),
        node_ms=node_ms,
        samples=tuple(_samples(log.rows, node_ms)),
        references=tuple(one for one, _, _ in references),
        doubts=tuple(sorted({why for _, _, why in references if why})),
    )


def _shuffled(round_: int, cache: int) -> list[Kernel]:
    made = kernels(cache)
    random.Random(round_).shuffle(made)
    return made


def _rows(nodes: Iterable[OperatorTime], kernel: Kernel, cache: int) -> list[list[Any]]:
    kept = [node for node in nodes if not node.name.startswith(EVICTION)]
    works = with_cold([work_of(node) for node in kept], cache, evicted=kernel.evicted)
    return [[asdict(work), node.ms] for work, node in zip(works, kept, strict=True)]


def _reference(device: Device, name: str, *, int8: bool, cache: int) -> tuple[Reference, float, str]:
    """Return a net's time and work, the milliseconds that the profiler added to each node, and what spoiled it."""
    model, shape = REFERENCES[name](int8)
    timing = device.time(model, feeds(shape), REFERENCE_PLAN)
    nodes = device.nodes(model, feeds(shape), RUNS)
    added = (sum(node.ms for node in nodes) - timing.p50_ms) / len(nodes)
    works = tuple(with_cold([work_of(node) for node in nodes], cache))
    return Reference(name=f"{name}{' int8' * int8}", ms=timing.p50_ms, nodes=works), max(0.0, added), timing.why


def _call(device: Device) -> float:
    """Return the milliseconds of a call with nothing in it, from chains of two lengths."""
    times = {count: device.time(_chain(count), feeds((1, 64)), REFERENCE_PLAN).p50_ms for count in CHAINS}
    short, long = CHAINS
    return max(0.0, times[short] - short * (times[long] - times[short]) / (long - short))


def _chain(count: int) -> bytes:
    net, x = Builder((1, 64)), "x"
    for index in range(count):
        x = net.add(("Neg", "Abs")[index % 2], [x], (1, 64))
    return net.done(x)


def _samples(rows: Mapping[str, list[list[Any]]], node_ms: float) -> Iterable[tuple[Work, float]]:
    """Return every node with the median of its rounds; copies of one kernel in one model are one sample."""
    times: dict[tuple[str, str, Work], list[float]] = {}
    for key, nodes in rows.items():
        for work, ms in nodes:
            kernel = key.partition(" ")[2]
            found = Work(**work)
            times.setdefault((kernel, found.kind, found), []).append(ms)
    for (_, _, work), found_ms in times.items():
        yield work, max(float(np.median(found_ms)) - node_ms, 1e-5)


class _Journal:
    """Finished micro-models by key, appended to a file line by line; one of other conditions is begun anew."""

    def __init__(self, path: Path | None, conditions: Mapping[str, Any]) -> None:
        self.rows: dict[str, list[list[Any]]] = {}
        self._path = path
        head = json.dumps({"schema": SCHEMA, **conditions}, sort_keys=True)
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        if lines[:1] == [head]:
            for line in lines[1:]:
                try:
                    key, rows = json.loads(line)
                except ValueError:
                    break  # the line that was being written when the power went
                self.rows[key] = rows
        if path:
            kept = "".join(json.dumps([key, rows]) + "\n" for key, rows in self.rows.items())
            path.write_text(f"{head}\n{kept}", encoding="utf-8")

    def add(self, key: str, rows: list[list[Any]]) -> None:
        self.rows[key] = rows
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps([key, rows]) + "\n")
