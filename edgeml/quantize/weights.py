"""Weights alone made smaller, activations float: 4-bit blocks that are multiplied as they are, or small on the wire.

4 bits: MatMulNBits of onnxruntime, after the block-wise round to nearest of GPTQ's baselines (Frantar et al. 2023):
every 32 weights of a column have a scale and a zero point. 8 bits, one scale per output channel (Krishnamoorthi 2018),
and 16-bit floats are stored before a Cast, which onnxruntime folds away once, while it loads: the file is small, the
speed and the memory are those of fp32. (A DequantizeLinear there would be run again at every call.)
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.errors import UnsupportedModel
from edgeml.graph.proto import attribute, opset_imports
from edgeml.quantize.prepare import finished, prepared, require
from edgeml.quantize.qdq import output_axis, weight_scales
from edgeml.quantize.recipe import Options

BLOCK = 32
MIN_INT4 = 16_384  # weights; below, the blocks' scales and the call cost what the bits save
MIN_STORED = 256
LARGEST_HALF = float(np.finfo(np.float16).max)
INT8_ACTIVATIONS = 4  # accuracy_level: products in 8 bits, the fastest on every processor here
MS = "com.microsoft"
HOLDERS = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1,), "MatMul": (0, 1), "LSTM": (1, 2), "GRU": (1, 2)}
HOLDERS |= {"RNN": (1, 2), "Gather": (0,)}


def int4(model: OnnxModel, rows: Rows, options: Options) -> Variant:
    """Return `model` with 4-bit weights in every Gemm and MatMul that has enough of them."""
    require(model, ("Gemm", "MatMul"))
    proto = prepared(model)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes: list[NodeProto] = []
    largest = changed = 0
    for node in proto.graph.node:
        weight = _matrix(node, weights)
        largest = max(largest, 0 if weight is None else weight.size)
        if weight is None or weight.size < MIN_INT4 or weight.shape[0] < BLOCK:
            nodes.append(node)
            continue
        nodes += _in_blocks(proto, node, weight)
        changed += 1
    if not changed:
        raise UnsupportedModel(f"the largest matrix has {largest:,} weights: 4-bit blocks gain from {MIN_INT4:,} on")
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    if MS not in opset_imports(proto):
        proto.opset_import.append(helper.make_opsetid(MS, 1))
    return finished(proto, model, "int4-weights")


def weights8(model: OnnxModel, rows: Rows, options: Options) -> Variant:
    """Return `model` with every weight matrix stored in 8 bits, one scale per output channel."""
    return _small_on_disk(model, "int8-weights", _eight_bits)


def weights16(model: OnnxModel, rows: Rows, options: Options) -> Variant:
    """Return `model` with every weight matrix stored in 16-bit floats."""
    return _small_on_disk(model, "fp16-weights", _halves)


Store = Callable[[str, np.ndarray, int], tuple[list[TensorProto], list[NodeProto]]]


def _small_on_disk(model: OnnxModel, recipe: str, store: Store) -> Variant:
    require(model, tuple(HOLDERS))
    proto = prepared(model)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    stored: dict[str, tuple[list[TensorProto], list[NodeProto]]] = {}
    for node in proto.graph.node:
        for index in HOLDERS.get(node.op_type, ()):
            tensor = weights.get(node.input[index])
            if tensor is not None and tensor.data_type == TensorProto.FLOAT and tensor.name not in stored:
                array = numpy_helper.to_array(tensor)
                if array.ndim > 1 and array.size >= MIN_STORED:
                    stored[tensor.name] = store(tensor.name, array, _axis(node))
    if not stored:
        raise UnsupportedModel(f"no weight has {MIN_STORED} elements: fewer bits would save nothing")
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in stored]
    nodes = [node for _, made in stored.values() for node in made] + list(proto.graph.node)
    del proto.graph.initializer[:], proto.graph.node[:]
    proto.graph.initializer.extend(kept + [tensor for made, _ in stored.values() for tensor in made])
    proto.graph.node.extend(nodes)
    return finished(proto, model, recipe)


def _axis(node: NodeProto) -> int:
    if node.op_type in ("LSTM", "GRU", "RNN"):
        return 1
    return 0 if node.op_type == "Gather" else output_axis(node)


def _eight_bits(name: str, array: np.ndarray, axis: int) -> tuple[list[TensorProto], list[NodeProto]]:
    scale = weight_scales(array, axis)
    spread = scale.reshape([-1 if i == axis else 1 for i in range(array.ndim)])
    small = np.clip(np.round(array / spread), -127, 127).astype(np.int8)
    tensors = [numpy_helper.from_array(small, f"{name}_q"), numpy_helper.from_array(spread, f"{name}_scale")]
    nodes = [
        helper.make_node("Cast", [f"{name}_q"], [f"{name}_whole"], f"{name}_Cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name], f"{name}_Mul"),
    ]
    return tensors, nodes


def _halves(name: str, array: np.ndarray, axis: int) -> tuple[list[TensorProto], list[NodeProto]]:
    if np.abs(array).max() > LARGEST_HALF:
        raise UnsupportedModel(f"weight {name!r} reaches {np.abs(array).max():.3g}: float16 ends at {LARGEST_HALF:g}")
    tensors = [numpy_helper.from_array(array.astype(np.float16), f"{name}_half")]
    return tensors, [helper.make_node("Cast", [f"{name}_half"], [name], f"{name}_Cast", to=TensorProto.FLOAT)]


def _matrix(node: NodeProto, weights: dict[str, TensorProto]) -> np.ndarray | None:
    """Return the constant right side of a product as (inputs, outputs), or None."""
    if node.op_type not in ("Gemm", "MatMul") or node.input[1] not in weights:
        return None
    plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
    tensor = weights[node.input[1]]
    if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or attribute(node, "transA", 0) or not plain:
        return None
    array = numpy_helper.to_array(tensor)
    return array.T if attribute(node, "transB", 0) else array


def _in_blocks(proto: ModelProto, node: NodeProto, weight: np.ndarray) -> list[NodeProto]:
    inner, outer = weight.shape
    count = -(-inner // BLOCK)
    padded = np.zeros((outer, count * BLOCK), np.float32)
    padded[:, :inner] = weight.T
    blocks = padded.reshape(outer, count, BLOCK)
    low, high = np.minimum(blocks.min(axis=2), 0), np.maximum(blocks.max(axis=2), 0)
    scale = np.maximum((high - low) / 15, np.finfo(np.float32).tiny).astype(np.float32)
    zero = np.clip(np.round(-low / scale), 0, 15)
    levels = np.clip(np.round(blocks / scale[..., None]) + zero[..., None], 0, 15).astype(np.uint8)
    zeros = np.pad(zero.astype(np.uint8), ((0, 0), (0, count % 2)))
    parts = {
        "int4": levels[..., 0::2] | levels[..., 1::2] << 4,
        "scales": scale.reshape(-1),
        "zeros": (zeros[:, 0::2] | zeros[:, 1::2] << 4).reshape(-1),
    }
    for part, array in parts.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{node.name}_{part}"))
    names, bias = [f"{node.name}_{part}" for part in parts], len(node.input) > 2 and node.input[2]
    out = f"{node.output[0]}_product" if bias else node.output[0]
    how = {"K": inner, "N": outer, "bits": 4, "block_size": BLOCK, "accuracy_level": INT8_ACTIVATIONS}
    made = [helper.make_node("MatMulNBits", [node.input[0], *names], [out], node.name, domain=MS, **how)]
    if bias:
        made.append(helper.make_node("Add", [out, node.input[2]], [node.output[0]], f"{node.name}_Add"))
    return made
