"""Agreed edges and the bins between them: in the graph, by numpy, and how edges of equal counts are found.

    x (n, features), edges (features, 2^p - 1), padded with inf -> bins (n, features), 0 to 2^p - 1; NaN is bin 2^p

Edges of equal counts come from a few sums over devices: counts between edges that suit any float32 number, then
counts between edges that suit these rows. None says more of a row than the bin it is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from onnx import TensorProto, numpy_helper

from edgeml.tasks.emitter import Emitter

Closed = Literal["right", "left"]  # the end of a bin that belongs to it
RESOLUTION, SMALL = 1e-6, 1e-30  # numbers that are so close, relatively, are one
STEPS = 8  # universal edges per power of two, from 2^-20 to 2^30; one per 16 beyond
FINE, COARSE = range(-20, 30), (*range(-126, -20, 4), *range(30, 128, 4))


def emit_bins(e: Emitter, x: str, edges: str, *, shape: tuple[int, int], closed: Closed = "right") -> str:
    """Return int32 (n, features): how many of its feature's edges each number is above (or at, with "left").

    `x` and `edges` are float64, `shape` is that of `edges`: (features, 2^p - 1), each row sorted; NaN is 2^p.
    """
    features, count = shape
    offsets = e.value((np.arange(features, dtype=np.int32) * count - 1)[np.newaxis])
    flat = e.op("Reshape", edges, e.vector(-1))
    missing = e.op("IsNaN", x)
    start = e.op("Cast", e.op("Mul", e.op("Cast", missing, to=TensorProto.INT32), _int(e, 0)), to=TensorProto.INT32)
    position, step = start, (count + 1) // 2
    while step:  # binary search: `position` edges are known to be below
        probe = e.op("Gather", flat, e.op("Add", position, e.op("Add", offsets, _int(e, step))))
        above = e.op("Greater", x, probe) if closed == "right" else e.op("GreaterOrEqual", x, probe)
        moved = e.op("Mul", e.op("Cast", above, to=TensorProto.INT32), _int(e, step))
        position, step = e.op("Add", position, moved), step // 2
    return e.op("Where", missing, _int(e, count + 1), position)


def emit_counts(e: Emitter, bins: str, *, features: int, size: int) -> str:
    """Return float64 (features, size): how many rows are in each bin of each feature; `bins` is int32 (n, features)."""
    offsets = e.value((np.arange(features, dtype=np.int32) * size)[np.newaxis])
    index = e.op("Reshape", e.op("Add", bins, offsets), e.vector(-1))
    ones = e.op("ConstantOfShape", e.op("Shape", index), value=_one())
    zeros = e.value(np.zeros(features * size))
    counts = e.op("ScatterElements", zeros, index, ones, axis=0, reduction="add")
    return e.op("Reshape", counts, e.vector(features, size))


def bins_of(x: np.ndarray, edges: np.ndarray, closed: Closed = "right") -> np.ndarray:
    """Return by numpy what `emit_bins` gives: int64 (n, features)."""
    side: Literal["left", "right"] = "left" if closed == "right" else "right"
    found = [np.searchsorted(edges[j], x[:, j], side=side) for j in range(len(edges))]
    return np.where(np.isnan(x), edges.shape[1] + 1, np.stack(found, axis=1))


def padded(edges: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sorted edges of every feature as one float64 array, each row filled up with inf to 2^p - 1.

    >>> padded([np.array([1.0, 2.0]), np.array([5.0])]).tolist()
    [[1.0, 2.0, inf], [5.0, inf, inf]]
    """
    longest = max((len(one) for one in edges), default=1)
    size = 1
    while size < longest:
        size = 2 * size + 1
    rows = [np.concatenate([np.asarray(one, np.float64), np.full(size - len(one), np.inf)]) for one in edges]
    return np.stack(rows)


def universal_edges(features: int) -> np.ndarray:
    """Return float64 (features, 1023) edges between which float32 numbers of any size fall apart."""
    positive = [2.0**power * (1 + step / STEPS) for power in FINE for step in range(STEPS)]
    positive += [2.0**power for power in COARSE]
    half = np.sort(np.array(positive))
    return padded([np.concatenate([-half[::-1], [0.0], half])] * features)


def refined(edges: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return as many edges as before, closer together where the rows are.

    `edges` (features, m), `counts` (features, m + 1 or more) of the bins between them.
    """
    return padded([_refined(one, n[: len(one) + 1], room=edges.shape[1]) for one, n in zip(edges, counts, strict=True)])


def _refined(edges: np.ndarray, counts: np.ndarray, *, room: int) -> np.ndarray:
    low, high, counts = _occupied(edges, counts)
    ends = np.unique(np.concatenate([low, high]))
    ends = ends[np.isfinite(ends)]
    finite = np.isfinite(low) & np.isfinite(high)
    spare = room - len(ends)
    if spare <= 0 or not finite.any():
        return np.asarray(ends[:room])
    share = np.floor(spare * np.where(finite, counts, 0) / max(counts[finite].sum(), 1)).astype(int)
    inner = [np.linspace(a, b, n + 2)[1:-1] for a, b, n in zip(low, high, share, strict=True) if n]
    return np.unique(np.concatenate([ends, *inner]))


def _occupied(edges: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the lower and upper edges of the bins that hold rows, and their counts."""
    every = np.concatenate([[-np.inf], edges, [np.inf]])
    held = counts > 0
    return every[:-1][held], every[1:][held], counts[held]


def too_wide(edges: np.ndarray, counts: np.ndarray, *, bins: int) -> bool:
    """Return whether some bin holds more than twice its share of the rows, and could be divided."""
    for one, n in zip(edges, counts, strict=True):
        low, high, held = _occupied(one, n[: len(one) + 1])
        size = np.maximum(np.maximum(np.abs(low), np.abs(high)), SMALL)  # zero has no relative width
        if ((held > 2 * held.sum() / bins) & np.isfinite(size) & (high - low > RESOLUTION * size)).any():
            return True
    return False


def equal_counts(edges: np.ndarray, counts: np.ndarray, *, bins: int) -> list[np.ndarray]:
    """Return at most `bins` - 1 edges for every feature, with about as many rows between each two.

    Where at most `bins` bins hold rows, as with integers and codes, each keeps its own: the edges lie in the middle.
    """
    found = []
    for one, n in zip(edges, counts, strict=True):
        low, high, held = _occupied(one, n[: len(one) + 1])
        if len(held) <= bins:
            between = (high[:-1] + low[1:]) / 2
        else:
            below = np.cumsum(held)
            wanted = np.arange(1, bins) * below[-1] / bins
            between = high[:-1][np.unique(np.minimum(np.searchsorted(below, wanted), len(held) - 2))]
        found.append(float32_down(between[np.isfinite(between)]))
    return found


def float32_down(values: np.ndarray) -> np.ndarray:
    """Return the largest float32 not above each value, as float64, each once: x > value says the same of any float32 x.

    >>> float32_down(np.array([0.1, 0.5])).tolist()
    [0.09999999403953552, 0.5]
    """
    narrow = np.asarray(values, np.float64).astype(np.float32)
    down = np.where(narrow > values, np.nextafter(narrow, np.float32(-np.inf)), narrow)
    return np.unique(down.astype(np.float64))


def _int(e: Emitter, value: int) -> str:
    return e.value(np.array(value, dtype=np.int32))


def _one() -> object:
    """Return the value of ConstantOfShape for float64 ones."""
    return numpy_helper.from_array(np.ones(1))
