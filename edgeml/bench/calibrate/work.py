"""What a node of the graph as it runs has to do: its class, multiply-accumulates and bytes, from shapes alone.

A class is what one cost model fits: the operator as the runtime calls it (after fusion), its layout (onnxruntime's
blocked NCHWc or plain), its element type, and for convolutions the kind of kernel that it takes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
FREE = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Shape", "Constant"})  # no data moves
FEW = 64  # positions of a picture
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """The work of one node."""

    family: str  # "Conv float", "QLinearConv uint8", "Conv float nchwc", "Softmax float"
    kind: str  # "pointwise", "depthwise uneven 3 strided", "vector", "across", ...: a fit falls back word by word
    macs: float
    moved: float  # bytes of activations in and out
    weights: float  # bytes of what does not change
    cold: float = 0.0  # those of `weights` that come from memory, not from a cache
    gathered: float = 0.0  # elements in a convolution's windows, positions if depthwise, runs of a broadcast


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
            kind, macs, gathered = _convolution(shapes[0], weight, outputs[0][1], last=last)
            return Work(family, kind, macs, moved, float(node.parameter_bytes), gathered=gathered)
    if node.operator in PAIRED and len(shapes) > 1:
        kind, runs = _pairing([shape for shape in shapes if shape], outputs[0][1])
        return Work(family, kind, 0.0, moved, float(node.parameter_bytes), gathered=runs)
    kind, macs = _macs(node.operator, shapes, [shape for _, shape in outputs])
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


def _convolution(x: Shape, weight: Shape, y: Shape, *, last: bool) -> tuple[str, float, float]:
    """Return kind, multiply-accumulates and window of a convolution; weights are (out, in / groups, kernel ...)."""
    macs, kernel = float(math.prod(y)) * math.prod(weight[1:]), weight[2:]
    channels, out = (x[-1], y[-1]) if last else (x[1], y[1])
    strided = " strided" if 2 * math.prod(y) / out < math.prod(x) / channels else ""
    uneven = " uneven" if out % 16 or (channels % 16 and channels > 4) else ""  # the rest runs without vectors
    positions = math.prod(y) / out
    few = " one" if positions == 1 else " few" if positions < FEW else ""  # too few for the kernels' tiles
    if weight[1] == 1 and channels > 1:
        return f"depthwise{uneven} {kernel[0]}{strided}", macs, positions
    if weight[1] < channels and channels > 4:
        return "grouped", macs, macs / out
    if weight[1] <= 4:
        return f"first{uneven}", macs, macs / out
    if all(side == 1 for side in kernel):
        return f"pointwise{few}{uneven}", macs, macs / out
    return f"dense{few}{uneven}{strided}", macs, macs / out


def with_cold(works: Sequence[Work], cache: int, *, evicted: float | None = None) -> list[Work]:
    """Return `works` with the weights that a last-level cache of `cache` bytes does not keep from run to run.

    A net's weights take turns in it: none is lost while they fill half of it, all when one and a half times it.
    `evicted` are the bytes read between two runs, those of all `works` if not given.
    """
    total = sum(work.weights for work in works) if evicted is None else evicted
    share = min(1.0, max(0.0, total / cache - 0.5))
    return [replace(work, cold=share * work.weights) for work in works]
