"""What one row says of one answer, as columns that are only ever summed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.errors import UnsupportedModel
from edgeml.tasks.model_program import ModelProgram
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, PROBABILITIES, SCORES

Judged = Literal["classification", "regression"]
VALUES: Mapping[Judged, tuple[str, ...]] = {
    "classification": ("accuracy", "log_loss", "brier"),
    "regression": ("squared_error", "absolute_error", "error", "target", "target.square"),
}
GAINS: Mapping[Judged, tuple[str, ...]] = {
    "classification": ("accuracy", "log_loss", "brier"),
    "regression": ("squared_error", "absolute_error"),
}
LEAST = float(np.finfo(np.float64).eps)  # no probability of the true class counts for less, as in scikit-learn
PROBABLE = {"Softmax", "Sigmoid", "Normalizer"}  # operators whose answer is a probability already


@dataclass(frozen=True)
class RowValues:
    """Float64 (n, values) in the order of VALUES, and of a classifier labels (n,) and probabilities (n, classes)."""

    values: str
    labels: str = ""
    shares: str = ""


def emit_values(p: ModelProgram, index: int, classes: int) -> RowValues:
    """Return what every row says of the answers of model number `index`, a regressor where there are no classes."""
    return _of_classes(p, index, classes) if classes else _of_numbers(p, index)


def classes_of(model: OnnxModel, task: Judged) -> int:
    """Return how many classes a classifier tells apart, 0 for a regressor; raise UnsupportedModel if it is unknown."""
    if task == "regression":
        return 0
    outputs = {spec.name: spec.shape for spec in graph.outputs(model)}
    name = next((name for name in (PROBABILITIES, SCORES) if name in outputs), next(iter(outputs)))
    width = outputs[name][-1] if len(outputs[name]) == 2 else 0
    width = 2 if width == 1 else max(width, len(model.classes))
    if width < 2:
        raise UnsupportedModel(f"output {name!r} of shape {outputs[name]} does not say how many classes there are")
    return width


def _of_numbers(p: ModelProgram, index: int) -> RowValues:
    e, answers = p.e, p.answers[index]
    given = answers.get(PREDICTION, next(iter(answers.values())))
    predicted, target = p.float64(e.op("Reshape", given, e.vector(-1, 1))), p.column(p.y)
    error = e.op("Sub", predicted, target)
    parts = (e.op("Mul", error, error), e.op("Abs", error), error, target, e.op("Mul", target, target))
    return RowValues(e.op("Concat", *parts, axis=1))


def _of_classes(p: ModelProgram, index: int, classes: int) -> RowValues:
    e, answers, one = p.e, p.answers[index], p.e.real(1.0)
    shares = _shares(p, index)
    labels = answers.get(LABEL) or e.op("ArgMax", shares, axis=1, keepdims=0)
    labels = e.op("Cast", e.op("Reshape", labels, e.vector(-1)), to=TensorProto.INT64)
    truth = p.one_hot(p.y, classes)
    right = p.float64(p.column(e.op("Equal", labels, p.y)))
    likely = e.op("ReduceSum", e.op("Mul", truth, shares), e.vector(1), keepdims=1)
    loss = e.op("Neg", e.op("Log", e.op("Min", e.op("Max", likely, e.real(LEAST)), one)))
    off = e.op("Sub", shares, truth)
    brier = e.op("ReduceSum", e.op("Mul", off, off), e.vector(1), keepdims=1)
    if classes == 2:  # the square of one class's share, as edgeml.metrics has it
        brier = e.op("Mul", brier, e.real(0.5))
    return RowValues(e.op("Concat", right, loss, brier, axis=1), labels, shares)


def _shares(p: ModelProgram, index: int) -> str:
    """Return float64 (n, classes) that sum to 1: probabilities, or the softmax of scores; one column z means [0, z]."""
    e, answers, model = p.e, p.answers[index], p.models[index]
    name = next((name for name in (PROBABILITIES, SCORES) if name in answers), next(iter(answers)))
    makers = {output: node.op_type for node in graph.load(model).graph.node for output in node.output}
    probable = name == PROBABILITIES or (name != SCORES and makers.get(name) in PROBABLE)
    given = p.float64(answers[name])
    width = {spec.name: spec.shape for spec in graph.outputs(model)}[name][-1]
    if width == 1:
        other = e.op("Sub", e.real(1.0), given) if probable else e.op("Mul", given, e.real(0.0))
        given = e.op("Concat", other, given, axis=1)
    if not probable:
        return e.op("Softmax", given, axis=1)
    total = e.op("ReduceSum", given, e.vector(1), keepdims=1)
    return e.op("Div", given, e.op("Max", total, e.real(LEAST)))
