"""Exact order statistics of columns from counts alone: a search over the numbers themselves.

Floats are ordered like whole numbers (their bits, with the sign mirrored), and there are 2^32 or 2^64 of them.
Each round counts how many values lie between agreed edges, and every wanted rank keeps the one gap between two
edges that holds it, until the gap holds one number: the very one that sorting the pooled column would give.
Minimum and maximum are the first and the last rank, so no reducer but the sum is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from onnx import TensorProto

from edgeml.artifacts import Task
from edgeml.errors import DataError
from edgeml.tasks.program import Columns, Program
from edgeml.tasks.statistics.fitted import IMPOSSIBLE
from edgeml.tasks.study import Answer, Question, Sums

EDGES = 1023  # per column and round, 8 KB: float32 takes 4 to 5 rounds, float64 8 to 10
MOST = 2.0**53  # whole numbers beyond are not told apart
_BITS = EDGES.bit_length()
_INTS = {"float32": np.int32, "float64": np.int64}
Method = Literal["linear", "averaged_inverted_cdf", "inverted_cdf"]
Next = Question | Answer
Ranks = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Column:
    """What is known of one column: its wanted ranks, each within [low, high) of `number_at`."""

    ranks: tuple[int, ...]
    low: tuple[int, ...]
    high: tuple[int, ...]

    def edges(self) -> list[int]:
        """Return at most EDGES edges that split the open gaps, ascending."""
        gaps = sorted({(low, high) for low, high in zip(self.low, self.high, strict=True) if high - low > 1})
        if not gaps:
            return []
        parts = EDGES // len(gaps) + 1
        found = {low + (high - low) * i // parts for low, high in gaps for i in range(1, parts)}
        return sorted(found - {low for low, _high in gaps})

    def narrowed(self, edges: Sequence[int], below: np.ndarray) -> Column:
        """Return the column when `below` (m,) values are known to lie below each of its `edges`."""
        low, high = list(self.low), list(self.high)
        for i, rank in enumerate(self.ranks):
            at = int(np.searchsorted(below, rank, side="right"))  # the first edge with more than `rank` values below
            if at > 0:
                low[i] = max(low[i], edges[at - 1])
            if at < len(edges):
                high[i] = min(high[i], edges[at])
        return replace(self, low=tuple(low), high=tuple(high))


def order_statistics(
    columns: Columns, source: str, *, ranks: Ranks, then: Callable[[np.ndarray, np.ndarray], Next]
) -> Question:
    """Return a study of the values at `ranks`; missing numbers are passed over, as scikit-learn does.

    `ranks` gets how many numbers each column has, (d,), and returns the 0-based ranks wanted, (d, t). `then`
    gets the counts and the values (d, t) as float64.
    """
    limit = _key(float(np.finfo(columns.numbers).max), columns.numbers)
    start = Column((0,), (-limit,), (limit + 1,))
    task = _counting(columns, source)

    def first(edges: list[list[int]], sums: Sums) -> Next:
        counts = _counts(sums).sum(axis=1)
        if not counts.all():
            empty = np.flatnonzero(counts == 0).tolist()
            raise DataError(f"columns {empty} have no number on any device: leave them out")
        wanted = ranks(counts).astype(np.int64)
        state = [
            Column(tuple(row), start.low * len(row), start.high * len(row)).narrowed(own, np.cumsum(sums["counts"][f]))
            for f, (row, own) in enumerate(zip(wanted.tolist(), edges, strict=True))
        ]
        return _ask(state, columns, task, then=lambda values: then(counts, values))

    edges = [start.edges()] * columns.features
    return Question(_with(task, edges, columns), lambda sums: first(edges, sums))


def _counts(sums: Sums) -> np.ndarray:
    counts = sums["counts"]
    if (counts < 0).any() or (counts != np.round(counts)).any() or counts.sum() > MOST:
        raise DataError(f"counts that are negative, broken or above {MOST:.0e}: {IMPOSSIBLE}")
    return counts


def _ask(state: list[Column], columns: Columns, task: Task, *, then: Callable[[np.ndarray], Next]) -> Next:
    edges = [column.edges() for column in state]
    if not any(edges):
        return then(np.array([[number_at(low, columns.numbers) for low in column.low] for column in state]))

    def narrow(sums: Sums) -> Next:
        below = np.cumsum(_counts(sums), axis=1)
        closer = [
            column.narrowed(own, below[f, : len(own)]) for f, (column, own) in enumerate(zip(state, edges, strict=True))
        ]
        return _ask(closer, columns, task, then=then)

    return Question(_with(task, edges, columns), narrow)


def _with(task: Task, edges: list[list[int]], columns: Columns) -> Task:
    """Return `task` with these edges; a column with fewer is filled up with infinity, which no number reaches."""
    numbers = np.full((columns.features, EDGES), np.inf)
    for f, own in enumerate(edges):
        numbers[f, : len(own)] = [number_at(key, columns.numbers) for key in own]
    return replace(task, parameters={"edges": numbers})


def _counting(columns: Columns, source: str) -> Task:
    """Return the task that counts, by column, the numbers in each gap: output `counts` (d, EDGES + 1)."""
    d, p = columns.features, Program(columns, missing=True)
    e = p.e
    edges = e.op("Reshape", p.parameter("edges", np.zeros((d, EDGES))), e.vector(-1))
    finite = p.finite(p.x)
    start = e.value(np.arange(d, dtype=np.int64)[np.newaxis] * EDGES)
    at = e.op("Expand", e.number(0), e.op("Shape", p.x))
    for bit in reversed(range(_BITS)):  # a binary search, every value at once: how many edges are not above it
        probe = e.op("Gather", edges, e.op("Add", e.op("Add", at, start), e.number(2**bit - 1)))
        passed = e.op("Cast", e.op("GreaterOrEqual", p.x, probe), to=TensorProto.INT64)
        at = e.op("Add", at, e.op("Mul", passed, e.number(2**bit)))
    gap = e.op("Add", at, e.value(np.arange(d, dtype=np.int64)[np.newaxis] * (EDGES + 1)))
    ones = e.op("Cast", finite, to=TensorProto.DOUBLE)
    none = e.op("Expand", e.real(0.0), e.vector(d * (EDGES + 1)))
    flat = (e.op("Reshape", gap, e.vector(-1)), e.op("Reshape", ones, e.vector(-1)))
    counts = e.op("ScatterElements", none, *flat, axis=0, reduction="add")
    p.output("counts", e.op("Reshape", counts, e.vector(d, EDGES + 1)), (d, EDGES + 1))
    return p.task("statistics", source)


def _key(number: float, dtype: str) -> int:
    bits = int(np.array(abs(number), dtype=dtype).view(_INTS[dtype]))
    return -bits if number < 0 else bits


def number_at(key: int, dtype: str) -> float:
    """Return the number of `dtype` at the place `key` among all of them; 0 is at 0.

    >>> number_at(1, "float32") > 0 == number_at(0, "float32")
    True
    """
    number = float(np.array(abs(key), dtype=_INTS[dtype]).view(dtype))
    return -number if key < 0 else number


def quantile_ranks(count: int, levels: Sequence[float], method: Method) -> list[tuple[int, int, float]]:
    """Return, for each level in 0..1, the two ranks and the weight of the second, as numpy's `method` has them."""
    found = []
    for level in levels:
        if method == "linear":
            place = level * (count - 1)
            low = min(math.floor(place), count - 1)
            found.append((low, min(low + 1, count - 1), place - low))
            continue
        place = level * count
        whole = place == math.floor(place)
        low = min(max(math.ceil(place) - 1, 0), count - 1)
        high = min(math.floor(place), count - 1) if whole and method == "averaged_inverted_cdf" else low
        found.append((low, high, 0.5))
    return found


def quantiles(
    columns: Columns,
    source: str,
    *,
    levels: Sequence[float],
    method: Method = "linear",
    then: Callable[[np.ndarray, np.ndarray], Next],
) -> Question:
    """Return a study of the quantiles at `levels` (0 to 1) of every column: `then` gets counts and (d, levels)."""

    def ranks(counts: np.ndarray) -> np.ndarray:
        return np.array([[r for a, b, _w in quantile_ranks(int(n), levels, method) for r in (a, b)] for n in counts])

    def mix(counts: np.ndarray, values: np.ndarray) -> Next:
        weights = np.array([[w for _a, _b, w in quantile_ranks(int(n), levels, method)] for n in counts])
        low, high = values[:, 0::2], values[:, 1::2]
        step = high - low
        # numpy's own way to interpolate, so that not even the last bit differs
        mixed = np.where(weights >= 0.5, high - step * (1 - weights), low + step * weights)
        return then(counts, mixed)

    return order_statistics(columns, source, ranks=ranks, then=mix)
