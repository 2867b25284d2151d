"""What of a training step can be computed once for all rows, before the loop over batches.

Preprocessing in front of the first parameter gives every row the same answer in every batch. A
node may leave the loop when nothing in it depends on a parameter, the target or the learning rate,
and when its operator is known to treat rows one by one; what is not known stays inside.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from edgeml.autodiff.builder import attributes
from edgeml.autodiff.shapes import Shape, infer


@dataclass
class Split:
    """`before` runs once over all rows, `step` runs per batch and takes rows of the `crossing` tensors."""

    before: list[NodeProto] = field(default_factory=list)
    step: list[NodeProto] = field(default_factory=list)
    crossing: list[str] = field(default_factory=list)


@dataclass
class _Rows:
    """What is known while walking: tensors with the rows on axis 0, constants, shapes."""

    by_row: set[str]
    constants: dict[str, np.ndarray]
    fixed: set[str]  # constants and what is computed from them alone
    shapes: dict[str, Shape]

    def rank(self, name: str) -> int:
        return len(self.shapes.get(name, ()))


def split(model: ModelProto, *, row_inputs: Sequence[str], moving: Sequence[str]) -> Split:
    """Return the nodes of `model` as those to run once and those to run per batch.

    `row_inputs` are the graph inputs with rows on their first axis; `moving` are the inputs that
    change from batch to batch.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    known = _Rows(set(row_inputs), constants, set(constants), dict(infer(model).shapes))
    result, changing = Split(), set(moving)
    for node in model.graph.node:
        inputs = [name for name in node.input if name]
        if all(name in known.fixed for name in inputs):
            known.fixed.update(node.output)
            result.before.append(node)
        elif not changing.intersection(inputs) and _row_by_row(node, known):
            known.by_row.update(node.output)
            result.before.append(node)
        else:
            changing.update(node.output)
            result.step.append(node)
    used = dict.fromkeys(name for node in result.step for name in node.input)
    result.crossing = [name for name in used if name in known.by_row]
    return result


def _row_by_row(node: NodeProto, known: _Rows) -> bool:
    inputs = [name for name in node.input if name]
    if not all(name in known.by_row or name in known.fixed for name in inputs):
        return False
    if node.domain == "ai.onnx.ml":
        return node.op_type in _ML and known.rank(inputs[0]) >= 2
    return node.domain in ("", "ai.onnx") and node.op_type in ROWWISE and ROWWISE[node.op_type](node, known)


def _elementwise(node: NodeProto, known: _Rows) -> bool:
    """Constants may broadcast along the rows; two tensors of rows must have the same rank."""
    inputs = [name for name in node.input if name]
    ranks = {known.rank(name) for name in inputs if name in known.by_row}
    rank = max(ranks)
    if len(ranks) != 1 or not rank:
        return False
    constants = [known.shapes.get(name) for name in inputs if name not in known.by_row]
    return all(s is not None and (len(s) < rank or (len(s) == rank and s[0] == 1)) for s in constants)


def _other_axis(node: NodeProto, known: _Rows) -> bool:
    axis = attributes(node).get("axis", 0 if node.op_type == "Gather" else -1)
    data = node.input[:1] if node.op_type == "Gather" else node.input
    rows = [name in known.by_row for name in node.input]
    ranks = {known.rank(name) for name in data}
    expected = [True] * len(data) + [False] * (len(rows) - len(data))
    return rows == expected and len(ranks) == 1 and axis % max(*ranks, 1) != 0


def _dense(node: NodeProto, known: _Rows) -> bool:
    options = attributes(node)
    if options.get("transA", 0) or node.input[0] not in known.by_row or known.rank(node.input[0]) < 2:
        return False
    if any(name in known.by_row for name in node.input[1:]) or known.rank(node.input[1]) != 2:
        return False
    bias = known.shapes.get(node.input[2]) if len(node.input) > 2 else ()
    return bias is not None and (len(bias) < 2 or bias[0] == 1)


def _keeps_rows(node: NodeProto, known: _Rows) -> bool:
    """A Reshape to (-1 or 0, d1, d2...) that only regroups what is inside a row."""
    shape, target = known.shapes.get(node.input[0], ()), known.constants.get(node.input[1])
    inner = [size for size in shape[1:] if isinstance(size, int)]
    if target is None or len(inner) != len(shape) - 1 or not len(target) or target[0] not in (-1, 0):
        return False
    return bool(np.all(target[1:] > 0) and np.prod(inner) == np.prod(target[1:]))


def _axis_one(node: NodeProto, known: _Rows) -> bool:
    return bool(attributes(node).get("axis", 1) == 1)


_UNARY = (
    "Abs Cast Ceil Clip Elu Erf Exp Floor Identity IsInf IsNaN LeakyRelu Log Neg Not Reciprocal Relu Round Sigmoid "
    "Sign Softplus Sqrt Tanh"
)
_BINARY = "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Sum Where"
_ML = {
    *("ArrayFeatureExtractor", "Binarizer", "FeatureVectorizer", "Imputer", "LabelEncoder", "Normalizer"),
    *("OneHotEncoder", "Scaler", "TreeEnsembleClassifier", "TreeEnsembleRegressor"),
}
ROWWISE: dict[str, Callable[[NodeProto, _Rows], bool]] = {
    **dict.fromkeys((*_UNARY.split(), *_BINARY.split()), _elementwise),
    **dict.fromkeys(("Concat", "Gather", "Softmax", "LogSoftmax"), _other_axis),
    **dict.fromkeys(("Gemm", "MatMul"), _dense),
    "Flatten": _axis_one,
    "Reshape": _keeps_rows,
}
