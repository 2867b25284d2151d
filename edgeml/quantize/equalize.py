"""Cross-layer equalization and bias correction before static int8, for depthwise nets.

Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction". Between two convolutions
with a Relu at most, channel i is divided by s_i before and multiplied by it after, so that the ranges of both agree.
Clip(0, 6) between two becomes Relu, as in the paper: an answer may change, and the gates judge.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.errors import UnsupportedModel
from edgeml.graph.proto import attribute
from edgeml.quantize.calibration import channel_means, ranges
from edgeml.quantize.prepare import finished, prepared, require
from edgeml.quantize.qdq import Form, plan, weight_scales, write
from edgeml.quantize.recipe import Options, enough

NAME = "int8-equalized"
ROUNDS = 8  # a chain of layers settles within a few
LARGEST_STEP = 1e3  # a dead channel would ask for an infinite scale
FORM = Form("uint8")


def equalized(model: OnnxModel, rows: Rows, options: Options) -> Variant:
    """Return `model` in static int8 after equalizing its convolutions and correcting their biases."""
    require(model, ("Conv",))
    enough(rows, NAME)
    proto = evened(prepared(model), rows)
    if proto is None:
        raise UnsupportedModel("no two convolutions follow each other with at most a Relu between: nothing to equalize")
    made = plan(proto)
    found = ranges(proto, rows, tensors=made.tensors, threads=options.threads)
    return finished(write(proto, made, found, form=FORM), model, NAME)


def evened(proto: ModelProto, rows: Rows) -> ModelProto | None:
    """Return a copy of `proto` equalized and with corrected biases, None where there is nothing to equalize."""
    found = ModelProto()
    found.CopyFrom(proto)
    if not equalize(found):
        return None
    correct_biases(found, rows)
    return found


def equalize(proto: ModelProto) -> int:
    """Equalize every pair of neighbouring convolutions of `proto` in place and return how many there are."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    arrays = {name: numpy_helper.to_array(tensor).copy() for name, tensor in weights.items()}
    pairs = _pairs(proto, arrays)
    for _ in range(ROUNDS if pairs else 0):
        for first, second in pairs:
            _share(first, second, arrays)
    for first, second in pairs:
        for name in {*first.input[1:], *second.input[1:]}:
            if name:
                weights[name].CopyFrom(numpy_helper.from_array(arrays[name], name))
    return len(pairs)


def _pairs(proto: ModelProto, arrays: Mapping[str, np.ndarray]) -> list[tuple[NodeProto, NodeProto]]:
    readers: dict[str, list[NodeProto]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in proto.graph.output}
    found = []
    for first in proto.graph.node:
        if first.op_type != "Conv" or not _own_weights(first, readers, arrays):
            continue
        after = readers.get(first.output[0], [])
        between = None
        if len(after) == 1 and after[0].op_type in ("Relu", "Clip") and first.output[0] not in outputs:
            between, after = after[0], readers.get(after[0].output[0], [])
        last = between.output[0] if between is not None else first.output[0]
        if len(after) != 1 or last in outputs or after[0].op_type != "Conv" or after[0].input[0] != last:
            continue
        second = after[0]
        if not _own_weights(second, readers, arrays) or not _positive(between, arrays):
            continue
        if int(str(attribute(second, "group", 1))) in (1, arrays[second.input[1]].shape[0]):
            found.append((first, second))
            if between is not None and between.op_type == "Clip":
                between.CopyFrom(helper.make_node("Relu", between.input[:1], between.output, between.name))
    return found


def _own_weights(node: NodeProto, readers: Mapping[str, list[NodeProto]], arrays: Mapping[str, np.ndarray]) -> bool:
    return all(name in arrays and len(readers[name]) == 1 for name in node.input[1:] if name)


def _positive(between: NodeProto | None, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether f(s x) = s f(x) for s > 0, or nearly: Relu, and Clip from 0 taken as one."""
    if between is None or between.op_type == "Relu":
        return True
    return len(between.input) > 1 and between.input[1] in arrays and float(arrays[between.input[1]]) == 0


def _share(first: NodeProto, second: NodeProto, arrays: dict[str, np.ndarray]) -> None:
    one, two = arrays[first.input[1]], arrays[second.input[1]]
    depthwise = two.shape[1] == 1 and int(str(attribute(second, "group", 1))) == two.shape[0]
    range_one = np.abs(one).reshape(len(one), -1).max(axis=1)
    by_input = two if depthwise else two.swapaxes(0, 1)
    range_two = np.abs(by_input).reshape(len(by_input), -1).max(axis=1)
    alive = (range_one > 0) & (range_two > 0)
    step = np.ones(len(one), np.float32)
    step[alive] = np.sqrt(range_one[alive] / range_two[alive])
    step = np.clip(step, 1 / LARGEST_STEP, LARGEST_STEP).astype(np.float32)
    one /= step[:, None, None, None] if one.ndim == 4 else step.reshape([-1] + [1] * (one.ndim - 1))
    if len(first.input) > 2 and first.input[2]:
        arrays[first.input[2]] /= step
    shape = [1] * two.ndim
    shape[0 if depthwise else 1] = -1
    two *= step.reshape(shape)


def _give_biases(proto: ModelProto) -> None:
    """Add a bias of zeros to every Conv with constant weights that has none, in place."""
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type == "Conv" and len(node.input) == 2 and node.input[1] in weights:
            zeros = np.zeros(weights[node.input[1]].dims[0], np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(zeros, f"{node.name}_zeros"))
            node.input.append(f"{node.name}_zeros")


def correct_biases(proto: ModelProto, rows: Rows) -> None:
    """Add to every Conv bias what rounding the weights takes from the mean of its outputs, in place."""
    _give_biases(proto)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    convolutions = [n for n in proto.graph.node if n.op_type == "Conv" and {*n.input[1:]} <= weights.keys()]
    if not convolutions:
        return
    means = channel_means(proto, rows, {node.input[0]: 1 for node in convolutions})
    for node in convolutions:
        weight, bias = (numpy_helper.to_array(weights[name]) for name in node.input[1:3])
        scale = weight_scales(weight, 0 if FORM.per_channel else None)
        spread = scale.reshape([-1] + [1] * (weight.ndim - 1)) if scale.ndim else scale
        lost = (weight - np.clip(np.round(weight / spread), -127, 127) * spread).reshape(*weight.shape[:2], -1).sum(2)
        group = int(str(attribute(node, "group", 1)))
        mean = means[node.input[0]].reshape(group, -1)  # (groups, channels of each)
        change = np.einsum("goi,gi->go", lost.reshape(group, -1, weight.shape[1]), mean).reshape(-1)
        weights[node.input[2]].CopyFrom(numpy_helper.from_array((bias + change).astype(np.float32), node.input[2]))
