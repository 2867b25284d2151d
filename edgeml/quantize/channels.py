"""Pairs of layers whose channels between them can go: a Gemm or Conv, what acts on each channel alone, a Gemm or Conv.

    ModelProto -pairs-> Pair;  Pair, activations, a share -narrowed-> smaller weights

The next layer is repaired: it gets the least-squares weights and bias that make of the kept channels what the whole
made (Luo et al., ThiNet, 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from edgeml.graph.passes.wiring import Wiring
from edgeml.graph.proto import attribute

LAYERS = ("Gemm", "Conv")
BY_CHANNEL = {"Relu", "LeakyRelu", "Elu", "Selu", "Sigmoid", "Tanh", "HardSigmoid", "HardSwish", "Gelu", "Softplus"} | {
    *("Clip", "MaxPool", "AveragePool", "Identity", "Dropout", "Softsign"),
}
LEAST = 4  # channels that stay
PATCHES = 4096  # places of a Conv's input that its repair looks at
RIDGE = 1e-4  # of the mean variance: keeps the least squares solvable where channels say the same


@dataclass(frozen=True)
class Pair:
    """The layer that makes the channels, the one that alone reads them, and the tensor in front of the latter."""

    maker: NodeProto
    reader: NodeProto
    between: str


def pairs(proto: ModelProto) -> list[Pair]:
    """Return the pairs of `proto`, in order."""
    wiring, found = Wiring(proto.graph), []
    for node in proto.graph.node:
        if not _usable(wiring, node, last=False):
            continue
        name = node.output[0]
        reader = wiring.only_reader(name)
        while reader is not None and reader.op_type in BY_CHANNEL and reader.input[0] == name:
            name = reader.output[0]
            reader = wiring.only_reader(name)
        alike = reader is not None and reader.op_type == node.op_type and reader.input[0] == name
        if reader is not None and alike and _usable(wiring, reader, last=True):
            found.append(Pair(node, reader, name))
    return found


def _usable(wiring: Wiring, node: NodeProto, *, last: bool) -> bool:
    """Whether the weights of a layer are its own, float32 and plain."""
    if node.op_type not in LAYERS or node.domain not in ("", "ai.onnx") or attribute(node, "transA", 0):
        return False
    plain = [attribute(node, name, 1) for name in ("alpha", "beta", "group")] == [1, 1, 1]
    names = list(node.input[1:])
    weights = [wiring.constant(name) for name in names]
    if node.op_type == "Conv" and last and not _flat_conv(node):
        return False
    own = all(len(wiring.readers.get(name, [])) == 1 for name in names)
    known = all(weight is not None and weight.dtype == np.float32 for weight in weights)
    return plain and own and known and (not last or len(names) == 2)  # the reader's bias takes what is lost


def _flat_conv(node: NodeProto) -> bool:
    """Whether a Conv says its kernel, has two axes, fixed pads and no dilation."""
    kernel, dilations = attribute(node, "kernel_shape"), attribute(node, "dilations", [1, 1])
    fixed = attribute(node, "auto_pad", b"NOTSET") in (b"NOTSET", "NOTSET")
    return isinstance(kernel, list) and len(kernel) == 2 and dilations == [1, 1] and fixed


def narrowed(proto: ModelProto, pair: Pair, activations: np.ndarray, *, share: float) -> int:
    """Drop `share` of the channels between the pair, in place; return how many went.

    `activations` are those in front of the reader, (n, k) or (n, k, h, w). Channels go whose spread, times the weights
    that read them, is least.
    """
    wiring = Wiring(proto.graph)
    maker, reader = (_across(wiring, node) for node in (pair.maker, pair.reader))
    bias = np.asarray(wiring.constant(pair.reader.input[2]), dtype=np.float64).reshape(-1)
    channels = reader.shape[0]
    stays = max(min(LEAST, channels), round(channels * (1 - share)))
    if stays >= channels:
        return 0
    seen = activations[:, :, None] if pair.reader.op_type == "Gemm" else _patches(pair.reader, activations)
    seen, weights = seen.astype(np.float64), reader.reshape(channels, reader.shape[1], -1)
    worth = seen.std(axis=(0, 2)) * np.sqrt((weights**2).sum(axis=(1, 2)))
    keep = np.sort(np.argsort(-worth, kind="stable")[:stays])
    weight, shift = _repaired(seen, weights, keep=keep)
    weight = weight.reshape(stays, *reader.shape[1:])
    _put(wiring, (pair.reader, 1), _back(pair.reader, weight))
    _put(wiring, (pair.reader, 2), bias + shift)
    _put(wiring, (pair.maker, 1), _back(pair.maker, maker[:, keep]))
    if len(pair.maker.input) > 2:
        _put(wiring, (pair.maker, 2), np.asarray(wiring.constant(pair.maker.input[2])).reshape(-1)[keep])
    return int(channels - stays)


def _repaired(seen: np.ndarray, weight: np.ndarray, *, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (kept, out, k) and shift (out,) nearest to the whole, (in, out, k), on inputs (n, in, k)."""
    mean = seen.mean(axis=0)
    centred, outputs = seen - mean, weight.shape[1]
    wanted = np.einsum("nik,iok->no", centred, weight, optimize=True)
    given = centred[:, keep].reshape(len(seen), -1)
    gram = given.T @ given
    gram += np.eye(len(gram)) * RIDGE * max(float(np.trace(gram)) / len(gram), 1e-12)
    found = np.linalg.solve(gram, given.T @ wanted).reshape(len(keep), weight.shape[2], outputs).transpose(0, 2, 1)
    return found, np.einsum("ik,iok->o", mean, weight) - np.einsum("ik,iok->o", mean[keep], found)


def _patches(node: NodeProto, activations: np.ndarray) -> np.ndarray:
    """Return what a Conv multiplies at up to `PATCHES` places, (n, channels, kernel)."""
    kernel, strides, pads = (attribute(node, name) for name in ("kernel_shape", "strides", "pads"))
    assert isinstance(kernel, list), "checked by _usable"
    top, left, bottom, right = pads if isinstance(pads, list) else [0, 0, 0, 0]
    down, across = strides if isinstance(strides, list) else [1, 1]
    padded = np.pad(activations, ((0, 0), (0, 0), (top, bottom), (left, right)))
    views = np.lib.stride_tricks.sliding_window_view(padded, kernel, axis=(2, 3))[:, :, ::down, ::across]
    rows, channels, height, width = views.shape[:4]
    places = np.random.default_rng(0).integers(0, (rows, height, width), (PATCHES, 3))
    return np.asarray(views[places[:, 0], :, places[:, 1], places[:, 2]].reshape(PATCHES, channels, -1))


def _across(wiring: Wiring, node: NodeProto) -> np.ndarray:
    """Return the weights as (in, out, ...)."""
    weight = np.asarray(wiring.constant(node.input[1]), dtype=np.float64)
    turned = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
    return np.swapaxes(weight, 0, 1) if turned else weight


def _back(node: NodeProto, weight: np.ndarray) -> np.ndarray:
    turned = node.op_type == "Conv" or bool(attribute(node, "transB", 0))
    return np.swapaxes(weight, 0, 1) if turned else weight


def _put(wiring: Wiring, end: tuple[NodeProto, int], value: np.ndarray) -> None:
    """Put a weight in place of the one that a node reads at a position."""
    node, position = end
    name = node.input[position]
    tensor = numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), name)
    for index, old in enumerate(wiring.graph.initializer):
        if old.name == name:
            wiring.graph.initializer[index].CopyFrom(tensor)
            return
    node.input[position] = wiring.add(f"{name}.narrow", np.ascontiguousarray(value, dtype=np.float32))
