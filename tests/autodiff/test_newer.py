"""Models of newer opsets learn: their operators are spelled out in those of opset 21."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeml.autodiff import SGD, training_step
from edgeml.errors import UnsupportedModel
from edgeml_runtime.session import Session

node = helper.make_node
F32 = np.float32
RNG = np.random.default_rng(4)
CONSTANTS: dict[str, np.ndarray] = {
    "w": RNG.normal(size=(8, 8)).astype(F32),
    "scale": RNG.uniform(0.5, 1.5, 8).astype(F32),
    "mask": RNG.normal(size=(5, 5)).astype(F32),
}
HEADS = {"q_num_heads": 2, "kv_num_heads": 2}
NETS: dict[str, tuple[int, list[NodeProto]]] = {
    "attention": (23, [node("Attention", ["h", "x", "h"], ["y"], **HEADS)]),
    "causal attention": (23, [node("Attention", ["h", "h", "x"], ["y"], is_causal=1, **HEADS)]),
    "masked attention": (24, [node("Attention", ["h", "h", "h", "mask"], ["y"], scale=0.3, **HEADS)]),
    "root mean square": (23, [node("RMSNormalization", ["h", "scale"], ["y"])]),
    "swish": (24, [node("Swish", ["h"], ["y"], alpha=1.5)]),
    "nothing new": (25, [node("Tanh", ["h"], ["y"])]),
}
X, TARGET = RNG.normal(size=(3, 5, 8)).astype(F32), RNG.normal(size=(3, 5, 8)).astype(F32)


def a_model(nodes: Sequence[NodeProto], opset: int) -> bytes:
    read = {name for one in nodes for name in one.input} | {"w"}
    graph = helper.make_graph(
        [node("MatMul", ["x", "w"], ["h"]), *nodes, node("Identity", ["y"], ["prediction"])],
        "newer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 5, 8])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n", 5, 8])],
        [numpy_helper.from_array(value, name) for name, value in CONSTANTS.items() if name in read],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def loss(model: bytes, w: np.ndarray) -> float:
    """Return the mean squared error of the model as it was written, with other weights."""
    changed = onnx.load_model_from_string(model)
    for tensor in changed.graph.initializer:
        if tensor.name == "w":
            tensor.CopyFrom(numpy_helper.from_array(w.astype(F32), "w"))
    answer = Session(changed.SerializeToString()).run({"x": X})["prediction"]
    return float(((answer.astype(np.float64) - TARGET) ** 2).mean())


@pytest.mark.parametrize("name", NETS)
def test_a_newer_operator_learns(name: str) -> None:
    opset, nodes = NETS[name]
    model = a_model(nodes, opset)
    graph = training_step(model, loss="mse", optimizer=SGD(momentum=0), trainable=["w"])
    written = onnx.load_model_from_string(graph.data)
    assert [entry.version for entry in written.opset_import] == [21]
    feeds = {**graph.parameters, "x": X, "target": TARGET, "lr": np.array(1.0, F32)}
    got, w = Session(graph.data).run(feeds), CONSTANTS["w"].astype(np.float64)
    assert got["loss"] == pytest.approx(loss(model, w), rel=1e-5)
    slope = w - got["new.w"]
    for way in RNG.normal(size=(3, 8, 8)):
        h = 1e-2 / np.abs(way).max()
        expected = (loss(model, w + h * way) - loss(model, w - h * way)) / (2 * h)
        assert (slope * way).sum() == pytest.approx(expected, abs=3e-3 * np.sqrt((slope**2).sum()) * 8)


def test_an_operator_that_cannot_be_spelled_out_is_named() -> None:
    model = onnx.load_model_from_string(a_model(NETS["nothing new"][1], 25))
    model.opset_import[0].version = 26
    model.graph.initializer.append(numpy_helper.from_array(np.array(1), "axis"))
    model.graph.node[1].CopyFrom(node("CumProd", ["h", "axis"], ["y"], name="grown"))
    with pytest.raises(UnsupportedModel, match=r"CumProd \(node 'grown'\) is not in opset 21"):
        training_step(model.SerializeToString(), loss="mse")
