"""Graphs that recipes meet: recurrent, attention, residual depthwise, and one that int8 ruins."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper

from edgeml.artifacts import OnnxModel, Rows
from edgeml.graph import serialize
from tests.networks import a_graph

STEPS, WIDTH, HIDDEN, CLASSES = 6, 16, 32, 4


def draw(*shape, seed=0):
    rng = np.random.default_rng(seed + sum(shape))
    return (rng.standard_normal(shape) / np.sqrt(shape[-2] if len(shape) > 1 else 1)).astype(np.float32)


def an_lstm(operator: str = "LSTM") -> OnnxModel:
    """Return an LSTM (or GRU) over a sequence, its last state through a Gemm."""
    gates = {"LSTM": 4, "GRU": 3}[operator] * HIDDEN
    weights = {"w": draw(1, gates, WIDTH), "r": draw(1, gates, HIDDEN), "b": np.zeros((1, 2 * gates), np.float32)}
    weights |= {"d": draw(HIDDEN, CLASSES), "axes": np.zeros(1, np.int64)}
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node(operator, ["t", "w", "r", "b"], ["", "last"], hidden_size=HIDDEN),
        helper.make_node("Squeeze", ["last", "axes"], ["h"]),
        helper.make_node("MatMul", ["h", "d"], ["scores"]),
    ]
    inputs = {"x": (TensorProto.FLOAT, ["rows", STEPS, WIDTH])}
    outputs = {"scores": (TensorProto.FLOAT, ["rows", CLASSES])}
    return serialize(a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights), source="test")


def an_attention() -> OnnxModel:
    """Return a layer norm with outlying channels, one head of attention and a dense layer."""
    gamma = np.ones(WIDTH, np.float32)
    gamma[3] = 40.0
    weights = {"gamma": gamma, "beta": np.zeros(WIDTH, np.float32), "d": draw(WIDTH, 64)}
    weights |= {name: draw(WIDTH, WIDTH, seed=i) * 0.3 for i, name in enumerate("qkv")}
    for name in "qkv":
        weights[name][3] /= 40.0
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"]),
        *(helper.make_node("MatMul", ["n", name], [f"{name}x"]) for name in "qkv"),
        helper.make_node("Transpose", ["kx"], ["kt"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["qx", "kt"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["share"], axis=-1),
        helper.make_node("MatMul", ["share", "vx"], ["mixed"]),
        helper.make_node("Add", ["x", "mixed"], ["sum"]),
        helper.make_node("MatMul", ["sum", "d"], ["dense"]),
        helper.make_node("ReduceMean", ["dense"], ["scores"], axes=[1], keepdims=0),
    ]
    inputs = {"x": (TensorProto.FLOAT, ["rows", STEPS, WIDTH])}
    outputs = {"scores": (TensorProto.FLOAT, ["rows", 64])}
    return serialize(a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights), source="test")


def a_residual_net() -> OnnxModel:
    """Return convolutions with a depthwise one, Relu6, a residual Add, a Concat, pooling and a Gemm."""
    weights = {"c1": draw(8, 3, 3, 3), "c2": draw(8, 1, 3, 3), "c3": draw(8, 8, 1, 1), "c4": draw(8, 16, 1, 1)}
    weights |= {f"b{i}": draw(8, seed=i) * 0.1 for i in range(1, 5)}
    weights |= {"zero": np.float32(0), "six": np.float32(6), "d": draw(8, 5), "e": draw(5)}
    weights["c2"][0] *= 30  # what equalization is for
    nodes = [
        helper.make_node("Conv", ["image", "c1", "b1"], ["a"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Clip", ["a", "zero", "six"], ["a6"]),
        helper.make_node("Conv", ["a6", "c2", "b2"], ["b"], group=8, pads=[1] * 4),
        helper.make_node("Relu", ["b"], ["br"]),
        helper.make_node("Conv", ["br", "c3", "b3"], ["c"]),
        helper.make_node("Add", ["a6", "c"], ["sum"]),
        helper.make_node("Relu", ["sum"], ["sr"]),
        helper.make_node("Concat", ["sr", "a6"], ["cat"], axis=1),
        helper.make_node("Conv", ["cat", "c4", "b4"], ["f"]),
        helper.make_node("MaxPool", ["f"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("GlobalAveragePool", ["pooled"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("Gemm", ["flat", "d", "e"], ["scores"]),
    ]
    inputs = {"image": (TensorProto.FLOAT, ["rows", 3, 16, 16])}
    outputs = {"scores": (TensorProto.FLOAT, ["rows", 5])}
    return serialize(a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights), source="test")


def a_lopsided_mlp() -> tuple[OnnxModel, Rows]:
    """Return a classifier whose first column is a thousand times larger than the rest, and rows with its answers.

    One scale for all columns loses every column but that one, so int8 in the first layer ruins the model.
    """
    weights = {"w1": draw(8, 32), "w2": draw(32, 32), "w3": draw(32, 3), "b1": draw(32), "b2": draw(32), "b3": draw(3)}
    weights["w1"][0] /= 1000
    nodes = [
        helper.make_node("Gemm", ["numeric", "w1", "b1"], ["h1"]),
        helper.make_node("Relu", ["h1"], ["r1"]),
        helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"]),
        helper.make_node("Relu", ["h2"], ["r2"]),
        helper.make_node("Gemm", ["r2", "w3", "b3"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    inputs = {"numeric": (TensorProto.FLOAT, ["rows", 8])}
    outputs = {"label": (TensorProto.INT64, ["rows"]), "probabilities": (TensorProto.FLOAT, ["rows", 3])}
    model = serialize(a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights), source="test")
    numeric = np.random.default_rng(0).standard_normal((400, 8)).astype(np.float32) * 2
    numeric[:, 0] *= 1000
    return model, Rows({"numeric": numeric})


def a_lopsided_net() -> tuple[OnnxModel, Rows]:
    """Return convolutions whose channels differ by powers of ten, which the next layer makes good, and rows for them.

    In floats nothing is lost by that; in 8 bits one scale per tensor loses the small channels.
    """
    weights = {"c1": draw(16, 3, 3, 3), "c2": draw(16, 1, 3, 3), "c3": draw(16, 16, 1, 1), "d": draw(16, 5)}
    weights |= {f"b{i}": np.abs(draw(16, seed=i)) * 0.1 for i in range(1, 4)}
    steps = 10.0 ** np.random.default_rng(0).uniform(-2, 2, (2, 16)).astype(np.float32)
    for first, bias, step in (("c1", "b1", steps[0]), ("c2", "b2", steps[1])):
        weights[first] *= step[:, None, None, None]
        weights[bias] *= step
    weights["c2"] /= steps[0][:, None, None, None]
    weights["c3"] /= steps[1][None, :, None, None]
    nodes = [
        helper.make_node("Conv", ["image", "c1", "b1"], ["a"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["ar"]),
        helper.make_node("Conv", ["ar", "c2", "b2"], ["b"], group=16, pads=[1] * 4),
        helper.make_node("Relu", ["b"], ["br"]),
        helper.make_node("Conv", ["br", "c3", "b3"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["flat"]),
        helper.make_node("MatMul", ["flat", "d"], ["scores"]),
        helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
    ]
    inputs = {"image": (TensorProto.FLOAT, ["rows", 3, 16, 16])}
    outputs = {"label": (TensorProto.INT64, ["rows"]), "scores": (TensorProto.FLOAT, ["rows", 5])}
    model = serialize(a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights), source="test")
    images = np.random.default_rng(1).standard_normal((256, 3, 16, 16)).astype(np.float32)
    return model, Rows({"image": images + np.random.default_rng(2).standard_normal((256, 3, 1, 1)).astype(np.float32)})
