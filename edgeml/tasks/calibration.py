"""Activation ranges of a float model over rows that stay where they are, so that its int8 variant fits the field.

    calibration_points(model) -> (graph, tensors) -calibration-> Study -> ActivationRanges -> quantize Options.field

The graph reduces each tensor to the least and the largest value of every row. Extremes are no sums, so rows are counted
into 256 parts of all float32 numbers, in the order of their bits; the outermost part that holds a row is divided again,
and after four rounds it holds one number: the exact extreme, by sums alone. A fifth round counts all values between the
extremes, for the recipes that need a distribution.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import TensorProto

from edgeml import graph
from edgeml.artifacts import ActivationRanges, OnnxModel, Task
from edgeml.errors import DataError, UserError
from edgeml.tasks.binning import emit_bins, emit_counts
from edgeml.tasks.model_program import ModelProgram
from edgeml.tasks.program import ROWS
from edgeml.tasks.study import Answer, Inquiry, Question, Sums

PARTS = 256  # of a bracket in one round; float32 has 2^32 numbers, so four rounds find one
BINS = 2048  # between the ends, as edgeml.quantize counts
EDGES, OUTERMOST, COUNTS = "edges.", "outermost.", "counts."
LEAST, MOST = 0, 1
AXES_ARE_INPUTS = 18  # the opset from which ReduceMin and ReduceMax take axes as an input
_MAX = float(np.finfo(np.float32).max)
Next = Question | Answer


def calibration(model: OnnxModel, tensors: Sequence[str], *, histogram: bool = True) -> Inquiry:
    """Return the study of the ranges of float `tensors` of `model`; devices hold the model's inputs, no target.

    The result is `ActivationRanges`. A row that makes a tensor NaN or infinite is left out of that tensor's range, and
    the notes count them. Raises UserError when a tensor is none of the model's.
    """
    proto = graph.load(model)
    known = {value.name for value in proto.graph.input} | {name for node in proto.graph.node for name in node.output}
    if not tensors or (missing := sorted(set(tensors) - known)):
        raise UserError(f"no tensors to calibrate, or none called {missing[:3] if tensors else ''} in the model")
    wanted = _Wanted(model, tuple(tensors), histogram)
    limit = int(keys(np.array([_MAX]))[0])
    low = np.full((len(tensors), 2), -limit, np.int64)
    return Inquiry("calibration", _narrow(wanted, low, np.full_like(low, limit)))


def keys(values: np.ndarray) -> np.ndarray:
    """Return int64 that are in the order of float32 `values`, -0 and 0 being one.

    >>> keys(np.array([-1.0, 0.0, 1e-45, 2.0])).tolist()
    [-1065353216, 0, 1, 1073741824]
    """
    bits = np.abs(values).astype(np.float32).view(np.int32).astype(np.int64)
    return np.asarray(np.where(np.signbit(values), -bits, bits))


def numbers(of: np.ndarray) -> np.ndarray:
    """Return the float32 values, as float64, whose keys are `of`."""
    bits = np.abs(of).astype(np.int32).view(np.float32).astype(np.float64)
    return np.asarray(np.where(of < 0, -bits, bits))


@dataclass(frozen=True)
class _Wanted:
    model: OnnxModel
    tensors: tuple[str, ...]
    histogram: bool


class _Rows(ModelProgram):
    """The model with each tensor as (m, width): a row of the device's, or a part of one, each."""

    def __init__(self, wanted: _Wanted) -> None:
        super().__init__([wanted.model])
        e, widths = self.e, widths_of(wanted.model)
        self.none = e.value(np.array(np.nan))
        self.parts: dict[str, str] = {}
        for name in wanted.tensors:
            narrow = e.op("Cast", self.tensor(name), to=TensorProto.FLOAT)
            self.parts[name] = e.op("Reshape", narrow, e.vector(-1, widths.get(name, 1)))

    def whole(self, part: str) -> str:
        """Return bool (m, 1): whether every number is finite. A sum is not when one is; a maximum may drop NaN."""
        e = self.e
        total = self.reduce("ReduceSum", e.op("Abs", part))
        return e.op("LessOrEqual", self.float64(total), e.real(_MAX))

    def reduce(self, kind: str, part: str) -> str:
        """Return (m, 1) of (m, width)."""
        if kind == "ReduceSum" or self.opset >= AXES_ARE_INPUTS:
            return self.e.op(kind, part, self.e.vector(1), keepdims=1)
        return self.e.op(kind, part, axes=[1], keepdims=1)

    def between(self, name: str, numbers: str, shape: tuple[int, int]) -> str:
        """Return how many float64 (m, columns) are in each of `bins` (columns, bins), and behind these how many NaN."""
        columns, bins = shape
        edges = self.parameter(EDGES + name, np.zeros((columns, bins - 1)))
        place = emit_bins(self.e, numbers, edges, shape=(columns, bins - 1), closed="left")
        return emit_counts(self.e, place, features=columns, size=bins + 1)


def widths_of(model: OnnxModel) -> dict[str, int]:
    """Return how many numbers of each tensor follow each other within one row, as far as its shape says."""
    proto = graph.load(model)
    graph.annotate(proto)
    found = {}
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        sizes = [dim.dim_value for dim in value.type.tensor_type.shape.dim]  # 0 where it is open
        if len(sizes) > 1:
            found[value.name] = math.prod(sizes[1:]) if not sizes[0] and all(sizes[1:]) else max(sizes[-1], 1)
    return found


def _narrow(wanted: _Wanted, low: np.ndarray, high: np.ndarray) -> Question:
    """Ask in which part of each bracket of keys, low to high inclusive, rows have their extremes."""
    step = -(-(high - low + 1) // PARTS)
    starts = np.minimum(low[..., np.newaxis] + step[..., np.newaxis] * np.arange(1, PARTS), high[..., np.newaxis] + 1)
    edges = {EDGES + OUTERMOST + name: numbers(one) for name, one in zip(wanted.tensors, starts, strict=True)}

    def then(sums: Sums) -> Next:
        counts = np.stack([sums[OUTERMOST + name] for name in wanted.tensors])
        held = counts[..., :PARTS] > 0.5
        if empty := [name for name, one in zip(wanted.tensors, held, strict=True) if not one.any()]:
            raise DataError(f"no row makes {empty[0]!r} finite on any device: impute missing values inside the model")
        part = np.stack([held[:, LEAST].argmax(axis=1), PARTS - 1 - held[:, MOST, ::-1].argmax(axis=1)], axis=1)
        first = low + step * part
        last = np.minimum(first + step - 1, high)
        if (last > first).any():
            return _narrow(wanted, first, last)
        return _found(wanted, numbers(first), rows=int(sums[ROWS]), broken=counts[:, LEAST, PARTS])

    return Question(replace(_extremes_task(wanted), parameters=edges), then)


@functools.lru_cache(maxsize=8)
def _extremes_task(wanted: _Wanted) -> Task:
    p = _Rows(wanted)
    e = p.e
    for name, part in p.parts.items():
        ends = e.op("Concat", p.reduce("ReduceMin", part), p.reduce("ReduceMax", part), axis=1)
        good = e.op("Where", p.whole(part), p.float64(ends), p.none)
        p.output(OUTERMOST + name, p.between(OUTERMOST + name, good, (2, PARTS)), (2, PARTS + 1))
    return p.task("calibration")


def _found(wanted: _Wanted, ends: np.ndarray, *, rows: int, broken: np.ndarray) -> Next:
    """Return the ends, zero included, or the question of what lies between them."""
    low, high = np.minimum(ends[:, LEAST], 0.0), np.maximum(ends[:, MOST], 0.0)
    pairs = {name: (float(a), float(b)) for name, a, b in zip(wanted.tensors, low, high, strict=True)}
    known = ActivationRanges(graph=wanted.model.digest, rows=rows, ends=pairs)
    left_out = {name: int(count) for name, count in zip(wanted.tensors, broken, strict=True) if count}
    notes = tuple(
        f"{n} rows make {name!r} NaN or infinite and are left out of its range" for name, n in left_out.items()
    )
    if not wanted.histogram:
        return Answer(known, notes)

    def then(sums: Sums) -> Next:
        counts = {name: sums[COUNTS + name][0, :BINS].round().astype(np.int64) for name in wanted.tensors}
        return Answer(replace(known, rows=int(sums[ROWS]), counts=counts), notes)

    edges = {EDGES + COUNTS + name: inner_edges(*known.ends[name]) for name in wanted.tensors}
    return Question(replace(_counts_task(wanted), parameters=edges), then)


@functools.lru_cache(maxsize=8)
def _counts_task(wanted: _Wanted) -> Task:
    p = _Rows(wanted)
    e = p.e
    for name, part in p.parts.items():
        good = e.op("Where", p.whole(part), p.float64(part), p.none)
        counts = p.between(COUNTS + name, e.op("Reshape", good, e.vector(-1, 1)), (1, BINS))
        p.output(COUNTS + name, counts, (1, BINS + 1))
    return p.task("calibration")


def inner_edges(low: float, high: float) -> np.ndarray:
    """Return float64 (1, BINS - 1): the edges inside, as `numpy.histogram` puts them for float32 values."""
    return np.linspace(low, max(high, low + 1e-12), BINS + 1, dtype=np.float32)[np.newaxis, 1:-1].astype(np.float64)
