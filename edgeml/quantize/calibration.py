"""Activation ranges from calibration rows, in memory that does not grow with the rows.

    float ModelProto, Rows -ranges-> {tensor: Range}

The graph itself reduces every tensor to its least and largest value, so that only scalars leave the session.
The methods that need a distribution (percentile, entropy, mse) take a second pass over a sample of the rows and
count each tensor into bins of fixed edges, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper

from edgeml import graph
from edgeml.artifacts import Rows
from edgeml.errors import DataError
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import Settings

Method = Literal["minmax", "percentile", "entropy", "mse"]
MAX_ROWS = 2048  # min and max hardly move beyond, and every batch costs time
HISTOGRAM_ROWS = 256  # a distribution needs fewer rows than its ends do
BATCH_BYTES = 8 << 20  # activations of one batch
MAX_BATCH = 64
BINS = 2048
SAMPLE = 1 << 16  # values of one tensor of one batch that are counted
PERCENTILE = 99.99
LEVELS = 256
NO_BATCH = "the calibration rows do not fill one batch of the model: pass more rows of the training set"
MAX_NAMED = 8  # row numbers in a message


class Range(NamedTuple):
    """The interval of a tensor that 8 bits have to cover; it always holds 0."""

    low: float
    high: float


def ranges(
    proto: ModelProto,
    rows: Rows,
    *,
    tensors: Sequence[str],
    method: Method = "minmax",
    max_rows: int | None = MAX_ROWS,
    threads: int = 1,
) -> dict[str, Range]:
    """Return the range of each float tensor of `tensors` over `rows`, or over `max_rows` of them, evenly spaced.

    Raises DataError, with the row numbers, when rows make a tensor NaN or infinite.
    """
    if not tensors:
        return {}
    ends = _ends(proto, rows, tensors=tensors, how=(max_rows, threads))
    if method == "minmax":
        return ends
    counts = _counts(proto, rows, ends=ends)
    return {name: CUTS[method](counts[name], ends[name]) for name in tensors}


def channel_maxima(proto: ModelProto, rows: Rows, tensors: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return max |x| of every channel of each tensor; `tensors` gives the axis of the channels."""
    parts, _ = _per_channel(proto, rows, ("ReduceMax", tensors))
    return {name: np.max(found, axis=0) for name, found in parts.items()}


def channel_means(proto: ModelProto, rows: Rows, tensors: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Return the mean of every channel of each tensor; `tensors` gives the axis of the channels."""
    parts, sizes = _per_channel(proto, rows, ("ReduceMean", tensors))
    return {name: np.average(found, axis=0, weights=sizes) for name, found in parts.items()}


def batches(proto: ModelProto, rows: Rows, count: int | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Yield feeds of a bounded size, of exactly the graph's own where its first axis is fixed.

    Of more than `count` rows as many are taken, evenly spaced; a batch is copied when its turn comes.
    """
    index = _spread(rows, count)
    every = len(index) == len(rows)
    specs = graph.inputs(proto.SerializeToString())
    fixed = {spec.shape[0] for spec in specs if spec.shape and spec.shape[0] > 0}
    size = min(fixed, default=0) or _batch_rows(proto)
    for start in range(0, len(index) - (size - 1 if fixed else 0), size):
        taken: slice | np.ndarray = slice(start, start + size) if every else index[start : start + size]
        yield dict(rows.take(taken).inputs)


def _batch_rows(proto: ModelProto) -> int:
    tensors = graph.infer(proto)
    weights = {tensor.name for tensor in proto.graph.initializer}
    row = sum(tensor.nbytes for name, tensor in tensors.items() if name not in weights)
    return int(np.clip(BATCH_BYTES // max(row, 1), 1, MAX_BATCH))


def _spread(rows: Rows, count: int | None) -> np.ndarray:
    """Return the indices of at most `count` rows, evenly spaced."""
    if count is None or len(rows) <= count:
        return np.arange(len(rows))
    return np.unique(np.linspace(0, len(rows) - 1, count).astype(int))


def _ends(proto: ModelProto, rows: Rows, *, tensors: Sequence[str], how: tuple[int | None, int]) -> dict[str, Range]:
    max_rows, threads = how
    session = Session(_reduced(proto, tensors).SerializeToString(), Settings(threads=threads))
    low, high = np.zeros(len(tensors)), np.zeros(len(tensors))
    start = 0
    for feeds in batches(proto, rows, max_rows):
        answers = session.run(feeds)
        least, most, total = (np.array([answers[f"{kind}.{n}"] for n in tensors]) for kind in ("min", "max", "sum"))
        if not np.isfinite(total).all():
            index = int(np.flatnonzero(~np.isfinite(total))[0])
            raise DataError(_not_finite(session, feeds, numbers=_spread(rows, max_rows)[start:], tensor=tensors[index]))
        low, high = np.minimum(low, least), np.maximum(high, most)
        start += len(next(iter(feeds.values())))
    if not start:
        raise DataError(NO_BATCH)
    return {name: Range(float(a), float(b)) for name, a, b in zip(tensors, low, high, strict=True)}


def _reduced(proto: ModelProto, tensors: Sequence[str]) -> ModelProto:
    """Return the graph with scalars for outputs: the least, the largest and the sum of every tensor."""
    found = ModelProto()
    found.CopyFrom(proto)
    del found.graph.output[:]
    for name in tensors:
        # a sum is NaN or infinite when any value is; a maximum may drop NaN
        for kind, operator in (("min", "ReduceMin"), ("max", "ReduceMax"), ("sum", "ReduceL1")):
            out = f"{kind}.{name}"
            found.graph.node.append(helper.make_node(operator, [name], [out], keepdims=0))
            found.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, []))
    return found


def _not_finite(session: Session, feeds: Mapping[str, np.ndarray], *, numbers: np.ndarray, tensor: str) -> str:
    """Return the sentence that names the rows of one batch whose values are not finite."""
    size = len(next(iter(feeds.values())))
    named = [int(number) for number in numbers[:size]]
    if size > 1 and all(spec.shape and spec.shape[0] < 0 for spec in session.inputs):
        single = ({name: array[i : i + 1] for name, array in feeds.items()} for i in range(size))
        found = [not np.isfinite(session.run(row)[f"sum.{tensor}"]) for row in single]
        named = [number for number, bad in zip(named, found, strict=True) if bad]
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return (
        f"calibration rows {', '.join(map(str, named[:MAX_NAMED]))}{more} make {tensor!r} NaN or infinite: "
        f"drop or repair these rows, or impute missing values inside the model"
    )


def _per_channel(
    proto: ModelProto, rows: Rows, what: tuple[str, Mapping[str, int]]
) -> tuple[dict[str, list[np.ndarray]], list[int]]:
    """Return what the reduction gives for each batch of some rows, (channels,) by tensor, and the batch sizes."""
    operator, tensors = what
    found, shapes = ModelProto(), graph.infer(proto)
    found.CopyFrom(proto)
    del found.graph.output[:]
    for name, axis in tensors.items():
        axes = [i for i in range(len(shapes[name].shape)) if i != axis % len(shapes[name].shape)]
        source, out = name, f"channel.{name}"
        if operator == "ReduceMax":
            source = f"abs.{name}"
            found.graph.node.append(helper.make_node("Abs", [name], [source]))
        # ReduceMax takes its axes as an attribute before opset 18, and ReduceSum as an input from 13 on
        found.graph.node.append(_reduction(operator, (source, out), axes=axes, opset=_opset(proto)))
        if _opset(proto) >= AXES_ARE_INPUTS:
            found.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axes, np.int64), f"{out}.axes"))
        found.graph.output.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [None]))
    session = Session(found.SerializeToString())
    parts: dict[str, list[np.ndarray]] = {name: [] for name in tensors}
    sizes = []
    for feeds in batches(proto, rows, HISTOGRAM_ROWS):
        answers = session.run(feeds)
        sizes.append(len(next(iter(feeds.values()))))
        for name in tensors:
            parts[name].append(answers[f"channel.{name}"].astype(np.float64))
    if not sizes:
        raise DataError(NO_BATCH)
    return parts, sizes


AXES_ARE_INPUTS = 18  # the opset from which ReduceMax and ReduceMean take their axes as an input


def _opset(proto: ModelProto) -> int:
    return next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def _reduction(operator: str, ends: tuple[str, str], *, axes: Sequence[int], opset: int) -> onnx.NodeProto:
    source, out = ends
    if opset >= AXES_ARE_INPUTS:
        return helper.make_node(operator, [source, f"{out}.axes"], [out], keepdims=0)
    return helper.make_node(operator, [source], [out], keepdims=0, axes=list(axes))


def _counts(proto: ModelProto, rows: Rows, *, ends: Mapping[str, Range]) -> dict[str, np.ndarray]:
    """Return a histogram per tensor, `BINS` bins between its ends."""
    found = ModelProto()
    found.CopyFrom(proto)
    del found.graph.output[:]
    produced = {name for node in proto.graph.node for name in node.output}
    inner = [name for name in ends if name in produced]
    for name in inner:
        found.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = Session(found.SerializeToString()) if inner else None
    counts = {name: np.zeros(BINS, np.int64) for name in ends}
    for feeds in batches(proto, rows, HISTOGRAM_ROWS):
        answers = {**feeds, **(session.run(feeds) if session else {})}
        for name, (low, high) in ends.items():
            values = answers[name].ravel()
            values = values[:: max(1, len(values) // SAMPLE) | 1]  # an odd step visits every channel
            counts[name] += np.histogram(values, BINS, (low, max(high, low + 1e-12)))[0]
    return counts


def _percentile(counts: np.ndarray, ends: Range) -> Range:
    """Return the range that leaves out `PERCENTILE` of the values on neither side."""
    edges, share = np.linspace(*ends, BINS + 1), np.cumsum(counts) / max(counts.sum(), 1)
    outside = (1 - PERCENTILE / 100) / 2
    first, last = int(np.searchsorted(share, outside)), int(np.searchsorted(share, 1 - outside))
    low, high = edges[first], edges[min(last + 1, BINS)]
    return Range(min(float(low), 0.0), max(float(high), 0.0))


def _by_loss(loss: Callable[[np.ndarray, np.ndarray, Range], float]) -> Callable[[np.ndarray, Range], Range]:
    """Return the search that shrinks each end of the range in turn while `loss` falls."""

    def cut(counts: np.ndarray, ends: Range) -> Range:
        middles = np.linspace(*ends, 2 * BINS + 1)[1::2]
        counts = _without_spikes(counts, middles)
        candidates = [Range(ends.low, ends.high * share) for share in np.linspace(1.0, 0.2, 41)]
        best = min(candidates, key=lambda c: loss(middles, counts, c))
        candidates = [Range(best.low * share, best.high) for share in np.linspace(1.0, 0.2, 41)]
        return min(candidates, key=lambda c: loss(middles, counts, c))

    return cut


def _without_spikes(counts: np.ndarray, middles: np.ndarray) -> np.ndarray:
    """Return the histogram without what Relu and Clip pile up at zero and at the ends: these round exactly."""
    smooth = counts.copy()
    zero = int(np.argmin(np.abs(middles)))
    for bin_, beside in ((zero, min(zero + 1, BINS - 1)), (0, 1), (BINS - 1, BINS - 2)):
        smooth[bin_] = min(counts[bin_], counts[beside])
    return smooth


def _squared_error(middles: np.ndarray, counts: np.ndarray, cut: Range) -> float:
    """The mean squared error of rounding to 256 levels of `cut`, on a histogram."""
    scale = max((cut.high - cut.low) / (LEVELS - 1), 1e-30)
    rounded = np.clip(np.round((middles - cut.low) / scale) * scale + cut.low, cut.low, cut.high)
    return float(np.sum(counts * (middles - rounded) ** 2))


def _divergence(middles: np.ndarray, counts: np.ndarray, cut: Range) -> float:
    """The Kullback-Leibler divergence between a clipped histogram and the same at 256 levels.

    As in Migacz, 8-bit inference with TensorRT, 2017: values beyond the cut count into its outermost bins.
    """
    inside = np.clip(middles, cut.low, cut.high)
    bins = np.clip(((inside - cut.low) / max(cut.high - cut.low, 1e-30) * LEVELS).astype(int), 0, LEVELS - 1)
    kept = (middles >= cut.low) & (middles <= cut.high)
    clipped = np.where(kept, counts, 0).astype(np.float64)
    where = np.flatnonzero(kept)
    if not len(where):
        return float("inf")
    clipped[where[0]] += counts[: where[0]].sum()
    clipped[where[-1]] += counts[where[-1] + 1 :].sum()
    filled = kept & (counts > 0)
    totals = np.bincount(bins, np.where(filled, counts, 0), LEVELS)
    sizes = np.bincount(bins, filled, LEVELS)
    levels = np.where(filled, totals[bins] / np.maximum(sizes[bins], 1), 0)
    p, q = clipped / max(clipped.sum(), 1), levels / max(levels.sum(), 1)
    both = (p > 0) & (q > 0)
    return float(np.sum(p[both] * np.log(p[both] / q[both])) + p[(p > 0) & (q == 0)].sum() * 10)


CUTS: dict[str, Callable[[np.ndarray, Range], Range]] = {
    "percentile": _percentile,
    "entropy": _by_loss(_divergence),
    "mse": _by_loss(_squared_error),
}
