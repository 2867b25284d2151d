"""Activation ranges of a float model over rows that stay where they are, so that its int8 variant fits the field.

    calibration_points(model) -> (graph, tensors) -calibration-> Study -> ActivationRanges -> quantize Options.field

The graph itself reduces its tensors to a least and a largest value per device. Extremes are no sums, so each device
counts itself into one of 256 bins of all float32 numbers, in the order of their bits; the outermost bin that holds a
device is divided again, and after four rounds it holds one number: the exact extreme, by sums alone. A fifth round
counts all values between the extremes, for the recipes that need a distribution.
"""

from __future__ import annotations

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
EDGES, USED, OUTERMOST, COUNTS = "edges", "devices.used", "outermost", "counts."
LEAST, MOST = 0, 1
_MAX = float(np.finfo(np.float32).max)
Next = Question | Answer


def calibration(model: OnnxModel, tensors: Sequence[str], *, histogram: bool = True) -> Inquiry:
    """Return the study of the ranges of float `tensors` of `model`; devices hold the model's inputs, no target.

    The result is `ActivationRanges`. A device whose rows make any tensor NaN or infinite is left out, and the notes
    count the others. Raises UserError when a tensor is none of the model's.
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


class _Reduced(ModelProgram):
    """The model with the least and the largest value of each tensor, float64 (tensors, 2), and whether all are good."""

    def __init__(self, wanted: _Wanted) -> None:
        super().__init__([wanted.model])
        e = self.e
        self.flat = [
            e.op("Reshape", e.op("Cast", self.tensor(name), to=TensorProto.FLOAT), e.vector(-1))
            for name in wanted.tensors
        ]
        pairs, good = [], []
        for flat in self.flat:
            pairs += [e.op("Unsqueeze", e.op(f"Reduce{end}", flat, keepdims=0), e.vector(0)) for end in ("Min", "Max")]
            # a sum is NaN or infinite when any value is; a maximum may drop NaN
            good.append(e.op("Unsqueeze", e.op("ReduceL1", flat, keepdims=0), e.vector(0)))
        total = e.op("ReduceL1", e.op("Concat", *good, axis=0), keepdims=0) if len(good) > 1 else good[0]
        fine = e.op("LessOrEqual", self.float64(total), e.real(_MAX))
        self.fine = e.op("Reshape", self.float64(fine), e.vector(1, 1))
        ends = self.float64(e.op("Concat", *pairs, axis=0))
        self.ends = e.op("Reshape", e.op("Where", fine, ends, e.real(0.0)), e.vector(1, -1))
        self.output(USED, e.op("Reshape", self.fine, e.vector(1)), (1,))


def _narrow(wanted: _Wanted, low: np.ndarray, high: np.ndarray) -> Question:
    """Ask in which part of each bracket of keys, low to high inclusive, a device's extreme lies."""
    step = -(-(high - low + 1) // PARTS)
    starts = np.minimum(low[..., np.newaxis] + step[..., np.newaxis] * np.arange(1, PARTS), high[..., np.newaxis] + 1)
    task = _extremes_task(wanted)
    edges = numbers(starts).reshape(-1, PARTS - 1)

    def then(sums: Sums) -> Next:
        _some_devices(sums)
        held = sums[OUTERMOST].reshape(*low.shape, PARTS) > 0.5
        part = np.stack([held[:, LEAST].argmax(axis=1), PARTS - 1 - held[:, MOST, ::-1].argmax(axis=1)], axis=1)
        first = low + step * part
        last = np.minimum(first + step - 1, high)
        return _narrow(wanted, first, last) if (last > first).any() else _found(wanted, numbers(first), sums)

    return Question(replace(task, parameters={EDGES: edges}), then)


def _extremes_task(wanted: _Wanted) -> Task:
    p = _Reduced(wanted)
    e, ends = p.e, 2 * len(wanted.tensors)
    edges = p.parameter(EDGES, np.zeros((ends, PARTS - 1)))
    bins = emit_bins(e, p.ends, edges, shape=(ends, PARTS - 1), closed="left")
    hot = e.op("Equal", e.op("Reshape", bins, e.vector(ends, 1)), e.value(np.arange(PARTS, dtype=np.int32)[np.newaxis]))
    p.output(OUTERMOST, e.op("Mul", p.float64(hot), p.fine), (ends, PARTS))
    return p.task("calibration")


def _found(wanted: _Wanted, ends: np.ndarray, sums: Sums) -> Next:
    """Return the ends, zero included, or the question of what lies between them."""
    low, high = np.minimum(ends[:, LEAST], 0.0), np.maximum(ends[:, MOST], 0.0)
    known = ActivationRanges(
        graph=wanted.model.digest,
        rows=int(sums[ROWS]),
        ends={name: (float(a), float(b)) for name, a, b in zip(wanted.tensors, low, high, strict=True)},
    )
    if not wanted.histogram:
        return Answer(known, _notes(sums))
    edges = {COUNTS + name: inner_edges(*known.ends[name]) for name in wanted.tensors}

    def then(sums: Sums) -> Next:
        _some_devices(sums)
        counts = {name: sums[COUNTS + name][0].round().astype(np.int64) for name in wanted.tensors}
        return Answer(replace(known, rows=int(sums[ROWS]), counts=counts), _notes(sums))

    return Question(_counts_task(wanted, edges), then)


def inner_edges(low: float, high: float) -> np.ndarray:
    """Return float64 (1, BINS - 1): the edges inside, as `numpy.histogram` puts them for float32 values."""
    return np.linspace(low, max(high, low + 1e-12), BINS + 1, dtype=np.float32)[np.newaxis, 1:-1].astype(np.float64)


def _counts_task(wanted: _Wanted, edges: dict[str, np.ndarray]) -> Task:
    p = _Reduced(wanted)
    e = p.e
    for name, flat in zip(wanted.tensors, p.flat, strict=True):
        column = e.op("Reshape", p.float64(flat), e.vector(-1, 1))
        inside = p.parameter(f"{EDGES}.{name}", edges[COUNTS + name])
        bins = emit_bins(e, column, inside, shape=(1, BINS - 1), closed="left")
        counts = emit_counts(e, bins, features=1, size=BINS + 1)  # the last one of NaN
        kept = e.op("Slice", counts, e.vector(0), e.vector(BINS), e.vector(1))
        p.output(COUNTS + name, e.op("Mul", kept, p.fine), (1, BINS))
    return p.task("calibration")


def _some_devices(sums: Sums) -> None:
    if sums[USED].sum() < 1:
        raise DataError("on every device some row makes a tensor NaN or infinite: impute missing values in the model")


def _notes(sums: Sums) -> tuple[str, ...]:
    return (f"ranges of {int(sums[USED].sum())} devices whose every tensor is finite",)
