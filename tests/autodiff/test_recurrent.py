"""Recurrent layers: gradients of last states, the Scan that takes the operator's place, rows first, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.autodiff import SGD, training_step
from edgeml.autodiff.backward import gradients
from edgeml.autodiff.builder import GraphBuilder
from edgeml.errors import UnsupportedModel
from edgeml.tasks import training
from edgeml_runtime.session import Session
from tests.autodiff.case import Case
from tests.autodiff.cases_layers import LAYERS, ODD, layer
from tests.autodiff.graphs import a_model, gradient_model
from tests.autodiff.test_autodiff_rules import finite_differences

OUTPUTS = {"LSTM": 3, "GRU": 2, "RNN": 2}
LAST = [("LSTM", 1), ("LSTM", 2), ("GRU", 1), ("RNN", 1)]


@pytest.mark.parametrize("case", [0, -1], ids=["whole", "short rows"])
@pytest.mark.parametrize(("op_type", "output"), LAST)
def test_the_last_state_of_a_layer_has_a_gradient_of_its_own(op_type: str, output: int, case: int) -> None:
    chosen = LAYERS[op_type][0] if case == 0 else ODD[op_type][2]
    model = a_model(op_type, chosen, dtype=np.float32, symbolic=False, opset=18)
    names = ["", "", ""]
    names[output] = "y"
    model.graph.node[0].output[:] = names[: output + 1]
    session, feeds = Session(model.SerializeToString()), {k: v.astype(np.float32) for k, v in chosen.inputs.items()}
    y = session.run(feeds)["y"]
    seed = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    exact = gradient_model(model, list(feeds), seed).run({**feeds, "seed": seed})
    for name, slope in finite_differences(session, feeds, seed, h=1e-2).items():
        np.testing.assert_allclose(exact[f"d.{name}"], slope, rtol=5e-3, atol=5e-3 * (1 + abs(slope).max()))


def a_network(op_type: str, case: Case, *, rows_first: bool = False) -> ModelProto:
    """Rows of 5 steps into one layer; every output of it, side by side in a row, is an output of the network."""
    values = {name: array.astype(np.float32) for name, array in case.inputs.items() if name != "x"}
    values |= {name: np.asarray(array) for name, array in case.constants.items()}
    values["flat"] = np.array([0, -1])
    parts = ["y", "yh", "yc"][: OUTPUTS[op_type]]
    attributes: dict[str, Any] = dict(case.attributes)
    order = list(case.order or case.inputs)
    nodes: list[NodeProto] = []
    if rows_first:
        attributes["layout"] = 1
        values |= {name: np.swapaxes(values[name], 0, 1) for name in ("h", "c") if name in values}
        turned = {part: part for part in parts}
    else:
        nodes.append(helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]))
        order[0] = "t"
        turned = {part: f"{part}.rows" for part in parts}
    nodes.append(helper.make_node(op_type, order, parts, **attributes))
    for part in parts:
        if not rows_first:
            perm = [2, 0, 1, 3] if part == "y" else [1, 0, 2]
            nodes.append(helper.make_node("Transpose", [part], [turned[part]], perm=perm))
        nodes.append(helper.make_node("Reshape", [turned[part], "flat"], [f"{part}.flat"]))
    nodes.append(helper.make_node("Concat", [f"{part}.flat" for part in parts], ["out"], axis=1))
    many = 2 if attributes.get("direction") == "bidirectional" else 1
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 5, case.inputs["x"].shape[2]])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["rows", (4 + len(parts)) * many * 4])
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "layer", [x], [out], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def a_step(model: ModelProto, case: Case, target: np.ndarray) -> dict[str, np.ndarray]:
    """Return what one step of mean squared error gives."""
    graph = training_step(model.SerializeToString(), loss="mse", optimizer=SGD(), trainable=["w", "r"])
    assert not {"LSTM", "GRU", "RNN"} & {node.op_type for node in _nodes(graph.data)}
    x = np.swapaxes(case.inputs["x"], 0, 1).astype(np.float32)
    return Session(graph.data).run(
        {"x": x, "target": target, "lr": np.array(0.5, np.float32), **graph.parameters, **graph.state}
    )


def _nodes(data: bytes) -> list[NodeProto]:
    return list(ModelProto.FromString(data).graph.node)


@pytest.mark.parametrize(("op_type", "index"), [(op, i) for op, cases in ODD.items() for i in range(len(cases))])
def test_the_scan_in_the_place_of_a_layer_computes_what_onnxruntime_does(op_type: str, index: int) -> None:
    case = ODD[op_type][index]
    model = a_network(op_type, case)
    x = np.swapaxes(case.inputs["x"], 0, 1).astype(np.float32)
    expected = Session(model.SerializeToString()).run({"x": x})["out"]
    apart = a_step(model, case, expected)["loss"]
    assert 0 <= apart < 1e-12  # a mean of squares
    assert a_step(model, case, expected + 1)["loss"] == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("op_type", "index"), [("LSTM", 0), ("LSTM", 2), ("GRU", 1), ("RNN", 2)])
def test_rows_before_steps_train_as_steps_before_rows(op_type: str, index: int) -> None:
    """onnxruntime 1.32 has no kernel for layout=1, and runs its training graph."""
    case = ODD[op_type][index]
    steps_first, rows_first = a_network(op_type, case), a_network(op_type, case, rows_first=True)
    x = np.swapaxes(case.inputs["x"], 0, 1).astype(np.float32)
    target = Session(steps_first.SerializeToString()).run({"x": x})["out"] + 1
    expected = a_step(steps_first, case, target)
    found = a_step(rows_first, case, target)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("op_type", "case"),
    [("LSTM", layer(4, "b", "p")), ("GRU", layer(3, "b", linear_before_reset=1)), ("RNN", layer(1, "b", wide=6))],
    ids=["LSTM", "GRU", "RNN"],
)
def test_a_task_takes_the_steps_that_are_taken_one_by_one(op_type: str, case: Case) -> None:
    """Inside the loops of a task onnxruntime cannot infer every rank."""
    graph = training_step(a_network(op_type, case).SerializeToString(), loss="mse", optimizer=SGD(0.9))
    task = training(graph, epochs=3, batch_size=2)
    x = np.swapaxes(case.inputs["x"], 0, 1).astype(np.float32)
    out = a_network(op_type, case).graph.output[0].type.tensor_type.shape.dim[1].dim_value
    feeds = {"x": x, "target": np.ones((2, out), np.float32), "lr": np.array(0.1, np.float32)}
    learned = Session(task.data).run({**task.parameters, **feeds, "seed": np.array(0)})
    step, state = Session(graph.data), graph.parameters | graph.state
    for _ in range(3):
        found = step.run({**state, **feeds})
        state = {name: found[f"new.{name}"] for name in state}
    for name, value in graph.parameters.items():
        np.testing.assert_allclose(value + learned[f"delta.{name}"], state[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activations": ["Swish", "Tanh", "Tanh"]}, "activation 'swish' is none of"),
        ({"activations": ["LeakyRelu", "Tanh", "Tanh"], "activation_alpha": [-0.5]}, "alpha of -0.5"),
    ],
)
def test_what_has_no_slope_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    case = LAYERS["LSTM"][1]
    odd = Case(case.inputs, attributes={**case.attributes, **options}, known=case.known)
    g = GraphBuilder(a_model("LSTM", odd, dtype=np.float32, symbolic=False, opset=18))
    with pytest.raises(UnsupportedModel, match=rf"LSTM.*{message}"):
        gradients(g, {"y": "seed"}, ["x"])
