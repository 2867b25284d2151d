"""Dropout whose mask is a function of a counter: equal on every device and every onnxruntime, and repeatable in numpy.

An element of the layer number `layer` is kept when its key (`counter.keys`, of `draw` and `layer`) is not below
ratio * prime; what is kept grows by 1 / (1 - ratio). `draw`, an int64
input of the graph, is another number at every step; a negative one drops nothing, for a loss without noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.autodiff.builder import describe
from edgeml.autodiff.counter import PRIME, emit_keys, keys
from edgeml.autodiff.shapes import infer
from edgeml.errors import UnsupportedModel, UserError

DRAW = "draw"
_PREFIX = "ad.dropout"


def mask(shape: tuple[int, ...], *, ratio: float, draw: int, layer: int) -> np.ndarray:
    """Return which elements of a tensor of `shape` are kept: bool.

    >>> mask((6,), ratio=0.5, draw=1, layer=0).tolist() == mask((6,), ratio=0.5, draw=2, layer=0).tolist()
    False
    >>> bool(mask((2, 3), ratio=0.9, draw=-1, layer=0).all())
    True
    """
    key = keys(math.prod(shape), draw, layer)
    return ((key >= _threshold(ratio)) | (draw < 0)).reshape(shape)


def seed_dropout(model: ModelProto, ratios: Mapping[str, float]) -> bool:
    """Write every Dropout of `model` that trains as plain operators, and drop from the tensors that `ratios` names.

    Returns whether the graph now needs the input `draw`, which it then has. Raises UserError for a tensor that is not
    there or a ratio outside 0 to 1.
    """
    if not ratios and all(node.op_type != "Dropout" for node in model.graph.node):
        return False
    _insert(model, ratios)
    fixed = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    dtypes, nodes, layer = infer(model).dtypes, [], 0
    for node in model.graph.node:
        if node.op_type == "Dropout" and _trains(node, fixed):
            ratio = _ratio(node, fixed)
            written = _Written(model, f"{_PREFIX}{layer}/")
            written.dropout(node, ratio=ratio, layer=layer, of=dtypes.get(node.input[0], TensorProto.FLOAT))
            nodes += written.nodes
            layer += 1
        else:
            nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    if layer:
        if any(value.name == DRAW for value in model.graph.input):
            raise UnsupportedModel(f"the model calls an input {DRAW!r}, which dropout needs: rename it")
        model.graph.input.append(helper.make_tensor_value_info(DRAW, TensorProto.INT64, []))
    return bool(layer)


def _insert(model: ModelProto, ratios: Mapping[str, float]) -> None:
    """Put a Dropout that trains behind every tensor named: whoever read it reads what is left of it."""
    made = {name for node in model.graph.node for name in node.output} | {value.name for value in model.graph.input}
    for name, ratio in ratios.items():
        if name not in made:
            raise UserError(f"dropout names {name!r}, no tensor of the model: name the output of one of its operators")
        if not 0 <= ratio < 1:
            raise UserError(f"dropout of {name!r} with ratio {ratio}: choose a number from 0 up to, not including, 1")
    nodes: list[NodeProto] = []
    fresh = {name: f"{_PREFIX}.{name}" for name in ratios}
    waiting = [value.name for value in model.graph.input]
    for node in (None, *model.graph.node):
        if node is not None:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.input[:] = [fresh.get(name, name) for name in node.input]
            nodes.append(copy)
        for name in waiting if node is None else node.output:
            if name in fresh:
                for part, value in (("ratio", np.float32(ratios[name])), ("train", np.array(True))):
                    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), f"{fresh[name]}.{part}"))
                given = [name, f"{fresh[name]}.ratio", f"{fresh[name]}.train"]
                nodes.append(helper.make_node("Dropout", given, [fresh[name]]))
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _trains(node: NodeProto, fixed: Mapping[str, np.ndarray]) -> bool:
    training = node.input[2] if len(node.input) > 2 else ""
    if training and training not in fixed:
        raise UnsupportedModel(f"{describe(node)}: its training_mode must be a constant")
    return bool(training) and bool(fixed[training])


def _ratio(node: NodeProto, fixed: Mapping[str, np.ndarray]) -> float:
    name = node.input[1]
    if name and name not in fixed:
        raise UnsupportedModel(f"{describe(node)}: its ratio must be a constant")
    return float(fixed[name]) if name else 0.5


def _threshold(ratio: float) -> int:
    return round(ratio * PRIME)


class _Written:
    """The nodes that stand in for one Dropout."""

    def __init__(self, model: ModelProto, prefix: str) -> None:
        self.model, self.prefix = model, prefix
        self.nodes: list[NodeProto] = []
        self._constants: dict[Any, str] = {}

    def dropout(self, node: NodeProto, *, ratio: float, layer: int, of: int) -> None:
        """Write `node`: its answer and, if anyone reads it, its mask."""
        x, real = node.input[0], helper.tensor_dtype_to_np_dtype(of)
        keep = self.op("Or", self.kept(x, ratio=ratio, layer=layer), self.op("Less", DRAW, self.number(0)))
        grown = self.constant(np.array(1 / (1 - ratio), real))
        scale = self.op("Where", self.op("Less", DRAW, self.number(0)), self.constant(np.array(1, real)), grown)
        left = self.op("Where", keep, scale, self.constant(np.array(0, real)))
        self.nodes.append(helper.make_node("Mul", [x, left], [node.output[0]], node.name))
        if len(node.output) > 1 and node.output[1]:
            self.nodes.append(helper.make_node("Identity", [keep], [node.output[1]]))

    def kept(self, x: str, *, ratio: float, layer: int) -> str:
        """Return `mask` of the shape of `x`, for a `draw` that is not negative."""
        op = self.op
        key, _ = emit_keys(self, count=op("Size", x), seed=DRAW, turn=self.number(layer))
        return op("Reshape", op("GreaterOrEqual", key, self.number(_threshold(ratio))), op("Shape", x))

    def op(self, op_type: str, *inputs: str) -> str:
        name = f"{self.prefix}{op_type}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name]))
        return name

    def number(self, value: int) -> str:
        return self.constant(np.array(value, np.int64))

    def constant(self, value: np.ndarray) -> str:
        """Return a 0-d constant of the model."""
        key = (value.dtype.str, value.item())
        if key not in self._constants:
            self._constants[key] = f"{self.prefix}const.{len(self._constants)}"
            self.model.graph.initializer.append(numpy_helper.from_array(value, self._constants[key]))
        return self._constants[key]
