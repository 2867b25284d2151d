"""Small ONNX models for the device's tests, built node by node."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
INT64, STRING = TensorProto.INT64, TensorProto.STRING
Value = tuple[str, int, Sequence[int | str]]


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    *,
    outputs: Sequence[Value],
    weights: dict[str, np.ndarray] | None = None,
) -> bytes:
    """Return the serialized model of `nodes`, at opset 21 and IR 10."""
    graph = helper.make_graph(
        list(nodes),
        "small",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def mlp(
    features: int = 64,
    hidden: int = 64,
    classes: int = 10,
    *,
    rows: int | str = "rows",
    seed: int = 0,
    scale: float = 1.0,
) -> bytes:
    """Return a classifier with outputs `label` and `probabilities`; `scale` multiplies its last layer."""
    rng = np.random.default_rng(seed)
    weights = {
        "w1": rng.normal(0, features**-0.5, (features, hidden)).astype(np.float32),
        "b1": rng.normal(0, 0.1, hidden).astype(np.float32),
        "w2": (scale * rng.normal(0, hidden**-0.5, (hidden, classes))).astype(np.float32),
        "b2": np.zeros(classes, np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["numeric", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    return model(
        nodes,
        [("numeric", FLOAT, [rows, features])],
        outputs=[("label", INT64, [rows]), ("probabilities", FLOAT, [rows, classes])],
        weights=weights,
    )


def mlp_in_numpy(data: bytes, x: np.ndarray) -> np.ndarray:
    """Return the probabilities of `mlp` for `x`, computed without onnxruntime."""
    w = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(data).graph.initializer}
    logits = np.maximum(x @ w["w1"] + w["b1"], 0) @ w["w2"] + w["b2"]
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def colours() -> bytes:
    """Return a model with a float and a string input: sums the numbers, adds a constant per colour."""
    nodes = [
        helper.make_node(
            "LabelEncoder",
            ["categorical"],
            ["code"],
            domain="ai.onnx.ml",
            keys_strings=["red", "blue"],
            values_floats=[1.0, 2.0],
            default_float=0.0,
        ),
        helper.make_node("ReduceSum", ["numeric", "axes"], ["total"], keepdims=1),
        helper.make_node("Add", ["total", "code"], ["prediction"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [
            helper.make_tensor_value_info("numeric", FLOAT, ["rows", 2]),
            helper.make_tensor_value_info("categorical", STRING, ["rows", 1]),
        ],
        [helper.make_tensor_value_info("prediction", FLOAT, ["rows", 1])],
        [numpy_helper.from_array(np.array([1], np.int64), "axes")],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
