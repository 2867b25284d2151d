"""What changes nothing goes: nodes that hand on their input, nodes and weights that nobody reads."""

from __future__ import annotations

from onnx import ModelProto, NodeProto

from edgeml.graph.passes.wiring import Wiring, free_names, remove, reroute
from edgeml.graph.proto import attribute, subgraphs


def dead(proto: ModelProto) -> list[str]:
    """Remove Identity, Dropout outside training, Transpose and Concat that do nothing, and what nobody reads. Exact."""
    graph, notes = proto.graph, []
    before = len(graph.node)
    while any(_bypassed(Wiring(graph), node) for node in graph.node):
        pass
    while unread := _unread(proto):
        remove(graph, unread)
    wanted = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    wanted |= {name for node in graph.node for body in subgraphs(node) for name in free_names(body)}
    wanted |= {value.name for value in graph.input}
    for index in reversed([i for i, tensor in enumerate(graph.initializer) if tensor.name not in wanted]):
        del graph.initializer[index]
    if len(graph.node) < before:
        notes.append(f"removed {before - len(graph.node)} of {before} nodes that change nothing")
    return notes


def _hands_on(wiring: Wiring, node: NodeProto) -> bool:
    """Whether the first output of `node` always is its first input."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Identity":
        return True
    if node.op_type == "Dropout":
        mask_read = len(node.output) > 1 and (node.output[1] in wiring.readers or node.output[1] in wiring.outputs)
        training = wiring.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else False
        return not mask_read and training is not None and not bool(training)
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        return isinstance(perm, list) and perm == sorted(perm)
    return node.op_type in ("Concat", "Sum", "Max", "Min", "Mean") and len(node.input) == 1


def _bypassed(wiring: Wiring, node: NodeProto) -> bool:
    """Take `node` out of the way when it hands on its input; False when it stays."""
    if not _hands_on(wiring, node):
        return False
    graph, source, target = wiring.graph, node.input[0], node.output[0]
    if target not in wiring.outputs:
        remove(graph, [node])
        reroute(graph, target, source)
        return True
    maker = wiring.producer.get(source)
    if maker is None or source in wiring.outputs:
        return False  # an input, a weight or another output: the node gives it its second name
    remove(graph, [node])
    reroute(graph, source, target)
    maker.output[:] = [target if name == source else name for name in maker.output]
    return True


def _unread(proto: ModelProto) -> list[NodeProto]:
    wiring = Wiring(proto.graph)
    read = wiring.outputs | wiring.readers.keys()
    return [node for node in proto.graph.node if not read.intersection(name for name in node.output if name)]
