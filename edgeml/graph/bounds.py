"""What a graph may ask for before anything runs it: nodes, steps of its loops, bytes of its largest tensor.

    ModelProto -> estimate -> Estimate -> refuse_bombs

An estimate from shapes and constants alone, at one row. `sure` says whether it saw everything: loops without a known
trip count and shapes that depend on data are only seen by running, which `edgeml.convert.trial` does under limits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from edgeml.errors import UnsupportedModel
from edgeml.graph.order import shown
from edgeml.graph.proto import subgraphs, walk
from edgeml.graph.stored import BITS, declared_bytes

MOST_NODES = 200_000  # the largest network that anybody puts on a board has a few thousand
MOST_STEPS = 20_000_000  # node executions a row: minutes on a workstation
MOST_TENSOR_BYTES = 2 << 30  # of one tensor at one row; the largest board has 16 GB in all
SMALL = 1024  # elements of a constant that can be a shape
OPEN = frozenset({"Loop", "Scan", "If", "SequenceMap"})
SHAPERS = frozenset(  # their output's size is a value, not a shape, of their inputs
    [
        "ConstantOfShape",
        "Expand",
        "Tile",
        "Range",
        "Resize",
        "Upsample",
        "Pad",
        "OneHot",
        "Reshape",
        "Slice",
        "CenterCropPad",
        "RandomNormal",
        "RandomUniform",
        "GridSample",
        "AffineGrid",
        "HannWindow",
        "HammingWindow",
        "BlackmanWindow",
        "MelWeightMatrix",
        "DFT",
        "STFT",
        "Col2Im",
        "MaxUnpool",
        "SplitToSequence",
        "ConcatFromSequence",
    ]
)


@dataclass(frozen=True)
class Estimate:
    """What one row asks for. `steps` are node executions; `largest` is the tensor of `largest_bytes`."""

    nodes: int
    steps: int
    loop: str  # the node that most of the steps belong to
    largest: str
    largest_bytes: int
    sure: bool


def refuse_bombs(proto: ModelProto, name: str) -> Estimate:
    """Return the estimate of `proto`; raise UnsupportedModel, with the numbers, when no board could ever run it."""
    found = estimate(proto)
    if found.nodes > MOST_NODES:
        raise UnsupportedModel(
            f"{name} has {found.nodes:,} operators, {MOST_NODES:,} at most are taken: no board runs that"
        )
    if found.steps > MOST_STEPS:
        raise UnsupportedModel(
            f"{name}: {found.loop} makes one row cost {found.steps:,} operator calls, {MOST_STEPS:,} at most are "
            f"taken: unroll or shorten its loops"
        )
    if found.largest_bytes > MOST_TENSOR_BYTES:
        raise UnsupportedModel(
            f"{name}: its tensor {found.largest!r} takes {_bytes(found.largest_bytes)} for one row, "
            f"{_bytes(MOST_TENSOR_BYTES)} at most are taken: no board holds that"
        )
    return found


def estimate(proto: ModelProto) -> Estimate:
    """Return what one row of `proto` asks for, open axes taken as 1; raise UnsupportedModel for contradicting shapes.

    The nodes must stand in order.
    """
    nodes = len(walk(proto.graph))
    if nodes > MOST_NODES:
        return Estimate(nodes, nodes, "", "", 0, sure=True)
    copy = light(proto)
    steps, loop = _steps(copy.graph, {})
    if steps > MOST_STEPS:
        return Estimate(nodes, steps, loop, "", 0, sure=True)
    graph = inferred(copy)
    sizes = {value.name: size for value in graph.value_info if (size := _size(value)) is not None}
    sizes |= {value.name: size for value in (*graph.input, *graph.output) if (size := _size(value)) is not None}
    sizes |= {tensor.name: declared_bytes(tensor) for tensor in proto.graph.initializer}
    largest = max(sizes, key=sizes.__getitem__, default="")
    shapers = [node for node in walk(graph) if node.op_type in SHAPERS or node.op_type in OPEN]
    seen = all(name in sizes for node in shapers for name in node.output if name)
    sure = seen and not any(node.op_type in OPEN for node in shapers)
    return Estimate(nodes, steps, loop, largest, sizes.get(largest, 0), sure=sure)


def light(proto: ModelProto, *, open_axis: int | None = 1) -> ModelProto:
    """Return `proto` with open axes at `open_axis` and large weights as inputs: what shape inference needs, no more."""
    copy = ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    graph = copy.graph
    graph.name = proto.graph.name
    graph.node.extend(proto.graph.node)
    weights = {tensor.name for tensor in proto.graph.initializer}
    graph.input.extend(value for value in proto.graph.input if value.name not in weights)
    graph.output.extend(proto.graph.output)
    for value in (*graph.input, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if open_axis is not None and not axis.HasField("dim_value"):
                axis.dim_value = open_axis
    for value in graph.output:
        value.type.tensor_type.ClearField("shape")  # what is declared may lie
    for tensor in proto.graph.initializer:
        if math.prod(tensor.dims) <= SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return copy


def inferred(proto: ModelProto) -> GraphProto:
    """Return the graph of `proto` with what shape inference sees; raise UnsupportedModel where shapes contradict."""
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModel(f"the shapes of the graph contradict each other: {reason[:200]}") from error


def _steps(graph: GraphProto, known: Mapping[str, int]) -> tuple[int, str]:
    """Return the node executions of one run of `graph` and the node that most of them belong to."""
    numbers, total, most, loop = {**known, **_numbers(graph)}, 0, 0, ""
    for node in graph.node:
        inner = [_steps(sub, numbers) for sub in subgraphs(node)]
        body = max((steps for steps, _ in inner), default=0)
        cost = 1 + body * (_trips(node, numbers) if node.op_type == "Loop" else 1)
        if cost > most:
            most, loop = cost, shown(node)
        total += cost
    return total, loop


def _trips(node: NodeProto, numbers: Mapping[str, int]) -> int:
    """Return how often a Loop with a known trip count runs; 1 where only running it can tell."""
    endless = len(node.input) < 2 or not node.input[1] or node.input[1] in numbers
    trips = numbers.get(node.input[0], 1) if node.input and node.input[0] else 1
    return max(1, trips) if endless or trips < MOST_STEPS else 1  # a huge count with a condition means "until"


def _numbers(graph: GraphProto) -> dict[str, int]:
    """Return the whole numbers among the constants of `graph`."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants |= {name: a.t for a in node.attribute if a.name == "value" for name in node.output}
    whole = (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    single = {name: t for name, t in constants.items() if t.data_type in whole and math.prod(t.dims) == 1}
    return {name: int(numpy_helper.to_array(tensor).reshape(())) for name, tensor in single.items()}


def _size(value: onnx.ValueInfoProto) -> int | None:
    """Return the bytes of the tensor `value`; None where a size is not known."""
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    if not tensor.HasField("shape") or not all(axis.HasField("dim_value") for axis in dims):
        return None
    elements: int = math.prod(max(axis.dim_value, 0) for axis in dims)
    return elements * BITS.get(tensor.elem_type, 128) // 8


def _bytes(count: int) -> str:
    return f"{count / 1e12:,.1f} TB" if count >= 1e12 else f"{count / 1e9:,.1f} GB"
