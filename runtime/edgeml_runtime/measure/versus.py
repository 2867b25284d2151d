"""Two models, which is faster, and how sure is that: measured in turns, so that the machine's moods meet both.

Interleaving in random order is what makes a comparison on a busy machine fair (Google Benchmark's user guide,
random interleaving). The answer is a ratio with its interval, by bootstrap over the pairs of turns.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeml_runtime.measure.conditions import Conditions, environment
from edgeml_runtime.measure.doubts import Evidence, doubts
from edgeml_runtime.measure.statistics import confidence_of_median
from edgeml_runtime.measure.timing import USUAL, Plan, Query, query, repeat, warm
from edgeml_runtime.session import Session

PAIRS, MOST_PAIRS, TURN_S = 30, 400, 0.02
TIGHT_RATIO = 0.02  # width of the ratio's interval that is good enough to stop
RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Versus:
    """How much time B takes, as a share of A's: below 1, B is faster. `ratio95` is its 95 % interval."""

    a_ms: float  # median of the turns' medians
    b_ms: float
    ratio: float
    ratio95: tuple[float, float]
    pairs: int
    valid: bool
    why: str
    environment: Mapping[str, Any] = field(default_factory=dict)

    def verdict(self, a: str = "A", b: str = "B") -> str:
        """Return the comparison in words, with its numbers."""
        low, high = self.ratio95
        if not self.valid:
            return f"no verdict: {self.why}"
        if high < 1:
            return f"{b} is faster: it takes {self.ratio:.3f} of {a}'s time ({low:.3f} to {high:.3f})"
        if low > 1:
            return f"{a} is faster: {b} takes {self.ratio:.3f} of its time ({low:.3f} to {high:.3f})"
        return f"no difference is proven: {b} takes {self.ratio:.3f} of {a}'s time ({low:.3f} to {high:.3f})"


def versus(
    a: tuple[Session, Mapping[str, np.ndarray]], b: tuple[Session, Mapping[str, np.ndarray]], plan: Plan = USUAL
) -> Versus:
    """Return how `b` compares with `a`, each a session with the inputs of one query, within twice `plan.max_s`.

    At least PAIRS pairs of turns, more until the ratio's interval is tight. Raises ShapeMismatch as `measure` does.
    """
    at_start, conditions = environment(), Conditions()
    queries = [query(session, feeds, plan)[1] for session, feeds in (a, b)]
    for one in queries:
        warm(one, plan)  # what still settles after that settles for both
    conditions.look()
    medians, held = _turns(queries, plan, conditions)
    ratios = medians[:, 1] / medians[:, 0]
    ratio, interval = _interval(ratios)
    evidence = Evidence(
        median=(ratio, *interval),
        facts=conditions.facts(),
        cores=len(at_start["affinity"]),
        held=held if a[0].threads == b[0].threads == 1 else 1.0,
    )
    why = doubts(evidence)
    return Versus(
        a_ms=float(np.median(medians[:, 0])),
        b_ms=float(np.median(medians[:, 1])),
        ratio=ratio,
        ratio95=interval,
        pairs=len(ratios),
        valid=not why,
        why=why,
        environment={**at_start, **conditions.facts()},
    )


def _turns(queries: list[Query], plan: Plan, conditions: Conditions) -> tuple[np.ndarray, float]:
    """Return the median (ms) of every turn, a pair a row, and the share of time that this thread had a processor."""
    rows: list[list[float]] = []
    start, busy, shuffle = time.perf_counter(), time.thread_time(), random.Random(0)
    while True:
        pair = [0.0, 0.0]
        for side in shuffle.sample((0, 1), 2):
            ends: array[int] = array("q")
            repeat(queries[side], seconds=TURN_S, ends=ends)
            pair[side] = float(np.median(np.asarray(ends))) / 1e6
        rows.append(pair)
        if len(rows) % 10 == 0:
            conditions.look()
        elapsed = time.perf_counter() - start
        if len(rows) >= PAIRS and elapsed >= 2 * plan.min_s:
            low, high = _interval(np.array([b / a for a, b in rows]))[1]
            if high - low <= TIGHT_RATIO or elapsed >= 2 * plan.max_s or len(rows) >= MOST_PAIRS:
                break
    conditions.end()
    return np.array(rows), (time.thread_time() - busy) / (time.perf_counter() - start)


def _interval(ratios: np.ndarray) -> tuple[float, tuple[float, float]]:
    """Return the median of the pairs' ratios and its 95 % interval: the wider ends of bootstrap and order statistics.

    The second sees that neighbouring pairs may be alike, too.
    """
    drawn = np.median(np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios))), axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    ranks = confidence_of_median(ratios)
    return float(np.median(ratios)), (min(float(low), ranks[0]), max(float(high), ranks[1]))
