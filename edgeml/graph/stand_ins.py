"""Operators of onnxruntime's own domain, replaced by ONNX operators of the same shapes, so that inference sees through.

The result is for shapes only: it computes nothing of use.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto, NodeProto, TensorProto, helper

from edgeml.graph.proto import attribute

StandIn = Callable[[NodeProto, ModelProto], NodeProto]


def with_stand_ins(proto: ModelProto) -> ModelProto:
    """Return a copy of `proto` whose com.microsoft operators are ONNX ones with outputs of the same shape."""
    found = ModelProto()
    found.CopyFrom(proto)
    for node in found.graph.node:
        if node.op_type in STAND_INS:
            node.CopyFrom(STAND_INS[node.op_type](node, found))
    return found


def _like(operator: str, *taken: int) -> StandIn:
    """Return the rule: `operator` with the same attributes, reading the inputs at `taken`."""

    def rule(node: NodeProto, proto: ModelProto) -> NodeProto:
        made = helper.make_node(operator, [node.input[i] for i in taken if i < len(node.input)], node.output, node.name)
        made.attribute.extend(a for a in node.attribute if a.name != "channels_last")
        return made

    return rule


def _concat(node: NodeProto, proto: ModelProto) -> NodeProto:
    return helper.make_node("Concat", node.input[2::3], node.output, node.name, axis=attribute(node, "axis", 0))


def _blocks(node: NodeProto, proto: ModelProto) -> NodeProto:
    """A product with a matrix that exists as a type only."""
    sizes = [int(str(attribute(node, name))) for name in ("K", "N")]
    proto.graph.input.append(helper.make_tensor_value_info(f"{node.name}.matrix", TensorProto.FLOAT, sizes))
    return helper.make_node("MatMul", [node.input[0], f"{node.name}.matrix"], node.output, node.name)


def _lstm(node: NodeProto, proto: ModelProto) -> NodeProto:
    made = helper.make_node("LSTM", node.input[:8], node.output, node.name)
    made.attribute.extend(node.attribute)
    return made


STAND_INS: dict[str, StandIn] = {
    "QLinearAdd": _like("Add", 0, 3),
    "QLinearMul": _like("Mul", 0, 3),
    "QLinearConcat": _concat,
    "QLinearGlobalAveragePool": _like("GlobalAveragePool", 0),
    "QLinearAveragePool": _like("AveragePool", 0),
    "QLinearLeakyRelu": _like("LeakyRelu", 0),
    "QLinearSigmoid": _like("Sigmoid", 0),
    "QGemm": _like("Gemm", 0, 3),
    "MatMulIntegerToFloat": _like("MatMul", 0, 1),
    "DynamicQuantizeMatMul": _like("MatMul", 0, 1),
    "MatMulNBits": _blocks,
    "DynamicQuantizeLSTM": _lstm,
}
