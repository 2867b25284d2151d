"""QDQ pairs folded into the 8-bit operators they stand for: a smaller file, and one node where there were four.

QLinearConv and QLinearMatMul are ONNX; the rest are onnxruntime's own (com.microsoft), there since 1.10.
"""

from __future__ import annotations

from collections.abc import Callable

from onnx import ModelProto, NodeProto, helper

from edgeml.graph.proto import opset_imports

MS = "com.microsoft"
PASSING = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "DepthToSpace"})


class _Scene:
    def __init__(self, proto: ModelProto) -> None:
        self.producer = {name: node for node in proto.graph.node for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in proto.graph.output}

    def source(self, name: str) -> list[str] | None:
        """Return tensor, scale and zero point behind a DequantizeLinear."""
        node = self.producer.get(name)
        return list(node.input) if node is not None and node.op_type == "DequantizeLinear" else None

    def target(self, name: str) -> NodeProto | None:
        """Return the QuantizeLinear that alone reads `name`."""
        readers = self.readers.get(name, [])
        alone = len(readers) == 1 and readers[0].op_type == "QuantizeLinear" and name not in self.outputs
        return readers[0] if alone else None


Fold = Callable[[NodeProto, list[list[str]], list[str]], NodeProto]  # node, sources, target -> its 8-bit form


def fused(proto: ModelProto) -> ModelProto:
    """Return a copy of the QDQ graph `proto` with 8-bit operators where onnx or onnxruntime has one."""
    scene, small = _Scene(proto), ModelProto()
    small.CopyFrom(proto)
    nodes, replaced = [], set()
    for node in proto.graph.node:
        quantize = scene.target(node.output[0]) if len(node.output) == 1 else None
        made = _fold(node, scene, quantize)
        nodes.append(made or node)
        if made is not None and quantize is not None:
            replaced.add(quantize.name)
    del small.graph.node[:]
    small.graph.node.extend(_alive([node for node in nodes if node.name not in replaced], scene.outputs))
    if MS not in opset_imports(small):
        small.opset_import.append(helper.make_opsetid(MS, 1))
    return small


def _fold(node: NodeProto, scene: _Scene, quantize: NodeProto | None) -> NodeProto | None:
    rule = FOLDS.get(node.op_type)
    if rule is None or (quantize is None and node.op_type != "Gemm"):
        return None
    count = 1 if node.op_type in PASSING else len(node.input)
    sources = [scene.source(name) for name in node.input[:count]]
    if any(source is None for source in sources):
        return None
    target = [*quantize.input[1:3], quantize.output[0]] if quantize is not None else []
    return rule(node, [source for source in sources if source is not None], target)


def _alive(nodes: list[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """Return the nodes whose outputs somebody reads."""
    kept: list[NodeProto] = []
    read = set(outputs)
    for node in reversed(nodes):
        if any(name in read for name in node.output):
            kept.append(node)
            read |= set(node.input)
    return kept[::-1]


def _made(operator: str, node: NodeProto, ends: tuple[list[str], str]) -> NodeProto:
    """Return `operator` with the attributes of `node`, from these inputs to this output."""
    domain = "" if operator in ("QLinearConv", "QLinearMatMul") else MS
    made = helper.make_node(operator, ends[0], [ends[1]], node.name, domain=domain)
    made.attribute.extend(node.attribute)
    return made


def _conv(node: NodeProto, sources: list[list[str]], target: list[str]) -> NodeProto:
    bias = [sources[2][0]] if len(sources) > 2 else []
    return _made("QLinearConv", node, ([*sources[0], *sources[1], *target[:2], *bias], target[2]))


def _matmul(node: NodeProto, sources: list[list[str]], target: list[str]) -> NodeProto:
    return _made("QLinearMatMul", node, ([*sources[0], *sources[1], *target[:2]], target[2]))


def _gemm(node: NodeProto, sources: list[list[str]], target: list[str]) -> NodeProto:
    bias = sources[2][0] if len(sources) > 2 else ""
    inputs = [*sources[0], *sources[1], bias, *target[:2]]
    made = _made("QGemm", node, (inputs, target[2] if target else node.output[0]))
    kept = [a for a in made.attribute if a.name != "beta"]
    del made.attribute[:]
    made.attribute.extend(kept)
    return made


def _unary(operator: str) -> Fold:
    def fold(node: NodeProto, sources: list[list[str]], target: list[str]) -> NodeProto:
        return _made(operator, node, ([*sources[0], *target[:2]], target[2]))

    return fold


def _binary(operator: str) -> Fold:
    def fold(node: NodeProto, sources: list[list[str]], target: list[str]) -> NodeProto:
        return _made(operator, node, ([*sources[0], *sources[1], *target[:2]], target[2]))

    return fold


def _concat(node: NodeProto, sources: list[list[str]], target: list[str]) -> NodeProto:
    inputs = [*target[:2], *(name for source in sources for name in source)]
    return _made("QLinearConcat", node, (inputs, target[2]))


def _passing(node: NodeProto, sources: list[list[str]], target: list[str]) -> NodeProto:
    """An operator that takes 8-bit data as they are, for input and output share their scale."""
    made = NodeProto()
    made.CopyFrom(node)
    made.input[0], made.output[0] = sources[0][0], target[2]
    return made


FOLDS: dict[str, Fold] = {
    "Conv": _conv,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Add": _binary("QLinearAdd"),
    "Mul": _binary("QLinearMul"),
    "Concat": _concat,
    "GlobalAveragePool": _unary("QLinearGlobalAveragePool"),
    "AveragePool": _unary("QLinearAveragePool"),
    "LeakyRelu": _unary("QLinearLeakyRelu"),
    "Sigmoid": _unary("QLinearSigmoid"),
    **dict.fromkeys(PASSING, _passing),
}
