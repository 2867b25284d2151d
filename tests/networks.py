"""Small real graphs for tests, written by hand: every number in them is known."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeml.artifacts import OnnxModel, Rows
from edgeml.graph import serialize

FEATURES, HIDDEN, CLASSES = 8, 16, 3


def a_graph(nodes, *, inputs, outputs, weights=(), opset=17, ml=0, ir=10) -> onnx.ModelProto:
    """Return a model of `nodes`; inputs and outputs as name -> (type, shape), weights as name -> array."""

    def values(table):
        return [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in table.items()]

    tensors = [onnx.numpy_helper.from_array(array, name) for name, array in dict(weights).items()]
    graph = helper.make_graph(list(nodes), "test", values(inputs), values(outputs), tensors)
    opsets = [helper.make_opsetid("", opset)] + ([helper.make_opsetid("ai.onnx.ml", ml)] if ml else [])
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


def an_mlp(*, seed: int = 0, scale: float = 1.0, hidden: int = HIDDEN, batch: int | str = "rows") -> OnnxModel:
    """Return a classifier with scaling inside, Gemm-Relu-Gemm-Softmax and both outputs."""
    draw = np.random.default_rng(seed)
    weights = {
        "w1": draw.standard_normal((FEATURES, hidden)).astype(np.float32) * scale,
        "b1": draw.standard_normal(hidden).astype(np.float32),
        "w2": (draw.standard_normal((hidden, CLASSES)) * np.sqrt(HIDDEN / hidden)).astype(np.float32),
        "b2": np.zeros(CLASSES, np.float32),
    }
    middle, double = [0.5] * FEATURES, [2.0] * FEATURES
    nodes = [
        helper.make_node("Imputer", ["numeric"], ["filled"], domain="ai.onnx.ml", imputed_value_floats=middle),
        helper.make_node("Scaler", ["filled"], ["scaled"], domain="ai.onnx.ml", offset=middle, scale=double),
        helper.make_node("Gemm", ["scaled", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    outputs = {"label": (TensorProto.INT64, [batch]), "probabilities": (TensorProto.FLOAT, [batch, CLASSES])}
    inputs = {"numeric": (TensorProto.FLOAT, [batch, FEATURES])}
    proto = a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights, ml=3)
    return serialize(proto, source="test")


def a_conv_net() -> OnnxModel:
    """Return conv 3x3 stride 2 (3 -> 8), depthwise 3x3, 1x1 (8 -> 16), pooling and a Gemm, on 16x16 images."""
    draw = np.random.default_rng(0)

    def weight(*shape):
        return (draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    weights = {"c1": weight(8, 3, 3, 3), "c2": weight(8, 1, 3, 3), "c3": weight(16, 8, 1, 1), "d": weight(16, 5)}
    weights["zero"] = np.zeros(5, np.float32)
    nodes = [
        helper.make_node("Conv", ["image", "c1"], ["a"], strides=[2, 2], pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "c2"], ["c"], group=8, pads=[1] * 4),
        helper.make_node("Conv", ["c", "c3"], ["e"]),
        helper.make_node("GlobalAveragePool", ["e"], ["f"]),
        helper.make_node("Flatten", ["f"], ["g"]),
        helper.make_node("Gemm", ["g", "d", "zero"], ["scores"]),
    ]
    inputs = {"image": (TensorProto.FLOAT, ["rows", 3, 16, 16])}
    outputs = {"scores": (TensorProto.FLOAT, ["rows", 5])}
    return serialize(a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights), source="test")


def a_regressor(*, slope: float = 3.0, noise: float = 0.0) -> OnnxModel:
    """Return prediction = slope * the sum of the features + noise."""
    weights = {"w": np.full((FEATURES, 1), slope, np.float32), "b": np.full(1, noise, np.float32)}
    nodes = [helper.make_node("Gemm", ["numeric", "w", "b"], ["prediction"])]
    inputs = {"numeric": (TensorProto.FLOAT, ["rows", FEATURES])}
    outputs = {"prediction": (TensorProto.FLOAT, ["rows", 1])}
    return serialize(a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights), source="test")


def a_forest(trees: int = 2) -> OnnxModel:
    """Return `trees` equal trees: the root splits into a leaf (depth 1) and a split with two leaves (depth 2)."""
    ids, modes = [0, 1, 2, 3, 4], ["BRANCH_LEQ", "LEAF", "BRANCH_LEQ", "LEAF", "LEAF"]
    leaves = [(1, 0), (3, 1), (4, 0)]
    node = helper.make_node(
        "TreeEnsembleClassifier",
        ["numeric"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        nodes_treeids=[t for t in range(trees) for _ in ids],
        nodes_nodeids=ids * trees,
        nodes_featureids=[0, 0, 1, 0, 0] * trees,
        nodes_values=[0.5, 0.0, 0.5, 0.0, 0.0] * trees,
        nodes_modes=modes * trees,
        nodes_truenodeids=[1, 0, 3, 0, 0] * trees,
        nodes_falsenodeids=[2, 0, 4, 0, 0] * trees,
        class_treeids=[t for t in range(trees) for _ in leaves],
        class_nodeids=[n for n, _ in leaves] * trees,
        class_ids=[c for _, c in leaves] * trees,
        class_weights=[1.0 / trees] * len(leaves) * trees,
        classlabels_int64s=[0, 1],
        post_transform="NONE",
    )
    inputs = {"numeric": (TensorProto.FLOAT, ["rows", FEATURES])}
    outputs = {"label": (TensorProto.INT64, ["rows"]), "probabilities": (TensorProto.FLOAT, ["rows", 2])}
    return serialize(a_graph([node], inputs=inputs, outputs=outputs, ml=3), source="test")


def some_rows(count: int = 200, *, seed: int = 1, target: bool = True) -> Rows:
    """Return rows for the tabular graphs; the target is the class the first features suggest."""
    numeric = np.random.default_rng(seed).random((count, FEATURES), dtype=np.float32)
    return Rows({"numeric": numeric}, numeric[:, :CLASSES].argmax(axis=1).astype(np.int64) if target else None)
