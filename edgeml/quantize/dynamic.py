"""Dynamic int8: signed 8-bit weights, activations rounded anew at every call, no calibration. Never on Conv.

MatMul and Gemm become DynamicQuantizeLinear and MatMulInteger, which onnxruntime runs as one operator; an LSTM becomes
DynamicQuantizeLSTM. There is no 8-bit GRU in onnxruntime. A dynamic Conv is 2 to 20 times slower than a float one.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.errors import UnsupportedModel
from edgeml.graph.proto import attribute, opset_imports
from edgeml.quantize.prepare import finished, prepared, require
from edgeml.quantize.qdq import weight_scales
from edgeml.quantize.recipe import Options

NAME = "int8-dynamic"
MIN_WEIGHTS = 2048  # of one operator; below, rounding its input costs more than the products save
MS = "com.microsoft"


def per_channel(model: OnnxModel, rows: Rows, options: Options) -> Variant:
    """Return `model` with its large MatMul, Gemm and LSTM in dynamic int8; `rows` are not needed."""
    return _dynamic(model, NAME, one_scale=False)


def per_tensor(model: OnnxModel, rows: Rows, options: Options) -> Variant:
    """Return the same with one scale per weight, which runs faster and is less exact."""
    return _dynamic(model, f"{NAME}-tensor", one_scale=True)


def _dynamic(model: OnnxModel, name: str, *, one_scale: bool) -> Variant:
    require(model, ("MatMul", "Gemm", "LSTM", "GRU"))
    proto = prepared(model)
    writer = _Writer(proto, one_scale=one_scale)
    for node in proto.graph.node:
        writer.node(node)
    if not writer.changed:
        kinds = Counter(node.op_type for node in proto.graph.node if node.op_type in ("Gemm", "MatMul", "LSTM", "GRU"))
        listed = ", ".join(f"{count} {name}" for name, count in kinds.items())
        gru = "; onnxruntime has no 8-bit GRU" if kinds["GRU"] else ""
        raise UnsupportedModel(f"none of {listed} has constant weights, {MIN_WEIGHTS:,} or more, that gain{gru}")
    return finished(writer.proto(), model, name)


class _Writer:
    def __init__(self, proto: ModelProto, *, one_scale: bool) -> None:
        self._proto, self._one_scale = ModelProto(), one_scale
        self._proto.CopyFrom(proto)
        self._weights = {t.name: t for t in proto.graph.initializer if t.data_type == TensorProto.FLOAT}
        self._nodes: list[NodeProto] = []
        self._rounded: dict[str, list[str]] = {}
        self.changed = 0

    def proto(self) -> ModelProto:
        del self._proto.graph.node[:]
        self._proto.graph.node.extend(self._nodes)
        if MS not in opset_imports(self._proto):
            self._proto.opset_import.append(helper.make_opsetid(MS, 1))
        return self._proto

    def node(self, node: NodeProto) -> None:
        """Add `node`, or what it becomes."""
        made = self._lstm(node) if node.op_type == "LSTM" else self._product(node)
        self.changed += made is not None
        self._nodes += [node] if made is None else made

    def _product(self, node: NodeProto) -> list[NodeProto] | None:
        if node.op_type not in ("MatMul", "Gemm") or attribute(node, "transA", 0):
            return None
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        weight = self._weight(node.input[1])
        if weight is None or weight.ndim != 2 or weight.size < MIN_WEIGHTS or not plain:
            return None
        if attribute(node, "transB", 0):
            weight = weight.T
        before = self._round(node.input[0])
        small, scale, _ = self._split(node.name, weight, axis=1)
        whole, real, factor = (f"{node.name}_{part}" for part in ("whole", "real", "factor"))
        bias = node.input[2] if len(node.input) > 2 else ""
        out = f"{node.name}_out" if bias else node.output[0]
        made = [
            helper.make_node("Mul", [before[1], scale], [factor], f"{node.name}_Factor"),
            helper.make_node("MatMulInteger", [before[0], small, before[2]], [whole], node.name),
            helper.make_node("Cast", [whole], [real], f"{node.name}_Cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", [real, factor], [out], f"{node.name}_Mul"),
        ]
        return made + ([helper.make_node("Add", [out, bias], [node.output[0]], f"{node.name}_Add")] if bias else [])

    def _lstm(self, node: NodeProto) -> list[NodeProto] | None:
        weights = [self._weight(name) for name in node.input[1:3]]
        if attribute(node, "layout", 0) or any(weight is None for weight in weights):
            return None
        if sum(weight.size for weight in weights if weight is not None) < MIN_WEIGHTS:
            return None
        inputs = [*node.input, *[""] * (8 - len(node.input))]
        for index, (part, weight) in enumerate(zip("wr", weights, strict=True), 1):
            assert weight is not None
            names = self._split(f"{node.name}_{part}", weight.transpose(0, 2, 1), axis=(0, 2))
            inputs[index] = names[0]
            inputs += names[1:]
        made = helper.make_node("DynamicQuantizeLSTM", inputs, list(node.output), node.name, domain=MS)
        made.attribute.extend(a for a in node.attribute if a.name != "layout")
        return [made]

    def _weight(self, name: str) -> np.ndarray | None:
        return numpy_helper.to_array(self._weights[name]) if name in self._weights else None

    def _round(self, name: str) -> list[str]:
        if name not in self._rounded:
            names = [f"{name}_{part}" for part in ("u8", "u8_scale", "u8_zero")]
            self._nodes.append(helper.make_node("DynamicQuantizeLinear", [name], names, f"{name}_Quantize"))
            self._rounded[name] = names
        return self._rounded[name]

    def _split(self, name: str, weight: np.ndarray, *, axis: int | tuple[int, int]) -> list[str]:
        """Store `weight` as whole numbers, scale and zero point, one per output (and direction)."""
        if isinstance(axis, tuple):
            scale = np.stack([weight_scales(way, None if self._one_scale else 1) for way in weight])
            spread = scale.reshape(len(weight), 1, -1)
        else:
            scale = weight_scales(weight, None if self._one_scale else axis)
            spread = scale
        small = np.clip(np.round(weight / spread), -127, 127).astype(np.int8)
        parts = {"s8": small, "scale": scale, "zero": np.zeros(scale.shape, np.int8)}
        for part, array in parts.items():
            self._proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{name}_{part}"))
        return [f"{name}_{part}" for part in parts]
