"""Five networks of an edge device's size as ONNX, weights drawn from a seed, and rows to train them on.

    mlp        64-64-10, the digits                                    batch 32
    cnn        two convolutions of 28 x 28 pictures, pooled            batch 32
    depthwise  DS-CNN of MLPerf Tiny's keyword spotting (arXiv 2106.07597): 49 x 10, 64 channels, normalized by batch
    lstm       80 steps of 3 accelerations, 32 units, 6 activities     batch 32
    attention  32 steps of 32, one transformer layer with 4 heads      batch 32

Weights have torch's layouts, so that benchmarks/peers/torch_steps.py trains the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

BATCH = 32
Weights = dict[str, np.ndarray]
node = helper.make_node


@dataclass(frozen=True)
class Net:
    """A network as ONNX, whose output `z` are logits, with one batch."""

    name: str
    model: bytes
    x: np.ndarray
    target: np.ndarray
    batch_statistics: bool = False


def build(name: str) -> Net:
    """Return the network called `name`, always with the same weights and rows."""
    make, shape, classes = NETS[name]
    draw = np.random.default_rng(0)
    weights: Weights = {}
    nodes = make(weights, draw)
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", *shape])
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["rows", classes])
    constants = [numpy_helper.from_array(value, key) for key, value in weights.items()]
    graph = helper.make_graph(nodes, name, [given], [z], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    x = draw.normal(size=(BATCH, *shape)).astype(np.float32)
    target = draw.integers(0, classes, BATCH)
    return Net(name, model.SerializeToString(), x, target, batch_statistics=name == "depthwise")


def _drawn(weights: Weights, draw: np.random.Generator, name: str, *shape: int) -> str:
    """Draw a weight with He's deviation, or a bias of small numbers."""
    deviation = np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.05
    weights[name] = (deviation * draw.normal(size=shape)).astype(np.float32)
    return name


def _mlp(w: Weights, draw: np.random.Generator) -> list[NodeProto]:
    one, two = [_drawn(w, draw, "w1", 64, 64), _drawn(w, draw, "b1", 64)], [_drawn(w, draw, "w2", 10, 64)]
    two.append(_drawn(w, draw, "b2", 10))
    return [
        node("Gemm", ["x", *one], ["h"], transB=1),
        node("Relu", ["h"], ["a"]),
        node("Gemm", ["a", *two], ["z"], transB=1),
    ]


def _cnn(w: Weights, draw: np.random.Generator) -> list[NodeProto]:
    nodes, x = [], "x"
    for i, (inner, outer) in enumerate(((1, 16), (16, 32))):
        own = [_drawn(w, draw, f"w{i}", outer, inner, 3, 3), _drawn(w, draw, f"b{i}", outer)]
        nodes += [
            node("Conv", [x, *own], [f"c{i}"], pads=[1] * 4, kernel_shape=[3, 3]),
            node("Relu", [f"c{i}"], [f"r{i}"]),
            node("MaxPool", [f"r{i}"], [f"p{i}"], kernel_shape=[2, 2], strides=[2, 2]),
        ]
        x = f"p{i}"
    own = [_drawn(w, draw, "w2", 10, 32 * 49), _drawn(w, draw, "b2", 10)]
    return [*nodes, node("Flatten", [x], ["f"]), node("Gemm", ["f", *own], ["z"], transB=1)]


def _depthwise(w: Weights, draw: np.random.Generator) -> list[NodeProto]:
    nodes, x, channels = [], "x", 64

    def layer(tag: str, shape: Sequence[int], **options: Any) -> None:
        nonlocal x
        own = [_drawn(w, draw, f"{tag}.w", *shape)]
        for part, value in (("s", 1.0), ("o", 0.0), ("m", 0.0), ("v", 1.0)):
            w[f"{tag}.{part}"] = np.full(channels, value, np.float32)
        norm = [f"{tag}.{part}" for part in "somv"]
        nodes.extend(
            [
                node("Conv", [x, *own], [f"{tag}.c"], kernel_shape=list(shape[2:]), **options),
                node("BatchNormalization", [f"{tag}.c", *norm], [f"{tag}.n"], momentum=0.9, epsilon=1e-5),
                node("Relu", [f"{tag}.n"], [f"{tag}.r"]),
            ]
        )
        x = f"{tag}.r"

    layer("first", (channels, 1, 10, 4), strides=[2, 2], pads=[5, 1, 5, 1])
    for i in range(4):
        layer(f"deep{i}", (channels, 1, 3, 3), group=channels, pads=[1] * 4)
        layer(f"point{i}", (channels, channels, 1, 1))
    own = [_drawn(w, draw, "w", 12, channels), _drawn(w, draw, "b", 12)]
    nodes += [node("GlobalAveragePool", [x], ["g"]), node("Flatten", ["g"], ["f"])]
    return [*nodes, node("Gemm", ["f", *own], ["z"], transB=1)]


def _lstm(w: Weights, draw: np.random.Generator) -> list[NodeProto]:
    """Gates are ONNX's: input, output, forget, cell."""
    units = 32
    for name, shape in {"W": (1, 4 * units, 3), "R": (1, 4 * units, units), "B": (1, 8 * units)}.items():
        w[name] = (draw.normal(size=shape) / np.sqrt(units)).astype(np.float32)
    w["first"] = np.array([0], np.int64)
    own = [_drawn(w, draw, "w", 6, units), _drawn(w, draw, "b", 6)]
    return [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "W", "R", "B"], ["", "h"], hidden_size=units),
        node("Squeeze", ["h", "first"], ["f"]),
        node("Gemm", ["f", *own], ["z"], transB=1),
    ]


def _attention(w: Weights, draw: np.random.Generator) -> list[NodeProto]:
    size, heads, wide = 32, 4, 64
    nodes = []

    def dense(tag: str, x: str, inner: int, outer: int) -> str:
        weight, bias = _drawn(w, draw, f"{tag}.w", inner, outer), _drawn(w, draw, f"{tag}.b", outer)
        nodes.extend([node("MatMul", [x, weight], [f"{tag}.m"]), node("Add", [f"{tag}.m", bias], [f"{tag}.y"])])
        return f"{tag}.y"

    def normalized(tag: str, x: str, more: str) -> str:
        w[f"{tag}.s"], w[f"{tag}.o"] = np.ones(size, np.float32), np.zeros(size, np.float32)
        nodes.append(node("Add", [x, more], [f"{tag}.a"]))
        nodes.append(node("LayerNormalization", [f"{tag}.a", f"{tag}.s", f"{tag}.o"], [f"{tag}.y"], epsilon=1e-5))
        return f"{tag}.y"

    w["apart"], w["whole"] = np.array([0, 0, heads, size // heads]), np.array([0, 0, size])
    w["scale"], w["time"] = np.array((size // heads) ** -0.5, np.float32), np.array([1])
    for tag, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        y = dense(tag, "x", size, size)
        nodes += [node("Reshape", [y, "apart"], [f"{tag}.h"]), node("Transpose", [f"{tag}.h"], [tag], perm=order)]
    nodes += [
        node("Mul", ["q", "scale"], ["qs"]),
        node("MatMul", ["qs", "k"], ["scores"]),
        node("Softmax", ["scores"], ["weights"], axis=-1),
        node("MatMul", ["weights", "v"], ["mixed"]),
        node("Transpose", ["mixed"], ["mixed.t"], perm=[0, 2, 1, 3]),
        node("Reshape", ["mixed.t", "whole"], ["joined"]),
    ]
    x = normalized("n1", "x", dense("out", "joined", size, size))
    hidden = dense("up", x, size, wide)
    nodes.append(node("Relu", [hidden], ["up.r"]))
    x = normalized("n2", x, dense("down", "up.r", wide, size))
    nodes.append(node("ReduceMean", [x, "time"], ["f"], keepdims=0))
    own = [_drawn(w, draw, "w", 10, size), _drawn(w, draw, "b", 10)]
    return [*nodes, node("Gemm", ["f", *own], ["z"], transB=1)]


NETS: dict[str, tuple[Callable[[Weights, np.random.Generator], list[NodeProto]], tuple[int, ...], int]] = {
    "mlp": (_mlp, (64,), 10),
    "cnn": (_cnn, (1, 28, 28), 10),
    "depthwise": (_depthwise, (1, 49, 10), 12),
    "lstm": (_lstm, (80, 3), 6),
    "attention": (_attention, (32, 32), 10),
}
