"""What is trained and what stays: named parameters, heads, layers, normalizations; in 32 and in 64 bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from edgeml.artifacts import TRAINABLE, TrainingGraph
from edgeml.autodiff import LOSSES, SGD, Adagrad, Adam, Options, RMSprop, Shaping, training_step
from edgeml.errors import UserError
from edgeml.tasks import training
from edgeml_runtime.session import Session
from tests.autodiff.learners import a_normalized_net

node = helper.make_node
LAYERS = ("w1", "b1", "w2", "b2", "w3", "b3")
ROWS = 12


def a_chain(of: type = np.float64, *, opset: int = 18) -> ModelProto:
    """Three dense layers, 5-6-6-3, with a tanh between; `z` are logits."""
    draw = np.random.default_rng(2)
    shapes = {"w1": (5, 6), "b1": (6,), "w2": (6, 6), "b2": (6,), "w3": (6, 3), "b3": (3,)}
    weights = [numpy_helper.from_array(draw.normal(size=shape).astype(of), name) for name, shape in shapes.items()]
    nodes, x = [], "x"
    for i in (1, 2, 3):
        nodes.append(node("Gemm", [x, f"w{i}", f"b{i}"], [f"h{i}" if i < 3 else "z"]))
        if i < 3:
            nodes.append(node("Tanh", [f"h{i}"], [f"a{i}"]))
        x = f"a{i}"
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(of))
    ends = [helper.make_tensor_value_info(name, kind, ["rows", n]) for name, n in (("x", 5), ("z", 3))]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def feeds(graph: TrainingGraph, **more: np.ndarray) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(4)
    specs = {spec.name: spec for spec in Session(graph.data).inputs}
    given = {"x": draw.normal(size=(ROWS, 5)), "lr": np.array(0.1), "weight": draw.uniform(0.5, 2, ROWS), **more}
    if specs["target"].dtype == "int64":
        given["target"] = draw.integers(0, 3, ROWS)
    else:
        given["target"] = draw.uniform(0.1, 0.9, (ROWS, 3))
    given |= {name: np.array(0.01) for name in specs if name == "mu"}
    given |= {name: np.zeros(spec.shape) for name, spec in specs.items() if name.startswith(("anchor.", "control."))}
    return {name: np.asarray(array, specs[name].dtype) for name, array in given.items() if name in specs} | {
        **graph.parameters,
        **graph.state,
    }


def test_a_task_for_devices_refuses_doubles_by_name() -> None:
    with pytest.raises(UserError, match="'w1' is float64: devices train in float32"):
        training(training_step(a_chain().SerializeToString()), epochs=1, batch_size=4)


OPTIONS = {"softmax_cross_entropy": Options(weighted=True, class_weights=(1, 2, 3), label_smoothing=0.1)}


@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if loss.target])
def test_a_double_model_trains_in_doubles_to_their_precision(loss: str) -> None:
    """Central differences of 1e-6 agree to 1e-8, which floats could not say."""
    options = OPTIONS.get(loss, Options(weighted="weighted" in LOSSES[loss].takes))
    shaping = Shaping(l2=0.01, proximal=True, control=True, clip_norm=1e6)
    graph = training_step(a_chain().SerializeToString(), loss=loss, optimizer=SGD(0), options=options, shaping=shaping)
    session, given = Session(graph.data), feeds(graph)
    assert {array.dtype for array in graph.parameters.values()} == {np.dtype(np.float64)}
    assert {spec.dtype for spec in session.outputs} == {"float64"}
    plain = training_step(a_chain().SerializeToString(), loss=loss, optimizer=SGD(0), options=options)
    losses, at = Session(plain.data), feeds(plain)
    found = losses.run(at)
    for name, place in (("w1", (2, 3)), ("b2", (1,)), ("w3", (0, 2))):
        sides = []
        for step in (1e-6, -1e-6):
            moved = at[name].copy()
            moved[place] += step
            sides.append(losses.run(at | {name: moved})["loss"])
        slope = (at[name] - found[f"new.{name}"])[place] / 0.1
        assert slope == pytest.approx((sides[0] - sides[1]) / 2e-6, abs=1e-8), name
    assert session.run(given)["new.w1"].dtype == np.float64


@pytest.mark.parametrize("optimizer", [SGD(0.9, nesterov=True), Adam(decay=0.1), RMSprop(momentum=0.5), Adagrad()])
def test_every_optimizer_takes_the_same_steps_in_both_precisions(optimizer: object) -> None:
    ends = []
    for of in (np.float32, np.float64):
        graph = training_step(a_chain(of).SerializeToString(), optimizer=optimizer)
        session, given = Session(graph.data), feeds(graph)
        for _ in range(4):
            found = session.run(given)
            given |= {name: found[f"new.{name}"] for name in (*graph.parameters, *graph.state)}
        ends.append({name: given[name] for name in graph.parameters})
    for name in LAYERS:
        np.testing.assert_allclose(ends[0][name], ends[1][name], atol=2e-5)


@pytest.mark.parametrize("trained", [("w3", "b3"), ("w2",), ("w1", "b1", "w3"), ("b1",), LAYERS])
def test_the_named_ones_move_as_they_do_among_all_and_the_others_are_constants(trained: tuple[str, ...]) -> None:
    data = a_chain(np.float32).SerializeToString()
    whole, part = training_step(data, optimizer=SGD(0)), training_step(data, optimizer=SGD(0), trainable=trained)
    assert tuple(part.parameters) == tuple(name for name in LAYERS if name in trained)
    every, some = (Session(graph.data).run(feeds(graph)) for graph in (whole, part))
    for name in trained:
        np.testing.assert_allclose(some[f"new.{name}"], every[f"new.{name}"], atol=1e-6)
    constants = {tensor.name for tensor in onnx.load_model_from_string(part.data).graph.initializer}
    assert set(LAYERS) - set(trained) <= constants


def test_a_head_alone_costs_no_backward_pass_through_what_is_before_it() -> None:
    data = a_chain(np.float32).SerializeToString()
    head = onnx.load_model_from_string(training_step(data, trainable=["w3", "b3"]).data).graph.node
    assert [n.op_type for n in head].count("Gemm") == 4  # three forwards, one for w3
    backward = {name for n in head if n.name == "" for name in n.input}
    assert {"a2"} <= backward and "h1" not in {name for n in head[5:] for name in n.input}


def test_a_model_may_name_its_parameters_itself_and_a_caller_may_choose_others() -> None:
    model = a_chain(np.float32)
    helper.set_model_props(model, {TRAINABLE: '["w2", "b3", "gone"]'})
    assert list(training_step(model.SerializeToString()).parameters) == ["w2", "b3"]
    assert list(training_step(model.SerializeToString(), trainable=["w1"]).parameters) == ["w1"]
    helper.set_model_props(model, {TRAINABLE: "[]"})
    with pytest.raises(UserError, match="trainable is empty"):
        training_step(model.SerializeToString())


def test_a_frozen_normalization_keeps_its_statistics_while_the_head_learns() -> None:
    model = a_normalized_net()
    head = training_step(model, trainable=["w", "b"], batch_statistics=True)
    assert list(head.parameters) == ["w", "b"]
    with_scale = training_step(model, trainable=["s", "w"], batch_statistics=True)
    assert set(with_scale.parameters) == {"s", "w", "m", "v"}


def test_arrays_that_are_handed_in_stay_as_they_were() -> None:
    """onnxruntime's BatchNormalization writes over the statistics it is given."""
    graph = training_step(a_normalized_net(), batch_statistics=True)
    draw = np.random.default_rng(0)
    given = {**graph.parameters, **graph.state, "lr": np.array(0.1, np.float32)}
    given |= {"image": draw.normal(size=(8, 2, 12, 12)).astype(np.float32), "target": draw.integers(0, 4, 8)}
    before = {name: array.copy() for name, array in given.items()}
    found = Session(graph.data).run(given)
    for name, array in given.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert np.abs(found["new.m"] - before["m"]).max() > 0
