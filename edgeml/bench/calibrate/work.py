"""What a node of the graph as it runs has to do: its class, multiply-accumulates and bytes, from shapes alone.

A class is what one cost model fits: the operator as the runtime calls it (after fusion), its layout (onnxruntime's
blocked NCHWc or plain), its element type, and for convolutions the kind of kernel that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from onnx import ModelProto, NodeProto

from edgeml.graph import trees
from edgeml_runtime.measure import OperatorTime

BYTES = {"float": 4, "float16": 2, "double": 8, "int64": 8, "int32": 4, "int8": 1, "uint8": 1, "bool": 1, "string": 16}
MOVED = "_token"  # in the names that onnxruntime gives to nodes it moved to another layout
BLOCKED = "_nchwc"  # how onnxruntime ends the names of nodes in its blocked layout
CONVOLUTIONS = {"Conv": 1, "FusedConv": 1, "QLinearConv": 3, "ConvInteger": 1, "NhwcFusedConv": 1}  # -> weight's place
PRODUCTS = frozenset(
    {"Gemm", "FusedGemm", "MatMul", "FusedMatMul", "QGemm", "QLinearMatMul", "MatMulInteger", "DynamicQuantizeMatMul"}
    | {"MatMulIntegerToFloat", "MatMulNBits"}
)
RECURRENT = frozenset({"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"})
ALIKE = {"FusedConv": "Conv", "FusedGemm": "Gemm", "FusedMatMul": "MatMul", "Sub": "Add"}  # one kernel, or nearly
PAIRED = frozenset({"Add", "Mul", "Sub", "Div", "Max", "Min", "Pow", "QLinearAdd", "QLinearMul"})
POOLS = frozenset({"MaxPool", "AveragePool"})
RENAMED_POOLS = frozenset({"NhwcMaxPool", "QLinearAveragePool"})
USUAL_WINDOW = 4  # of a pool whose own is not known
SIDED = frozenset({"Resize", "Upsample", "ReduceMean", "ReduceSum", "ReduceMax"})  # the last axis is theirs, or kept
FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant"})  # no data moves
FEW = 64  # positions of a picture
VECTOR, LANES = 16, 4  # channels that onnxruntime's int8 kernels do at once, and of the rest again
FILTERS = 64  # of a row: what a thread of the blocked kernels takes at once
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Caches:
    """Bytes of the last level, and of the one before it."""

    last: int
    near: int


@dataclass(frozen=True)
class Work:
    """The work of one node."""

    family: str  # "Conv float", "QLinearConv uint8", "Conv float nchwc", "Softmax float"
    kind: str  # "pointwise", "depthwise uneven 3 strided", "vector", "across", ...: a fit falls back word by word
    macs: float
    moved: float  # bytes of activations in and out
    weights: float  # bytes of what does not change
    gathered: float = 0.0  # elements in windows (positions if depthwise), runs of a broadcast, visits of trees
    stale: float = 0.0  # share of what the node needs that the nearer caches have forgotten
    far: float = 0.0  # share of `weights` that the last cache has forgotten, too
    wiped: float = 0.0  # share of all else that it has forgotten, which a sweep can do and a net does not
    aged: float = 0.0  # bytes of `moved` that the nearer caches have forgotten
    spilled: float = 0.0  # bytes of `moved` that memory holds, not a cache
    over: float = 0.0  # bytes of `moved` that the nearer caches are too small for
    ragged: float = 0.0  # elements out (in windows if depthwise) of channels behind the last VECTOR of them
    odd: float = 0.0  # the same behind the last LANES channels: these are done one by one
    part: float = 0.0  # multiply-accumulates of one of the parts that threads share, in the blocked layout

    def amounts(self) -> dict[str, float]:
        """Return what is counted, without the names."""
        return {key: value for key, value in vars(self).items() if key not in ("family", "kind")}


def works_of(nodes: Sequence[OperatorTime], model: bytes | ModelProto) -> list[Work]:
    """Return the work of every node that `model` ran as; the model tells what no shape does, the size of its trees."""
    proto = model if isinstance(model, ModelProto) else ModelProto.FromString(model)
    visits = {node.name: trees.visits(node) for node in proto.graph.node if node.op_type in trees.OPERATORS}
    clipped = _clipped(proto)
    windows = {node.name: _window(node) for node in proto.graph.node if node.op_type in POOLS}
    found = []
    for node in nodes:
        if node.operator in trees.OPERATORS:
            found.append(_of_trees(node, visits))
        elif node.operator in POOLS or node.operator in RENAMED_POOLS:
            found.append(_of_pool(node, windows))
        elif node.operator in ("Conv", "FusedConv") and _known_as(node, clipped):
            found.append(_and_clipped(work_of(node)))
        else:
            found.append(work_of(node))
    return found


def _clipped(proto: ModelProto) -> set[str]:
    """Return the names that fused convolutions have from their Clip, which is a pass of its own over their output."""
    return {node.name for node in proto.graph.node if node.op_type == "Clip" and node.name}


def _known_as(node: OperatorTime, names: Collection[str]) -> str:
    """Return the longest of `names` that `node` has, with what the runtime puts behind those it replaces, or ""."""
    return max((name for name in names if name and node.name.startswith(name)), key=len, default="")


def _and_clipped(work: Work) -> Work:
    return replace(work, kind=f"{work.kind} clipped")


def _window(node: NodeProto) -> int:
    return math.prod(next((one.ints for one in node.attribute if one.name == "kernel_shape"), [1]))


def _of_pool(node: OperatorTime, windows: Mapping[str, int]) -> Work:
    """Return the work of a pool; the runtime puts something behind the names of nodes that it replaces."""
    found = _known_as(node, windows)
    plain, (_, y) = work_of(node), node.shapes[node.inputs]
    return replace(plain, gathered=float(math.prod(y) * windows.get(found, USUAL_WINDOW)))


def _of_trees(node: OperatorTime, visits: Mapping[str, float]) -> Work:
    """Return the work of a tree ensemble; the only one of a model may be without a name in its file."""
    found = visits.get(node.name, next(iter(visits.values())) if len(visits) == 1 else 0.0)
    (kind, shape), *_ = node.shapes
    rows = shape[0] if len(shape) > 1 else 1
    return Work(
        f"{node.operator} {kind}", "", 0.0, float(node.input_bytes + node.output_bytes), 0.0, gathered=rows * found
    )


def work_of(node: OperatorTime) -> Work:
    """Return the work of `node`; multiply-accumulates are 0 where it only moves or maps elements."""
    inputs, outputs = node.shapes[: node.inputs], node.shapes[node.inputs :]
    first = inputs[0][0] if inputs else ""
    operator = ALIKE.get(node.operator, node.operator)
    family = " ".join(filter(None, (operator, first, "nchwc" if node.name.endswith(BLOCKED) else "")))
    shapes = [shape for _, shape in inputs]
    moved = 0.0 if node.operator in FREE else float(node.input_bytes + node.output_bytes)
    if node.operator in CONVOLUTIONS and len(inputs) > CONVOLUTIONS[node.operator]:
        weight = shapes[CONVOLUTIONS[node.operator]]
        if len(weight) > 2 and len(shapes[0]) == len(weight):
            last = _channels_last(node, weight, outputs[0][1])
            kind, amounts = _convolution(shapes[0], weight, outputs[0][1], last=last)
            if not node.name.endswith(BLOCKED):
                amounts.pop("part")
            return Work(family, kind, moved=moved, weights=float(node.parameter_bytes), **amounts)
    if node.operator in PAIRED and len(shapes) > 1:
        kind, runs = _pairing([shape for shape in shapes if shape], outputs[0][1])
        return Work(family, kind, 0.0, moved + node.parameter_bytes, 0.0, gathered=runs)
    if node.operator == "Transpose" and shapes and shapes[0] and outputs:
        kind = ("rows" if shapes[0][-1] == outputs[0][1][-1] else "across") + " many" * (len(shapes[0]) > 4)
        return Work(family, kind, 0.0, moved, 0.0, gathered=float(math.prod(shapes[0])))
    kind, macs = _macs(node.operator, shapes, [shape for _, shape in outputs])
    if node.operator in SIDED and shapes and shapes[0] and outputs and outputs[0][1]:
        kind = "rows" if shapes[0][-1] == outputs[0][1][-1] else "across"
    if not macs:  # constants of an operator that only moves or maps: a scale, a table
        return Work(family, kind, 0.0, moved + node.parameter_bytes, 0.0)
    return Work(family, kind, macs, moved, float(node.parameter_bytes))


def _macs(operator: str, inputs: list[Shape], outputs: list[Shape]) -> tuple[str, float]:
    if operator in PRODUCTS and inputs and inputs[0] and outputs:
        rows = math.prod(outputs[0][:-1])
        return ("vector" if rows == 1 else "matrix"), float(math.prod(outputs[0]) * inputs[0][-1])
    if operator in RECURRENT and len(inputs) > 2 and len(inputs[0]) == 3:
        steps, batch, _ = inputs[0]
        return "", float(steps * batch * (math.prod(inputs[1]) + math.prod(inputs[2])))
    return "", 0.0


def _pairing(inputs: list[Shape], y: Shape) -> tuple[str, float]:
    """Return how two arrays meet, and in how many runs: alike, by a scalar, along the last axis, across others."""
    other = min(inputs, key=math.prod, default=())
    if len(inputs) < 2 or math.prod(other) == 1:
        return "scalar", 1.0
    if math.prod(other) == math.prod(y):
        return "alike", 1.0
    if other[-1] == y[-1] and y[-1] > 1:
        return "row", math.prod(y) / math.prod(other)
    repeated = next((axis for axis in range(len(other), 0, -1) if other[axis - 1] > 1), 0)
    return "across", math.prod(y) / math.prod(y[len(y) - len(other) + repeated :])


def _channels_last(node: OperatorTime, weight: Shape, y: Shape) -> bool:
    """Return whether a convolution keeps channels last, as int8 ones do once onnxruntime has moved them."""
    if y[1] == weight[0] and y[-1] == weight[0]:
        return MOVED in node.name
    return y[1] != weight[0]


def _convolution(x: Shape, weight: Shape, y: Shape, *, last: bool) -> tuple[str, dict[str, float]]:
    """Return kind and amounts of a convolution; weights are (out, in / groups, kernel ...)."""
    macs, kernel = float(math.prod(y)) * math.prod(weight[1:]), weight[2:]
    channels, out = (x[-1], y[-1]) if last else (x[1], y[1])
    strided = " strided" if 2 * math.prod(y) / out < math.prod(x) / channels else ""
    uneven = " uneven" if out % VECTOR or (channels % VECTOR and channels > 4) else ""  # the rest runs without vectors
    positions = math.prod(y) / out
    few = " one" if positions == 1 else " few" if positions < FEW else ""  # too few for the kernels' tiles
    depthwise = weight[1] == 1 and channels > 1
    elements = positions * (math.prod(kernel) if depthwise else 1)  # of a channel
    parts = (y[1] if last else y[2]) * math.ceil(out / (VECTOR if depthwise else FILTERS))
    amounts = {
        "macs": macs,
        "gathered": positions if depthwise else macs / out,
        "ragged": elements * (out % VECTOR),
        "odd": elements * (out % LANES),
        "part": macs / max(parts, 1),
    }
    if depthwise:
        return f"depthwise{uneven} {kernel[0]}{strided}", amounts
    if weight[1] < channels and channels > 4:
        return "grouped", amounts
    if weight[1] <= 4:
        return f"first{uneven}", amounts
    if all(side == 1 for side in kernel):
        return f"pointwise{few}{uneven}", amounts
    return f"dense{few}{uneven}{strided}", amounts


def in_turn(works: Sequence[Work], caches: Caches, *, swept: float = 0.0) -> list[Work]:
    """Return `works`, run one after the other again and again, with what the caches do not keep from run to run.

    A net's weights take turns in a cache: none is lost while they fill half of it, all when one and a half times it.
    `swept` bytes are touched between two runs; the activations of a net are never so long away.
    """
    weights, largest = sum(work.weights for work in works), max((work.moved for work in works), default=0)
    stale, far = _lost(weights + largest + swept, caches.near), _lost(weights + swept, caches.last)
    spilled, found, before = _lost(swept, caches.last), [], 0.0
    for work in works:
        here = work.moved + work.weights
        aged = _lost(before + here + swept, caches.near) * work.moved  # where it writes was in use a node or two ago
        over = max(0.0, work.moved - caches.near)
        found.append(
            replace(work, stale=stale, far=far, wiped=spilled, aged=aged, spilled=spilled * work.moved, over=over)
        )
        before = here
    return found


def _lost(touched: float, cache: int) -> float:
    return min(1.0, max(0.0, touched / cache - 0.5))
