"""Timed runs of a session, until they can be believed: MLPerf LoadGen's discipline on one small machine.

A run ends when its minimum time *and* its minimum count have passed *and* the interval of the median
is tight, or at its longest time in any case. Scenarios (mlcommons/inference, loadgen): single-stream,
the next query when the last is answered; multi-stream, queries of several rows; offline, rows as fast
as they go; and *paced*, so many queries a second, which is what an edge device does all day: its
caches and its clock go cold between two of them.
"""

from __future__ import annotations

import functools
import math
import resource
import time
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from edgeml_runtime.errors import ShapeMismatch
from edgeml_runtime.measure.conditions import Conditions, environment, kept_waiting
from edgeml_runtime.measure.doubts import Evidence, doubts
from edgeml_runtime.measure.statistics import confidence_of_median, intervals, repeated
from edgeml_runtime.session import Session

Scenario = Literal["single-stream", "multi-stream", "offline", "paced"]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)
ROWS: Mapping[Scenario, int] = {"single-stream": 1, "multi-stream": 8, "offline": 64, "paced": 1}  # 8: LoadGen's
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
MOST_SAMPLES = 1_000_000  # 8 MB; a longer run keeps an even share of every stretch
KEPT_SAMPLES, KEPT_POINTS = 200, 300  # for pictures: of the durations, of the time line
TIGHT_CI = 0.05  # of the median: good enough to stop
MOST_SESSIONS, MOST_LOADING = 16, 0.5  # of a run; of the time measured so far: none is opened anew for more
LEAST_STRETCH_S = 0.1  # that is worth a session of its own
SETTLED = 0.05  # two stretches of warm-up whose medians differ by less are stable
LONGEST_WARMUP = 10  # times Plan.warmup_s

Query = Callable[[], Any]
Opener = Callable[[], Session]
Watch = Callable[[float], None]  # told the seconds measured so far, between stretches


def nobody(_seconds: float) -> None: ...


@dataclass(frozen=True)
class Plan:
    """When to stop: after `min_s`, `min_count` queries and a tight median, or after `max_s` in any case.

    `rows` are those of one query, 0 for the scenario's own; `rate_hz` is for the paced scenario.
    """

    warmup_s: float = 0.2
    min_s: float = 1.0
    min_count: int = 100
    max_s: float = 10.0
    scenario: Scenario = "single-stream"
    rows: int = 0
    rate_hz: float = 10.0


USUAL = Plan()


@dataclass(frozen=True)
class Timing:
    """What one query takes, in milliseconds. `ci95_ms` is of the median; `samples_ms` is a thinned, sorted sample."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    p999_ms: float | None  # None where the queries are too few for it
    mean_ms: float
    min_ms: float
    max_ms: float
    n: int
    ci95_ms: tuple[float, float]
    intervals_ms: Mapping[str, tuple[float, float]]  # 95 %, of those of QUANTILES that the queries are enough for
    cpu_ms: float  # CPU time of the process per query, all its threads
    valid: bool
    why: str  # what makes it invalid, or ""
    scenario: Scenario = "single-stream"
    rows: int = 1  # of one query
    rows_per_s: float = 0.0
    unsure: tuple[str, ...] = ()  # of QUANTILES, for which the queries are too few
    warmup_s: float = 0.0
    energy_mj: float | None = None  # of one query, None where nothing measures it
    samples_ms: tuple[float, ...] = ()
    series: tuple[tuple[float, float, float], ...] = ()  # (seconds since the start, p50, p90) of stretches
    environment: Mapping[str, Any] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)  # Conditions.facts()
    readings: Sequence[Mapping[str, Any]] = ()  # Conditions.series()


@dataclass
class _Run:
    """What has been recorded so far: for every stretch its start, its durations (ns, thinned), and the whole count."""

    starts: list[float] = field(default_factory=list)
    stretches: list[np.ndarray] = field(default_factory=list)
    sessions: list[int] = field(default_factory=list)  # of every stretch, which one it was of
    count: int = 0
    late: int = 0  # queries that had to wait for the one before
    interrupted: int = 0  # times that another took the processor from a thread that wanted to go on
    waited: list[int] = field(default_factory=lambda: [0, 0])  # ns of all threads: run, kept waiting
    busy_s: float = 0.0  # of the calling thread
    cpu_s: float = 0.0  # of the process
    elapsed_s: float = 0.0

    def samples(self) -> np.ndarray:
        return np.concatenate(self.stretches)

    def by_session(self) -> list[np.ndarray]:
        """Return the durations of each session."""
        of = np.array(self.sessions)
        return [np.concatenate([self.stretches[i] for i in np.flatnonzero(of == one)]) for one in np.unique(of)]

    def tight(self) -> bool:
        samples = self.samples()
        low, high = confidence_of_median(samples)
        return max(high - low, 2 * repeated(self.by_session(), 0.5)) <= TIGHT_CI * float(np.median(samples))

    def held(self, *, alone: bool) -> float:
        """Return the share of the time that those who wanted a processor had one; `alone`, one thread does it all."""
        ran, waited = self.waited
        shares = [ran / (ran + waited) if ran else 1.0, self.busy_s / self.elapsed_s if alone else 1.0]
        return min(shares)


def measure(
    session: Session | Opener, feeds: Mapping[str, np.ndarray], plan: Plan = USUAL, *, watch: Watch = nobody
) -> Timing:
    """Return how long `session` takes for `feeds`: through `predict` where they are one row of one input.

    Given what opens a session, up to MOST_SESSIONS stretches of the run have one of their own, the one before gone,
    and the intervals hold what differs between sessions, too: that is what a run done again will differ by. In the
    single-stream and paced scenarios a query is `feeds` as they are; else `plan.rows` rows of them, in one run where
    the model's row axis is free, one by one where it is not. Raises ShapeMismatch when they do not fit.
    """
    asked = _Asked(session, feeds, plan)
    at_start, conditions = environment(), Conditions()
    warmup_s, settled = warm(asked.one, plan)
    conditions.look()
    run = _record(asked, plan, conditions=conditions, watch=watch)
    samples = run.samples() / 1e6
    told = intervals(samples, QUANTILES, [piece / 1e6 for piece in run.by_session()])
    paced = plan.scenario == "paced"
    evidence = Evidence(
        median=(float(np.median(samples)), *told["p50"]),
        facts=conditions.facts(),
        cores=len(at_start["affinity"]),
        held=1.0 if paced else run.held(alone=asked.threads == 1),
        interrupted=run.interrupted / run.count if paced else 0.0,
        late=run.late / run.count,
        settled=settled,
    )
    facts = _Facts(
        plan=plan, rows=asked.rows, warmup_s=warmup_s, told=told, conditions=conditions, environment=at_start
    )
    return _timing(run, evidence, facts)


class _Asked:
    """What is asked again and again: one query of a session, which `renew` opens anew where that is worth its time."""

    def __init__(self, session: Session | Opener, feeds: Mapping[str, np.ndarray], plan: Plan) -> None:
        self._opener = None if isinstance(session, Session) else session
        self._feeds, self._plan, self.opened, self.loading_s = feeds, plan, 1, 0.0
        first = session if isinstance(session, Session) else session()
        self.threads = first.threads
        self.rows, self.one = query(first, feeds, plan)

    def renew(self, stretch_s: float, elapsed_s: float) -> None:
        """Open the session anew and warm it up, unless it takes too long or the next stretch is too short for that."""
        few = self.opened < MOST_SESSIONS and stretch_s >= LEAST_STRETCH_S
        if self._opener is None or not few or self.loading_s > MOST_LOADING * elapsed_s:
            return
        began = time.perf_counter()
        self.one = _nothing  # a small memory does not hold two
        self.one = query(self._opener(), self._feeds, self._plan)[1]
        repeat(self.one, seconds=min(self._plan.warmup_s, stretch_s) / 4, ends=array("q"))
        self.loading_s += time.perf_counter() - began
        self.opened += 1


def _nothing() -> None: ...


def query(session: Session, feeds: Mapping[str, np.ndarray], plan: Plan) -> tuple[int, Query]:
    """Return the rows of one query, and what runs it."""
    if plan.scenario in ("single-stream", "paced"):
        counts = {len(array) for array in feeds.values() if array.ndim}
        return max(counts, default=1), _caller(session, feeds)
    rows = plan.rows or ROWS[plan.scenario]
    if not all(spec.shape and spec.shape[0] == -1 for spec in session.inputs):
        one = _caller(session, feeds)
        return rows, functools.partial(_several, one, rows)
    if any(not array.ndim or not len(array) for array in feeds.values()):
        raise ShapeMismatch(f"the {plan.scenario} scenario needs at least one row of every input: give some")
    many = {name: array[np.arange(rows) % len(array)] for name, array in feeds.items()}
    return rows, functools.partial(session.run, many)


def _several(one: Query, times: int) -> None:
    for _ in range(times):
        one()


def _caller(session: Session, feeds: Mapping[str, np.ndarray]) -> Query:
    if len(session.inputs) == 1 and len(feeds) == 1:
        row = next(iter(feeds.values()))
        if row.ndim == len(session.inputs[0].shape) and row.ndim and len(row) == 1:
            return functools.partial(session.predict, row)
    return functools.partial(session.run, feeds)


def warm(one: Query, plan: Plan) -> tuple[float, bool]:
    """Run `one` until two stretches agree; return the seconds that took, and whether they did."""
    start, before = time.perf_counter(), math.inf
    while True:
        ends: array[int] = array("q")
        repeat(one, seconds=plan.warmup_s / 2, ends=ends)
        median = float(np.median(np.asarray(ends)))
        elapsed = time.perf_counter() - start
        if elapsed >= plan.warmup_s and abs(median - before) <= SETTLED * before:
            return elapsed, True
        if elapsed >= LONGEST_WARMUP * plan.warmup_s:
            return elapsed, False
        before = median


def _record(asked: _Asked, plan: Plan, *, conditions: Conditions, watch: Watch) -> _Run:
    """Return timed stretches of what is `asked`, with a look at the machine after each."""
    run, begun = _Run(), time.perf_counter()
    step = min(1.0, max(plan.min_s / 8, 0.01), plan.max_s)
    room = max(64, MOST_SAMPLES // math.ceil(plan.max_s / step))
    while True:
        if run.stretches:
            asked.renew(step, run.elapsed_s)
        start, busy, cpu, ends = time.perf_counter(), time.thread_time(), time.process_time(), array("q")
        waited, switches = kept_waiting(), resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw
        if plan.scenario == "paced":
            run.late += _pace(asked.one, plan.rate_hz, seconds=max(step, 1 / plan.rate_hz), ends=ends)
        else:
            repeat(asked.one, seconds=step, ends=ends)
        run.busy_s += time.thread_time() - busy
        run.cpu_s += time.process_time() - cpu
        run.elapsed_s += time.perf_counter() - start
        run.interrupted += resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - switches
        if waited and (now := kept_waiting()):
            run.waited = [total + after - before for total, after, before in zip(run.waited, now, waited, strict=True)]
        run.starts.append(start - begun)
        run.stretches.append(_thin(np.asarray(ends), room))
        run.sessions.append(asked.opened)
        run.count += len(ends)
        elapsed = time.perf_counter() - begun
        done = elapsed - asked.loading_s >= plan.min_s and run.count >= plan.min_count and run.tight()
        if done or elapsed >= plan.max_s:
            conditions.end()
            return run
        conditions.look()
        watch(elapsed)


def repeat(one: Query, *, seconds: float, ends: array[int]) -> None:
    """Run `one` for `seconds`, at least once; append each duration in ns."""
    clock = time.perf_counter_ns
    before = clock()
    until, room = before + int(seconds * 1e9), MOST_SAMPLES
    while room > 0:
        one()
        after = clock()
        ends.append(after - before)
        before, room = after, room - 1
        if after >= until:
            break


def _pace(one: Query, rate_hz: float, *, seconds: float, ends: array[int]) -> int:
    """Run `one` at its due times for `seconds`, however many are due; append each duration (ns), return the late ones.

    A query that the one before held up is counted from when it was due, as its user would; else from when the
    system woke this process, whose own lateness is not the model's.
    """
    clock, every, late = time.perf_counter_ns, int(1e9 / rate_hz), 0
    first = due = clock()
    until = first + seconds * 1e9
    while due < until and (due == first or clock() < until):
        wait = due - clock()
        if wait > 0:
            time.sleep(wait / 1e9)
        late += wait < 0 and due > first
        begun = due if wait < 0 else clock()
        one()
        ends.append(clock() - begun)
        due += every
    time.sleep(max(0, due - clock()) / 1e9)  # the next stretch keeps the pace
    return late


@dataclass(frozen=True, kw_only=True)
class _Facts:
    """What a timing is of, beside the run itself."""

    plan: Plan
    rows: int
    warmup_s: float
    told: Mapping[str, tuple[float, float]]  # intervals (ms)
    conditions: Conditions
    environment: Mapping[str, Any]


def _timing(run: _Run, evidence: Evidence, facts: _Facts) -> Timing:
    samples, seen = run.samples() / 1e6, facts.conditions.facts()
    quantiles = {name: float(np.quantile(samples, q)) for name, q in QUANTILES.items()}
    joules, why = facts.conditions.joules(), doubts(evidence)
    pace_s = run.elapsed_s / run.count if facts.plan.scenario == "paced" else float(samples.mean()) / 1e3
    return Timing(
        p50_ms=quantiles["p50"],
        p90_ms=quantiles["p90"],
        p99_ms=quantiles["p99"],
        p999_ms=quantiles["p999"] if "p999" in facts.told else None,
        mean_ms=float(samples.mean()),
        min_ms=float(samples.min()),
        max_ms=float(samples.max()),
        n=run.count,
        ci95_ms=facts.told["p50"],
        intervals_ms=facts.told,
        unsure=tuple(name for name in QUANTILES if name not in facts.told),
        cpu_ms=run.cpu_s * 1e3 / run.count,
        valid=not why,
        why=why,
        scenario=facts.plan.scenario,
        rows=facts.rows,
        rows_per_s=facts.rows / pace_s,
        warmup_s=facts.warmup_s,
        energy_mj=None if joules is None else joules * 1e3 / run.count,
        samples_ms=tuple(_thin(np.sort(samples), KEPT_SAMPLES).tolist()),
        series=_series(run),
        environment={**facts.environment, **seen},
        conditions=seen,
        readings=_evenly(facts.conditions.series(), KEPT_POINTS),
    )


def _series(run: _Run) -> tuple[tuple[float, float, float], ...]:
    """Return the time line, at most KEPT_POINTS long: neighbouring stretches are put together."""
    groups = np.array_split(np.arange(len(run.stretches)), min(KEPT_POINTS, len(run.stretches)))
    points = []
    for group in groups:
        p50, p90 = np.quantile(np.concatenate([run.stretches[i] for i in group]) / 1e6, [0.5, 0.9])
        points.append((round(run.starts[group[0]], 3), float(p50), float(p90)))
    return tuple(points)


def _thin(values: np.ndarray, most: int) -> np.ndarray:
    """Return at most `most` of `values`, evenly spaced, both ends among them."""
    if len(values) <= most:
        return values
    evenly: np.ndarray = values[np.linspace(0, len(values) - 1, most).astype(int)]
    return evenly


def _evenly(items: Sequence[Mapping[str, Any]], most: int) -> Sequence[Mapping[str, Any]]:
    return [items[i] for i in _thin(np.arange(len(items)), most)]
