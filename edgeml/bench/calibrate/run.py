"""Calibration of a device: its kernels' times, from micro-models, and five reference nets end to end.

    micro-models x device -calibrate-> Calibration

Whatever is finished is kept in a journal beside the calibration: what is interrupted goes on where it was.
The device needs only `edgeml_runtime.measure`; the models are made here, one at a time.
"""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edgeml.bench.calibrate.ask import Ask
from edgeml.bench.calibrate.blocks import EVICTION, Builder, feeds
from edgeml.bench.calibrate.calibration import Calibration, Reference
from edgeml.bench.calibrate.journal import Journal, Row, digest_of
from edgeml.bench.calibrate.kernels import kernels
from edgeml.bench.calibrate.reference import REFERENCES
from edgeml.bench.calibrate.sizes import Built
from edgeml.bench.calibrate.work import Caches, Work, in_turn, works_of
from edgeml.errors import NotFound
from edgeml_runtime.measure import OperatorTime, Plan, Timing, environment, measure, operators
from edgeml_runtime.session import DEFAULTS, Session
from edgeml_runtime.wire.manifest import Settings

RUNS = 12  # of a micro-model in one round
REFERENCE_PLAN = Plan(warmup_s=0.1, min_s=0.4, min_count=20, max_s=2.0)  # of a net in one round
LEAST_CACHE = 1 << 20  # bytes, where the kernel does not tell: a Raspberry Pi 4's
NEAR_SHARE = 32  # of the last cache, the one before it: a Pi 4's 32 KB of 1 MB, this machine's 1 MB of 32
LADDER = 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4, 1.0, 2.0  # of the last cache
CLIMB = 1.2  # from the first rung to the last: less says nothing of the cache
CHAINS = 2, 62  # nodes that do next to nothing: their difference is what a node costs, the rest what a call costs
LEAST_MS = 1e-5  # of a kernel, once the profiler's share is taken out
MOST_SHARE = 0.5  # of a product's time that is taken for the profiler's beyond what it adds to every node
CONDITIONS = ("onnxruntime", "cpu_model", "machine", "kernel")  # that must not change while it is interrupted
Feeds = Mapping[str, np.ndarray]


class Device(Protocol):
    """What calibration asks of a device; `Here` is this machine."""

    def environment(self) -> dict[str, Any]: ...
    def nodes(self, model: bytes, inputs: Feeds, runs: int) -> Sequence[OperatorTime]: ...
    def time(self, model: bytes, inputs: Feeds, plan: Plan) -> Timing: ...


@runtime_checkable
class FarDevice(Device, Protocol):
    """A device that is asked many things at once, because the way to it is long."""

    def expect(self, upcoming: Iterator[Ask]) -> None: ...


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


@dataclass(frozen=True, kw_only=True)
class Scope:
    """How much of a calibration to do: everything, unless named.

    Of several rounds, minutes apart and each in a new order, the fastest counts: what disturbs a kernel only ever
    makes it slower.
    """

    kernels: Collection[str] = ()  # names of kernels.TABLE
    references: Collection[str] = tuple(REFERENCES)
    rounds: int = 3
    plan: Plan = REFERENCE_PLAN


WHOLE = Scope()


@dataclass(frozen=True)
class Profiler:
    """Milliseconds that the profiler adds to a node, and more to one that multiplies: in int8 (True), and not."""

    node_ms: float
    product_ms: Mapping[bool, float] = field(default_factory=dict)

    def without(self, ms: float, work: Work) -> float:
        """Return the milliseconds of `work` itself where the profiler says `ms`."""
        ms = max(ms - self.node_ms, LEAST_MS)
        more = self.product_ms.get("int8" in work.family, 0.0) if work.macs else 0.0
        return ms - min(more, MOST_SHARE * ms)


@dataclass(frozen=True)
class Subject:
    """One model of a calibration; `timed` end to end, too, where it is more than a kernel."""

    name: str
    build: Callable[[], Built]
    timed: bool = True
    swept: int = 0  # bytes touched between two runs


def calibrate(
    device: Device,
    *,
    name: str,
    settings: Settings = DEFAULTS,
    journal: Path | None = None,
    progress: Callable[[int, int, str], None] = lambda *_: None,
    scope: Scope = WHOLE,
) -> Calibration:
    """Return the calibration of `device`, which has the board name `name`.

    With `journal`, a file, whatever is finished is appended to it and not run again after an interruption; the
    caller removes it. `progress` is told (done, of, what). Raises NotFound for a kernel or reference that is none.
    """
    before = device.environment()
    log = Journal(journal, {"settings": asdict(settings), **{key: before.get(key) for key in CONDITIONS}})
    caches = caches_of(before)
    subjects = _subjects(caches.last, scope)
    rows: dict[str, list[Row]] = {subject.name: [] for subject in subjects}
    steps = [(round_, subject) for round_ in range(scope.rounds) for subject in _shuffled(subjects, round_)]
    if isinstance(device, FarDevice):
        device.expect(_upcoming(steps, log, scope.plan))
    for done, (round_, subject) in enumerate(steps):
        progress(done, len(steps), subject.name)
        rows[subject.name].append(
            _row(device, log, subject, key=f"{round_} {subject.name}", plan=scope.plan, threads=settings.threads)
        )
    progress(len(steps), len(steps), "done")
    found = [(subject, rows[subject.name]) for subject in subjects]
    return _calibration(found, name=name, settings=settings, environment=before)


def caches_of(environment: Mapping[str, Any]) -> Caches:
    """Return the sizes of a device's caches, from what it told of itself."""
    last = int(environment.get("cache_bytes", LEAST_CACHE))
    return Caches(last, min(last, int(environment.get("near_cache_bytes", last // NEAR_SHARE))))


def _subjects(cache: int, scope: Scope) -> list[Subject]:
    """Return every model of a calibration."""
    if unknown := set(scope.references) - REFERENCES.keys():
        raise NotFound(f"no reference nets {', '.join(sorted(unknown))}: there are {', '.join(REFERENCES)}")
    found = [Subject(one.name, one.built, False, one.swept) for one in kernels(cache, names=scope.kernels)]
    found += [Subject(f"chain {count}", functools.partial(_chain, count)) for count in CHAINS]
    found += [_rung(cache, share) for share in LADDER]
    for name in scope.references:
        for int8 in (False, True):
            found.append(Subject(f"net {name}{' int8' * int8}", functools.partial(REFERENCES[name], int8)))
    return found


def _shuffled(subjects: Sequence[Subject], round_: int) -> list[Subject]:
    """Return `subjects` in an order of this round's own, so that a mood of the machine meets others each time."""
    return random.Random(round_).sample(subjects, len(subjects))


def _upcoming(steps: Sequence[tuple[int, Subject]], log: Journal, plan: Plan) -> Iterator[Ask]:
    """Yield what will be asked, in order, but for what `log` has."""
    for round_, subject in steps:
        model, shape = subject.build()
        if log.get(f"{round_} {subject.name} {digest_of(model)}") is None:
            if subject.timed:
                yield Ask(model, feeds(shape), plan=plan)
            yield Ask(model, feeds(shape), RUNS)


def _row(device: Device, log: Journal, subject: Subject, *, key: str, plan: Plan, threads: int) -> Row:
    """Return what `subject` takes on `device`, from `log` if it is there."""
    model, shape = subject.build()
    key = f"{key} {digest_of(model)}"
    row = log.get(key)
    if row is None:
        timing = device.time(model, feeds(shape), plan) if subject.timed else None
        nodes = tuple(device.nodes(model, feeds(shape), RUNS))
        row = Row(nodes, whole_ms(timing, threads), timing.why) if timing else Row(nodes)
        log.add(key, row)
    return row


def whole_ms(timing: Timing, threads: int) -> float:
    """Return the milliseconds of a query: its median, of one thread never more than its CPU time.

    While neighbours hold the processor the one grows and the other does not.
    """
    return min(timing.p50_ms, timing.cpu_ms) if threads == 1 else timing.p50_ms


def _calibration(
    found: Sequence[tuple[Subject, list[Row]]],
    *,
    name: str,
    settings: Settings,
    environment: Mapping[str, Any],
) -> Calibration:
    """Return the document made of what was `found`."""
    caches = caches_of(environment)
    caches = replace(caches, last=_kept(caches, [rows for one, rows in found if one.name.startswith("rung ")]))
    chains = [rows for subject, rows in found if subject.name.startswith("chain ")]
    call_ms, node_ms = _overheads(*chains)
    nets = [(subject, rows) for subject, rows in found if subject.name.startswith("net ")]
    profiler = Profiler(node_ms, _of_products(nets, caches=caches, call_ms=call_ms, profiler=Profiler(node_ms)))
    references = []
    for subject, rows in nets:
        works = tuple(works_of(rows[0].nodes, subject.build()[0]))
        references.append(Reference(name=subject.name.removeprefix("net "), ms=_fastest(rows), nodes=works))
    return Calibration(
        device=name,
        settings=asdict(settings),
        environment=dict(environment),
        cache_bytes=caches.last,
        near_bytes=caches.near,
        call_ms=call_ms,
        node_ms=node_ms,
        samples=tuple(
            sample
            for subject, rows in found
            if not subject.name.startswith(("rung ", "chain "))
            for sample in _samples(subject, rows, caches=caches, profiler=profiler)
        ),
        references=tuple(references),
        doubts=tuple(sorted({row.why for _, rows in found for row in rows if row.why and row.ms == _fastest(rows)})),
    )


def _samples(
    subject: Subject, rows: Sequence[Row], *, caches: Caches, profiler: Profiler
) -> Iterator[tuple[Work, float]]:
    """Return every node of a micro-model or a reference net with its fastest round, without the profiler's share.

    Nodes are found again by name: where branches meet, sessions of one model run them in different orders.
    """
    own = [not node.name.startswith(EVICTION) for node in rows[0].nodes]
    works = works_of(rows[0].nodes, subject.build()[0])
    turns = iter(in_turn([work for work, mine in zip(works, own, strict=True) if mine], caches, swept=subject.swept))
    rounds = [{node.name: node.ms for node in row.nodes} for row in rows]
    for node, mine in zip(rows[0].nodes, own, strict=True):
        if mine:
            work = next(turns)
            yield work, profiler.without(min(times[node.name] for times in rounds if node.name in times), work)


def _overheads(short: Sequence[Row], long: Sequence[Row]) -> tuple[float, float]:
    """Return the milliseconds of a call with nothing in it, and what the profiler adds to each node."""
    few, many = CHAINS
    node = (_fastest(long) - _fastest(short)) / (many - few)
    profiled = min(float(np.mean([one.ms for one in row.nodes])) for row in long)
    return max(0.0, _fastest(short) - few * node), profiled - node


def _of_products(
    nets: Sequence[tuple[Subject, list[Row]]], *, caches: Caches, call_ms: float, profiler: Profiler
) -> dict[bool, float]:
    """Return what the profiler adds to a node that multiplies, in fp32 and in int8, beyond what it adds to every node.

    It is by how much the nodes of a reference net are longer than the net: shared among those that multiply, the
    median of the nets, and never less than nothing.
    """
    found: dict[bool, list[float]] = {False: [], True: []}
    for subject, rows in nets:
        samples = list(_samples(subject, rows, caches=caches, profiler=profiler))
        if products := sum(work.macs > 0 for work, _ in samples):
            longer = sum(ms for _, ms in samples) + call_ms - _fastest(rows)
            found[subject.name.endswith(" int8")].append(longer / products)
    return {int8: max(0.0, float(np.median(many))) if many else 0.0 for int8, many in found.items()}


def _rung(cache: int, share: float) -> Subject:
    """Return a product with a vector whose weights fill an eighth of `cache`, after `share` of it was swept."""
    side, swept = math.isqrt(cache // 32), int(share * cache)

    def build() -> Built:
        net = Builder((1, side), swept=swept)
        return net.done(net.dense("x", side)), net.shapes["x"]

    return Subject(f"rung {share}", build, False, swept)


def _kept(caches: Caches, rungs: Sequence[Sequence[Row]]) -> int:
    """Return how many bytes the last cache keeps for this process: neighbours may use it, too.

    It is what must be touched for weights to be half lost: the time of a product climbs from the first rung to the
    last, and crosses the middle there.
    """
    times = [min(_own(row)[0].ms for row in rows) for rows in rungs]
    touched = [(share + 1 / 8) * caches.last for share in LADDER]
    if times[-1] < CLIMB * times[0]:
        return caches.last
    middle = (times[0] + times[-1]) / 2
    for index in range(1, len(times)):
        if times[index] >= middle:
            part = (middle - times[index - 1]) / max(times[index] - times[index - 1], 1e-9)
            kept = touched[index - 1] + min(max(part, 0.0), 1.0) * (touched[index] - touched[index - 1])
            return int(min(max(kept, caches.last / 8), caches.last))
    return caches.last


def _own(row: Row) -> list[OperatorTime]:
    """Return the nodes that a micro-model is about."""
    return [node for node in row.nodes if not node.name.startswith(EVICTION)]


def _fastest(rows: Sequence[Row]) -> float:
    return min(row.ms for row in rows if row.ms is not None)


def _chain(count: int) -> Built:
    """Return a model of `count` nodes that do next to nothing."""
    net, x = Builder((1, 64)), "x"
    for index in range(count):
        x = net.add(("Neg", "Abs")[index % 2], [x], (1, 64))
    return net.done(x), net.shapes["x"]
