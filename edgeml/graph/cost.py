"""What one row costs: multiply-accumulates by class, bytes moved, tree visits, weights.

A class is an operator family, with the activation and weight types where it is quantized:
`conv`, `depthwise`, `gemm` (many rows at once), `gemv` (one row), `conv.u8s8`, `gemv.s8s8`, `gemv.s8u4` (4-bit
blocks), ... Float16 counts as float, which it is once onnxruntime has put its casts around the operators.
A QDQ graph is counted as the runtime runs it: Q and DQ around a quantized operator fold into it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnx import ModelProto, NodeProto, TensorProto

from edgeml.artifacts import OnnxModel
from edgeml.graph import trees
from edgeml.graph.operators import ELEMENTWISE, FREE, MACS, Scene, tensor_bytes
from edgeml.graph.proto import attribute, load, subgraphs
from edgeml.graph.shapes import infer
from edgeml.graph.stand_ins import with_stand_ins

CONVOLUTIONS = frozenset({"Conv", "QLinearConv", "ConvInteger"})
UNFOLDED = frozenset({"Cast", "Mul"})  # how weights that are small on disk become floats


@dataclass(frozen=True)
class Layer:
    """One operator that multiplies: its class, the sides and the stride of its window (none for a product), its work.

    `elements` are those of its activations, in and out, and `channels` what enters one output.
    """

    macs_class: str
    window: tuple[int, ...]
    stride: int
    channels: int
    macs: int
    elements: int
    weights: int  # bytes


@dataclass(frozen=True)
class Cost:
    """The cost of one row; `unknown` counts the operators whose work this room cannot see."""

    macs_by_class: Mapping[str, int]
    weights_by_class: Mapping[str, int]  # bytes of the weights those operators read
    nodes: int  # that the runtime executes
    weight_bytes: int
    activation_bytes: int  # the most that is alive at once
    moved_bytes: int  # read and written by the operators that only move or map elements
    tree_visits: int
    inputs: int
    unknown: Mapping[str, int] = field(default_factory=dict)
    layers: tuple[Layer, ...] = ()  # those of macs_by_class, one by one

    @property
    def macs(self) -> int:
        return sum(self.macs_by_class.values())


def cost(model: OnnxModel | bytes) -> Cost:
    """Return what one row costs `model`; raise UnsupportedModel when its shapes contradict each other."""
    proto = load(model)
    scene = _scene(proto)
    macs, weights, unknown = Counter[str](), Counter[str](), Counter[str]()
    layers: list[Layer] = []
    moved = visits = 0.0
    for node in proto.graph.node:
        if node.op_type in MACS:
            found = MACS[node.op_type](node, scene)
            if found is None:
                unknown[node.op_type] += 1
                continue
            name = ".".join(filter(None, (found[0], scene.precision(node))))
            macs[name] += found[1]
            weights[name] += scene.weight_bytes(found[2])
            layers.append(_layer(node, (name, found[1], found[2]), scene))
        elif node.op_type in trees.OPERATORS:
            visits += trees.visits(node)
        elif node.op_type in ELEMENTWISE:
            moved += 0 if node.op_type in FREE or scene.folds(node) else scene.touched(node)
        elif node.op_type not in FREE:
            unknown[node.op_type] += 1
    stored = sum(map(tensor_bytes, proto.graph.initializer)) + sum(map(_attribute_bytes, proto.graph.node))
    nodes = sum(not scene.folds(node) for node in proto.graph.node)
    inputs = len({value.name for value in proto.graph.input} - scene.weights.keys())
    alive = _most_alive(proto, scene)
    counted = dict(macs), dict(weights), nodes, stored, alive, int(moved), round(visits), inputs, dict(unknown)
    return Cost(*counted, layers=tuple(layers))


def _layer(node: NodeProto, found: tuple[str, int, str], scene: Scene) -> Layer:
    kernel = scene.tensor(found[2]).shape if node.op_type in CONVOLUTIONS else ()
    strides = attribute(node, "strides", [1])
    stride = int(strides[0]) if isinstance(strides, list | tuple) and strides else 1
    names = [name for name in (*node.input, *node.output) if name and not scene.stored(name)]
    elements = sum(scene.tensor(name).size for name in names if len(scene.tensor(name).shape) > 1)
    channels = int(kernel[1]) if len(kernel) > 1 else 0
    return Layer(found[0], tuple(kernel[2:]), stride, channels, found[1], elements, scene.weight_bytes(found[2]))


def _scene(proto: ModelProto) -> Scene:
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:  # weights that a converter wrote as Constant nodes
        value = attribute(node, "value") if node.op_type == "Constant" else None
        if isinstance(value, TensorProto):
            weights[node.output[0]] = value
    shapes = infer(with_stand_ins(proto))
    for node in proto.graph.node:  # the runtime computes these once, while it loads
        if node.op_type in UNFOLDED and set(node.input) <= weights.keys() and node.output[0] in shapes:
            known = TensorProto(name=node.output[0], data_type=TensorProto.FLOAT, dims=shapes[node.output[0]].shape)
            weights[node.output[0]] = known
    producer = {name: node for node in proto.graph.node for name in node.output if node.op_type != "Constant"}
    readers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return Scene(shapes, weights, producer, readers)


def _attribute_bytes(node: NodeProto) -> int:
    """Weights that live in attributes: trees, coefficients, constants, subgraphs."""
    listed = node.attribute if node.domain == "ai.onnx.ml" else ()  # elsewhere lists are options, such as strides
    lists = sum(4 * len(a.floats) + 8 * len(a.ints) + sum(map(len, a.strings)) for a in listed)
    tensors = sum(tensor_bytes(a.t) for a in node.attribute if a.HasField("t"))
    inner = sum(tensor_bytes(t) for graph in subgraphs(node) for t in graph.initializer)
    return lists + tensors + inner


def _most_alive(proto: ModelProto, scene: Scene) -> int:
    """Return the largest sum of activations alive at once, running the nodes in graph order."""
    last = {name: i for i, node in enumerate(proto.graph.node) for name in node.input}
    alive = {v.name: scene.tensor(v.name).nbytes for v in proto.graph.input if v.name not in scene.weights}
    most = sum(alive.values())
    for i, node in enumerate(proto.graph.node):
        stored = node.op_type == "DequantizeLinear" and node.input[0] in scene.weights
        made = [] if stored else [name for name in node.output if name and name not in scene.weights]
        alive |= {name: scene.tensor(name).nbytes for name in made}
        most = max(most, sum(alive.values()))
        for name in [name for name in node.input if last.get(name) == i]:
            alive.pop(name, None)
    return most
