"""Whole local epochs in one run, against the same trajectory in numpy; the order of rows; hoisting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeml.artifacts import Task, TrainingGraph
from edgeml.autodiff import SGD, training_step
from edgeml.autodiff.counter import PRIME
from edgeml.errors import UserError
from edgeml.tasks import permutation, training
from edgeml.tasks.emitter import Emitter
from edgeml.tasks.hoist import ROWWISE, split
from edgeml.tasks.permutation import emit_permutation
from edgeml_runtime.session import Session

node = helper.make_node
F32 = np.float32
RNG = np.random.default_rng(5)
WEIGHTS: dict[str, np.ndarray] = {
    "w1": 0.5 * RNG.normal(size=(6, 4)).astype(F32),
    "b1": RNG.normal(size=6).astype(F32),
    "w2": 0.5 * RNG.normal(size=(6, 3)).astype(F32),
    "b2": RNG.normal(size=3).astype(F32),
}
MEAN, SCALE = np.array([0.5, -1, 0.25, 0], F32), np.array([1, 2, 1.5, 4], F32)
SCALER = [node("Sub", ["x", "mean"], ["c"]), node("Div", ["c", "scale"], ["s"])]
LAYERS = [
    node("Gemm", ["s", "w1", "b1"], ["h"], transB=1),
    node("Tanh", ["h"], ["a"]),
    node("MatMul", ["a", "w2"], ["m"]),
    node("Add", ["m", "b2"], ["z"]),
    node("Softmax", ["z"], ["probabilities"]),
]


def a_model(
    nodes: Sequence[NodeProto],
    *,
    constants: Mapping[str, np.ndarray],
    inputs: Mapping[str, tuple[int, int]],
    output: tuple[str, int] = ("probabilities", 3),
    opset: int = 21,
) -> bytes:
    taken = [helper.make_tensor_value_info(name, of, ["rows", width]) for name, (of, width) in inputs.items()]
    results = [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, ["rows", output[1]])]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "model", taken, results, initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def a_graph(*, momentum: float = 0.9, opset: int = 21) -> TrainingGraph:
    constants = {**WEIGHTS, "mean": MEAN, "scale": SCALE}
    inputs = {"x": (TensorProto.FLOAT, 4)}
    model = a_model([*SCALER, *LAYERS], constants=constants, inputs=inputs, opset=opset)
    return training_step(model, optimizer=SGD(momentum=momentum))


def run(task: Task, *, seed: int = 0, lr: float = 0.1, **rows: np.ndarray) -> dict[str, np.ndarray]:
    scalars = {"lr": np.array(lr, F32), "seed": np.array(seed, np.int64)}
    return Session(task.data).run({**task.parameters, **scalars, **rows})


def loss_and_gradients(x: np.ndarray, y: np.ndarray, w: Mapping[str, np.ndarray]) -> tuple[float, dict[str, Any]]:
    s = (x - MEAN) / SCALE
    a = np.tanh(s @ w["w1"].T + w["b1"])
    z = a @ w["w2"] + w["b2"]
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    dz = (p - np.eye(3)[y]) / len(y)
    dh = dz @ w["w2"].T * (1 - a * a)
    loss = float(-np.log(p[np.arange(len(y)), y]).mean())
    return loss, {"w1": dh.T @ s, "b1": dh.sum(0), "w2": a.T @ dz, "b2": dz.sum(0)}


def in_numpy(
    x: np.ndarray, y: np.ndarray, *, epochs: int, batch_size: int, momentum: float, seed: int, lr: float = 0.1
) -> dict[str, Any]:
    """The task's own result, computed in float64 without it."""
    w = {name: value.astype(np.float64) for name, value in WEIGHTS.items()}
    v = {name: np.zeros_like(value) for name, value in w.items()}
    curve = []
    for epoch in range(epochs):
        order, total = permutation(len(x), seed, epoch), 0.0
        for start in range(0, len(x), batch_size):
            batch = order[start : start + batch_size]
            loss, slopes = loss_and_gradients(x[batch], y[batch], w)
            total += loss * len(batch)
            v = {name: momentum * v[name] + slopes[name] for name in w}
            w = {name: w[name] - lr * v[name] for name in w}
        curve.append(total / len(x))
    delta = {f"delta.{name}": w[name] - WEIGHTS[name] for name in w}
    before, after = loss_and_gradients(x, y, WEIGHTS)[0], loss_and_gradients(x, y, w)[0]
    return {
        **delta,
        "loss.before": before,
        "loss.after": after,
        "loss.curve": curve,
        "rows": len(x),
        "steps": epochs * -(-len(x) // batch_size),
    }


def some_rows(n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    return rng.normal(size=(n, 4)).astype(F32), rng.integers(0, 3, n)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("n", "batch_size", "epochs"), [(37, 8, 3), (32, 8, 2), (5, 16, 4), (1, 1, 1), (23, 1, 1)])
def test_the_trajectory_equals_numpy_with_the_short_last_batch_counted(
    n: int, batch_size: int, epochs: int, momentum: float
) -> None:
    x, y = some_rows(n)
    task = training(a_graph(momentum=momentum), epochs=epochs, batch_size=batch_size)
    got = run(task, x=x, target=y, seed=11)
    expected = in_numpy(x, y, epochs=epochs, batch_size=batch_size, momentum=momentum, seed=11)
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(got[name], value, atol=1e-6, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
def test_a_task_runs_on_every_opset_that_training_takes(opset: int) -> None:
    x, y = some_rows(10)
    got = run(training(a_graph(opset=opset), epochs=1, batch_size=4), x=x, target=y)
    assert got["loss.after"] < got["loss.before"]


def test_nothing_whose_shape_depends_on_the_rows_leaves_the_device() -> None:
    task = training(a_graph(), epochs=3, batch_size=4)
    outputs = {spec.name: spec.shape for spec in Session(task.data).outputs}
    assert outputs == {
        **{f"delta.{name}": value.shape for name, value in WEIGHTS.items()},
        "loss.before": (),
        "loss.after": (),
        "loss.curve": (3,),
        "rows": (),
        "steps": (),
    }
    assert task.scalars == ("lr", "seed") and task.source == a_graph().digest


def test_a_task_announces_what_it_sends() -> None:
    task = training(a_graph(), epochs=3, batch_size=4)
    x, y = RNG.normal(size=(9, 4)).astype(F32), np.zeros(9, np.int64)
    found = run(task, x=x, target=y)
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == dict(task.outputs)


def test_one_graph_serves_any_number_of_epochs() -> None:
    short, long = (training(a_graph(), epochs=epochs, batch_size=4) for epochs in (1, 1000))
    assert abs(len(long.data) - len(short.data)) < 64
    onnx.checker.check_model(onnx.load_model_from_string(short.data), full_check=True)


def test_the_seed_decides_the_result_and_nothing_else_does() -> None:
    x, y = some_rows(30)
    task = training(a_graph(), epochs=1, batch_size=4)
    first, again, other = (run(task, x=x, target=y, seed=seed) for seed in (1, 1, 2))
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not np.array_equal(first["delta.w1"], other["delta.w1"])
    assert first["loss.before"] == other["loss.before"]


def test_no_rows_change_nothing_and_give_no_loss() -> None:
    got = run(training(a_graph(), epochs=2, batch_size=4), x=np.zeros((0, 4), F32), target=np.zeros(0, np.int64))
    assert got["rows"] == 0 and np.isnan(got["loss.before"])
    assert not any(got[f"delta.{name}"].any() for name in WEIGHTS)


@pytest.mark.parametrize(("epochs", "batch_size"), [(0, 8), (1, 0), (-1, 8)])
def test_sizes_that_are_not_positive_are_refused(epochs: int, batch_size: int) -> None:
    with pytest.raises(UserError, match=f"epochs {epochs}, batch size {batch_size}"):
        training(a_graph(), epochs=epochs, batch_size=batch_size)


def test_strings_and_missing_values_are_prepared_once_for_all_rows() -> None:
    """Categories to one-hot, missing numbers imputed, then one trainable layer."""
    front = [
        node("IsNaN", ["numeric"], ["gone"]),
        node("Where", ["gone", "fill", "numeric"], ["filled"]),
        node("OneHotEncoder", ["categorical"], ["hot"], domain="ai.onnx.ml", cats_strings=["red", "blue"], zeros=1),
        node("Reshape", ["hot", "flat"], ["hot2"]),
        node("Concat", ["filled", "hot2"], ["s"], axis=1),
    ]
    layer = [node("MatMul", ["s", "w"], ["m"]), node("Add", ["m", "b"], ["prediction"])]
    fill = np.array([[0.5, -0.5]], F32)
    constants = {
        "fill": fill,
        "flat": np.array([-1, 2], np.int64),
        "w": RNG.normal(size=(4, 1)).astype(F32),
        "b": np.zeros(1, F32),
    }
    inputs = {"numeric": (TensorProto.FLOAT, 2), "categorical": (TensorProto.STRING, 1)}
    model = a_model([*front, *layer], constants=constants, inputs=inputs, output=("prediction", 1))
    graph = training_step(model, loss="mse", optimizer=SGD(momentum=0))
    assert list(graph.parameters) == ["w", "b"]
    step = onnx.load_model_from_string(graph.data)
    parts = split(step, row_inputs=["numeric", "categorical"], moving=["w", "b", "target", "lr"])
    assert [n.op_type for n in parts.before] == ["IsNaN", "Where", "OneHotEncoder", "Reshape", "Concat"]
    assert parts.crossing == ["s"]

    numeric = RNG.normal(size=(7, 2)).astype(F32)
    numeric[2, 0] = numeric[5, 1] = np.nan
    colours = np.array([["red"], ["blue"], ["green"], ["red"], ["blue"], [""], ["red"]], dtype=object)
    target = RNG.normal(size=(7, 1)).astype(F32)
    task = training(graph, epochs=1, batch_size=7)
    got = run(task, numeric=numeric, categorical=colours, target=target)
    s = np.hstack([np.where(np.isnan(numeric), fill, numeric), colours == "red", colours == "blue"]).astype(np.float64)
    difference = s @ constants["w"] - target
    assert got["loss.before"] == pytest.approx((difference**2).mean(), rel=1e-5)
    np.testing.assert_allclose(got["delta.w"], -0.1 * 2 * s.T @ difference / 7, atol=1e-6)


def test_what_mixes_rows_stays_inside_the_loop() -> None:
    """A mean over the batch must be the mean over the batch, not over all rows."""
    nodes = [
        node("ReduceMean", ["x", "axis"], ["centre"], keepdims=1),
        node("Sub", ["x", "centre"], ["s"]),
        *LAYERS,
    ]
    constants = {**WEIGHTS, "axis": np.array([0])}
    model = a_model(nodes, constants=constants, inputs={"x": (TensorProto.FLOAT, 4)})
    graph = training_step(model, optimizer=SGD(momentum=0))
    parts = split(onnx.load_model_from_string(graph.data), row_inputs=["x"], moving=[*WEIGHTS, "target", "lr"])
    assert parts.crossing == ["x"] and "ReduceMean" in {n.op_type for n in parts.step}
    x, y = some_rows(8)
    got = run(training(graph, epochs=1, batch_size=4), x=x, target=y, seed=3)
    w: dict[str, Any] = dict(WEIGHTS)
    order = permutation(8, 3, 0)
    for batch in (order[:4], order[4:]):
        centred = (x[batch] - x[batch].mean(0)) * SCALE + MEAN  # undo the scaler that the oracle applies
        slopes = loss_and_gradients(centred, y[batch], w)[1]
        w = {name: w[name] - 0.1 * slopes[name] for name in w}
    np.testing.assert_allclose(got["delta.w1"], w["w1"] - WEIGHTS["w1"], atol=1e-6)


HOISTED: list[tuple[list[NodeProto], dict[str, np.ndarray], bool]] = [
    ([node("Add", ["x", "c"], ["s"])], {"c": np.ones((1, 4), F32)}, True),
    ([node("Add", ["x", "c"], ["s"])], {"c": np.ones((4, 4), F32)}, False),  # the row axis of a batch of 4, or not
    ([node("MatMul", ["x", "c"], ["s"])], {"c": np.ones((4, 4), F32)}, True),
    ([node("MatMul", ["c", "x"], ["s"])], {"c": np.ones((4, 4), F32)}, False),
    ([node("Gemm", ["x", "c"], ["s"], transA=1)], {"c": np.ones((4, 4), F32)}, False),
    ([node("Concat", ["x", "x"], ["s"], axis=1)], {}, True),
    ([node("Concat", ["x", "x"], ["s"], axis=0)], {}, False),
    ([node("Concat", ["x", "c"], ["s"], axis=-1)], {"c": np.ones((4, 4), F32)}, False),
    ([node("Gather", ["x", "i"], ["s"], axis=1)], {"i": np.array([3, 2, 1, 0])}, True),
    ([node("Gather", ["x", "i"], ["s"])], {"i": np.array([3, 2, 1, 0])}, False),
    ([node("Softmax", ["x"], ["s"])], {}, True),
    ([node("Softmax", ["x"], ["s"], axis=0)], {}, False),
    ([node("Reshape", ["x", "i"], ["s"])], {"i": np.array([-1, 4])}, True),
    ([node("Reshape", ["x", "i"], ["s"])], {"i": np.array([-1, 2])}, False),
    ([node("Flatten", ["x"], ["s"])], {}, True),
    ([node("Flatten", ["x"], ["s"], axis=0)], {}, False),
    ([node("Transpose", ["x"], ["s"])], {}, False),
    ([node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])], {}, True),
]


@pytest.mark.parametrize(("nodes", "constants", "hoisted"), HOISTED)
def test_only_operators_known_to_treat_rows_one_by_one_leave_the_loop(
    nodes: list[NodeProto], constants: dict[str, np.ndarray], hoisted: bool
) -> None:
    tail = [node("MatMul", ["s", "w"], ["y"])]
    model = a_model([*nodes, *tail], constants=constants, inputs={"x": (TensorProto.FLOAT, 4)}, output=("y", 3))
    proto = onnx.load_model_from_string(model)
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [4, 3]))
    parts = split(proto, row_inputs=["x"], moving=["w"])
    assert (nodes[0].op_type in {n.op_type for n in parts.before}) == hoisted
    if hoisted and not nodes[0].domain:
        assert nodes[0].op_type in ROWWISE
        rows = np.arange(20, dtype=F32).reshape(5, 4) / 10
        alone = [helper.make_tensor_value_info("s", TensorProto.FLOAT, None)]
        del proto.graph.node[-1:], proto.graph.output[:], proto.graph.input[-1:]
        proto.graph.output.extend(alone)
        session = Session(proto.SerializeToString())
        one_by_one = np.concatenate([session.run({"x": rows[i : i + 1]})["s"] for i in range(5)])
        np.testing.assert_allclose(session.run({"x": rows})["s"], one_by_one, rtol=1e-6)


def permutation_session() -> Session:
    constants: dict[str, np.ndarray] = {}
    e = Emitter("p/", constants)
    e.named("order", emit_permutation(e, rows="rows", seed="seed", epoch="epoch"))
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, []) for name in ("rows", "seed", "epoch")]
    outputs = [helper.make_tensor_value_info("order", TensorProto.INT64, ["n"])]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(e.nodes, "permutation", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Session(model.SerializeToString())


IN_GRAPH = permutation_session()


@given(
    n=st.integers(0, 500),
    seed=st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, PRIME - 1, PRIME, 2**53]),
    epoch=st.integers(0, 10_000),
)
@settings(max_examples=200, deadline=None)
def test_the_graph_and_numpy_order_rows_alike(n: int, seed: int, epoch: int) -> None:
    feeds = {"rows": np.array(n), "seed": np.array(seed), "epoch": np.array(epoch)}
    order = permutation(n, seed, epoch)
    assert sorted(order.tolist()) == list(range(n))
    np.testing.assert_array_equal(IN_GRAPH.run(feeds)["order"], order)


def test_the_order_looks_random_from_seed_to_seed_and_from_epoch_to_epoch() -> None:
    n, draws = 20, 4000
    orders = np.array([permutation(n, seed, epoch) for seed in range(draws // 4) for epoch in range(4)])
    assert len({tuple(order) for order in orders}) == draws
    counts = np.array([np.bincount(orders[:, place], minlength=n) for place in range(n)])
    assert abs(counts - draws / n).max() < 6 * np.sqrt(draws / n), "every row comes to every place equally often"
    steps = np.mean(np.diff(orders, axis=1) == 1)
    assert steps < 2 / n, "neighbours do not stay together"


def test_a_hundred_thousand_rows_are_ordered_alike_too() -> None:
    feeds = {"rows": np.array(100_000), "seed": np.array(7), "epoch": np.array(2)}
    np.testing.assert_array_equal(IN_GRAPH.run(feeds)["order"], permutation(100_000, 7, 2))
