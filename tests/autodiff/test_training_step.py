"""The compiled step against numpy, and the models that cannot be trained."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from edgeml.artifacts import OnnxModel, TrainingGraph
from edgeml.autodiff import OPTIMIZERS, SGD, training_step
from edgeml.errors import NotFound, UnsupportedModel, UserError
from edgeml_runtime.errors import DeviceError
from edgeml_runtime.session import Session

node = helper.make_node
F32 = np.float32
RNG = np.random.default_rng(3)
X = RNG.normal(size=(9, 4)).astype(F32)
CLASSES = RNG.integers(0, 3, 9)
VALUES = RNG.normal(size=(9, 3)).astype(F32)
WEIGHTS: dict[str, np.ndarray] = {
    "w1": RNG.normal(size=(6, 4)).astype(F32),
    "b1": RNG.normal(size=6).astype(F32),
    "w2": RNG.normal(size=(6, 3)).astype(F32),
    "b2": RNG.normal(size=3).astype(F32),
}
HIDDEN = [node("Gemm", ["x", "w1", "b1"], ["h"], transB=1)]
HEAD = [node("MatMul", ["a", "w2"], ["m"]), node("Add", ["b2", "m"], ["logits"])]


def a_model(
    nodes: Sequence[NodeProto],
    outputs: Mapping[str, Any],
    *,
    constants: Mapping[str, np.ndarray] = WEIGHTS,
    opset: int = 21,
    inputs: Mapping[str, Any] | None = None,
) -> bytes:
    """A model of float32 outputs (rows, n), and int64 ones where `n` is None."""
    taken = inputs or {"x": (TensorProto.FLOAT, ["rows", 4])}
    given = [helper.make_tensor_value_info(name, of, dims) for name, (of, dims) in taken.items()]
    results = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", n])
        if n
        else helper.make_tensor_value_info(name, TensorProto.INT64, ["rows"])
        for name, n in outputs.items()
    ]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "model", given, results, initializers)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


def a_classifier(activation: str = "Relu", *, opset: int = 21) -> bytes:
    nodes = [
        *HIDDEN,
        node(activation, ["h"], ["a"]),
        *HEAD,
        node("Softmax", ["logits"], ["probabilities"], axis=-1),
        node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    return a_model(nodes, {"label": None, "probabilities": 3}, opset=opset)


def step(graph: TrainingGraph, *, lr: float = 0.1, **feeds: np.ndarray) -> dict[str, np.ndarray]:
    return Session(graph.data).run({**graph.parameters, **graph.state, **feeds, "lr": np.array(lr, F32)})


def numpy_gradients(activation: str, x: np.ndarray, y: np.ndarray, w: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Softmax cross-entropy of the two layers above, by hand, in float64."""
    h = x @ w["w1"].T + w["b1"]
    a, slope = {
        "Relu": (np.maximum(h, 0), (h > 0) * 1.0),
        "Tanh": (np.tanh(h), 1 - np.tanh(h) ** 2),
        "Sigmoid": (1 / (1 + np.exp(-h)), np.exp(-h) / (1 + np.exp(-h)) ** 2),
    }[activation]
    z = a @ w["w2"] + w["b2"]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    dz = (p - np.eye(p.shape[1])[y]) / len(y)
    dh = dz @ w["w2"].T * slope
    loss = -np.log(p[np.arange(len(y)), y]).mean()
    return {"loss": loss, "w1": dh.T @ x, "b1": dh.sum(0), "w2": a.T @ dz, "b2": dz.sum(0)}


@pytest.mark.parametrize("opset", [18, 19, 20, 21])
@pytest.mark.parametrize("activation", ["Relu", "Tanh", "Sigmoid"])
def test_steps_of_sgd_with_momentum_equal_numpy(activation: str, opset: int) -> None:
    graph = training_step(a_classifier(activation, opset=opset), optimizer=SGD(momentum=0.9))
    session = Session(graph.data)
    w = {name: value.astype(np.float64) for name, value in graph.parameters.items()}
    v = {name: np.zeros_like(value) for name, value in w.items()}
    variables = {**graph.parameters, **graph.state}
    for _ in range(5):
        expected = numpy_gradients(activation, X, CLASSES, w)
        got = session.run({**variables, "x": X, "target": CLASSES, "lr": np.array(0.1, F32)})
        v = {name: 0.9 * v[name] + expected[name] for name in w}
        w = {name: w[name] - 0.1 * v[name] for name in w}
        variables = {name: got[f"new.{name}"] for name in variables}
        assert got["loss"] == pytest.approx(expected["loss"], abs=1e-5)
        for name in w:
            np.testing.assert_allclose(variables[name], w[name], atol=1e-5)
            np.testing.assert_allclose(variables[f"velocity.{name}"], v[name], atol=1e-5)


def test_without_momentum_there_is_no_state_and_one_step_is_w_minus_lr_times_gradient() -> None:
    graph = training_step(a_classifier(), optimizer=SGD(momentum=0.0))
    assert graph.state == {} and graph.optimizer == "sgd(momentum=0)"
    got, expected = step(graph, lr=0.5, x=X, target=CLASSES), numpy_gradients("Relu", X, CLASSES, WEIGHTS)
    for name, value in WEIGHTS.items():
        np.testing.assert_allclose(got[f"new.{name}"], value - 0.5 * expected[name], atol=1e-5)


def test_squared_error_is_the_mean_over_rows_and_outputs() -> None:
    model = a_model([*HIDDEN, node("Relu", ["h"], ["a"]), *HEAD], {"logits": 3})
    graph = training_step(model, loss="mse", optimizer=SGD(momentum=0))
    got = step(graph, lr=0.1, x=X, target=VALUES)
    h = X @ WEIGHTS["w1"].T + WEIGHTS["b1"]
    difference = np.maximum(h, 0) @ WEIGHTS["w2"] + WEIGHTS["b2"] - VALUES
    assert got["loss"] == pytest.approx((difference**2).mean(), rel=1e-5)
    expected = WEIGHTS["b2"] - 0.1 * (2 * difference / difference.size).sum(0)
    np.testing.assert_allclose(got["new.b2"], expected, atol=1e-6)


def test_cross_entropy_of_a_softmax_output_is_stable_because_it_starts_from_the_logits() -> None:
    graph = training_step(a_classifier())
    got = step(graph, lr=0.001, x=1000 * X, target=CLASSES)
    assert all(np.isfinite(value).all() for value in got.values())
    assert got["loss"] > 100


def test_an_output_that_is_no_softmax_is_taken_as_logits() -> None:
    logits = a_model([*HIDDEN, node("Relu", ["h"], ["a"]), *HEAD], {"logits": 3})
    got, same = (step(training_step(model), x=X, target=CLASSES) for model in (logits, a_classifier()))
    assert got["loss"] == pytest.approx(same["loss"], abs=1e-6)


def test_a_binary_model_with_a_sigmoid_trains_like_its_softmax_twin() -> None:
    one = {"w": RNG.normal(size=(4, 1)).astype(F32), "b": RNG.normal(size=1).astype(F32)}
    layer = [node("MatMul", ["x", "w"], ["m"]), node("Add", ["m", "b"], ["z"])]
    pair = np.array([[0.0, 1.0]], F32)
    softmax = [*layer, node("Mul", ["z", "pair"], ["zz"]), node("Softmax", ["zz"], ["probabilities"])]
    sigmoid = [
        *layer,
        node("Sigmoid", ["z"], ["p"]),
        node("Sub", ["one", "p"], ["q"]),
        node("Concat", ["q", "p"], ["probabilities"], axis=1),
    ]
    y = (CLASSES > 0).astype(np.int64)
    twins = []
    for nodes, constant in ((softmax, {"pair": pair}), (sigmoid, {"one": np.array([1.0], F32)})):
        graph = training_step(a_model(nodes, {"probabilities": 2}, constants={**one, **constant}))
        assert set(graph.parameters) == {"w", "b"}
        twins.append(step(graph, x=X, target=y))
    p = 1 / (1 + np.exp(-(X @ one["w"] + one["b"])[:, 0].astype(np.float64)))
    assert twins[0]["loss"] == pytest.approx(-np.log(np.where(y == 1, p, 1 - p)).mean(), abs=1e-5)
    for name in twins[0]:
        np.testing.assert_allclose(twins[0][name], twins[1][name], atol=1e-5)
    expected = one["b"] - 0.1 * (p - y).mean()
    np.testing.assert_allclose(twins[0]["new.b"], expected, atol=1e-5)


def scaled(*, ml: bool) -> bytes:
    """The classifier behind a frozen scaler: Sub and Div, or the operator of ai.onnx.ml."""
    mean, scale = np.arange(4, dtype=F32), np.array([1, 2, 3, 4], F32)
    if ml:
        front = [node("Scaler", ["x"], ["s"], domain="ai.onnx.ml", offset=mean, scale=1 / scale)]
    else:
        front = [node("Sub", ["x", "mean"], ["c"]), node("Div", ["c", "scale"], ["s"])]
    nodes = [*front, node("Gemm", ["s", "w1", "b1"], ["h"], transB=1), node("Relu", ["h"], ["a"]), *HEAD]
    constants = WEIGHTS if ml else {**WEIGHTS, "mean": mean, "scale": scale}
    return a_model([*nodes, node("Softmax", ["logits"], ["probabilities"])], {"probabilities": 3}, constants=constants)


@pytest.mark.parametrize("ml", [False, True], ids=["plain", "ai.onnx.ml"])
def test_preprocessing_is_carried_along_and_never_trained(ml: bool) -> None:
    graph = training_step(scaled(ml=ml))
    assert list(graph.parameters) == ["w1", "b1", "w2", "b2"]
    got = step(graph, x=X, target=CLASSES)
    expected = numpy_gradients("Relu", (X - np.arange(4)) / np.array([1, 2, 3, 4]), CLASSES, WEIGHTS)
    for name, value in WEIGHTS.items():
        np.testing.assert_allclose(got[f"new.{name}"], value - 0.1 * expected[name], atol=1e-5)


def test_labels_are_dead_code_and_backward_stops_at_the_first_parameter() -> None:
    graph = onnx.load_model_from_string(training_step(a_classifier()).data).graph
    assert "ArgMax" not in {n.op_type for n in graph.node}
    trained_head = onnx.load_model_from_string(training_step(a_classifier(), trainable=["b2"]).data).graph
    assert "Sign" not in {n.op_type for n in trained_head.node}, "the hidden layer is frozen"
    assert {v.name for v in graph.output} >= {"loss", "new.w1", "new.velocity.b2"}


def test_the_artifact_names_its_source_and_says_what_its_inputs_are() -> None:
    model = OnnxModel(a_classifier(), source="data")
    graph = training_step(model)
    assert (graph.source, graph.loss) == (model.digest, "softmax_cross_entropy")
    inputs = {spec.name: (spec.dtype, spec.shape) for spec in Session(graph.data).inputs}
    assert inputs["x"] == ("float32", (-1, 4)) and inputs["target"] == ("int64", (-1,)) and inputs["lr"][1] == ()
    assert set(inputs) == {"x", "target", "lr", *graph.parameters, *graph.state}
    assert training_step(model).digest == graph.digest, "compiling is reproducible"


def test_a_model_may_come_as_a_path_or_as_bytes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(a_classifier())
    assert training_step(path).digest == training_step(a_classifier()).digest == training_step(str(path)).digest
    with pytest.raises(NotFound, match=r"no model to read at .*other\.onnx"):
        training_step(tmp_path / "other.onnx")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_may_be_named(name: str) -> None:
    graph = training_step(a_classifier(), optimizer=name)
    assert graph.digest == training_step(a_classifier(), optimizer=OPTIMIZERS[name]).digest
    assert step(graph, x=X, target=CLASSES)["loss"] > 0


def test_weights_in_constant_nodes_are_parameters_too() -> None:
    weight = node("Constant", [], ["w"], value=numpy_helper.from_array(WEIGHTS["w1"].T.copy()))
    graph = training_step(a_model([weight, node("MatMul", ["x", "w"], ["y"])], {"y": 6}, constants={}))
    np.testing.assert_array_equal(graph.parameters["w"], WEIGHTS["w1"].T)


def test_short_constants_and_functions_of_the_model_are_seen_through() -> None:
    """As torch writes them: exponents in Constant nodes, layers as functions of the model."""
    two = node("Constant", [], ["two"], value_float=2.0)
    nodes = [two, node("Square", ["x", "two"], ["s"], domain="mine"), node("Gemm", ["s", "w1", "b1"], ["y"], transB=1)]
    model = onnx.load_model_from_string(a_model(nodes, {"y": 6}))
    opset = helper.make_opsetid("", 21)
    square = helper.make_function("mine", "Square", ["a", "p"], ["r"], [node("Pow", ["a", "p"], ["r"])], [opset])
    model.functions.append(square)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    graph = training_step(model.SerializeToString(), loss="mse", optimizer=SGD(momentum=0))
    target = RNG.normal(size=(9, 6)).astype(F32)
    difference = X**2 @ WEIGHTS["w1"].T + WEIGHTS["b1"] - target
    assert step(graph, x=X, target=target)["loss"] == pytest.approx((difference**2).mean(), rel=1e-5)


def a_branch() -> bytes:
    result = [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)]
    branch = helper.make_graph([node("Identity", ["h"], ["r"])], "branch", [], result)
    decided = [node("ReduceSum", ["h"], ["sum"], keepdims=0), node("Cast", ["sum"], ["yes"], to=TensorProto.BOOL)]
    either = node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch)
    return a_model([*HIDDEN, *decided, either], {"y": 6})


def weights_elsewhere() -> bytes:
    model = onnx.load_model_from_string(a_model(HIDDEN, {"h": 6}))
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights.bin")
    return model.SerializeToString()


def test_a_class_that_the_model_does_not_have_fails_instead_of_training() -> None:
    graph = training_step(a_classifier())
    for wrong in (3, -1):
        with pytest.raises(DeviceError, match="target must be a class index of the model"):
            step(graph, x=X, target=np.full(9, wrong))


def test_unknown_names_are_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"w9.*known: w1, b1, w2, b2"):
        training_step(a_classifier(), trainable=["w1", "w9"])
    with pytest.raises(UserError, match=r"'lion'.*sgd, momentum, nesterov, adam, adamw, rmsprop, adagrad"):
        training_step(a_classifier(), optimizer="lion")
    with pytest.raises(UserError, match="trainable is empty"):
        training_step(a_classifier(), trainable=[])
    with pytest.raises(UserError, match=r"'hinge'.*softmax_cross_entropy.*mse"):
        training_step(a_classifier(), loss="hinge")
    with pytest.raises(UserError, match=r"momentum 1\.0"):
        SGD(momentum=1.0)


def a_linear_classifier() -> bytes:
    linear = node(
        "LinearClassifier",
        ["x"],
        ["label", "probabilities"],
        domain="ai.onnx.ml",
        coefficients=[0.0] * 12,
        intercepts=[0.0] * 3,
        classlabels_ints=[0, 1, 2],
        post_transform="SOFTMAX",
    )
    return a_model([linear], {"label": None, "probabilities": 3}, constants={})


def a_quantized_layer() -> bytes:
    nodes = [node("DequantizeLinear", ["q", "scale"], ["w"]), node("MatMul", ["x", "w"], ["y"])]
    return a_model(nodes, {"y": 6}, constants={"q": np.ones((4, 6), np.int8), "scale": np.array(0.1, F32)})


NAMED_LR = {"lr": (TensorProto.FLOAT, ["rows", 6])}


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (a_linear_classifier, r"nothing to train.*LinearClassifier.*use an MLP"),
        (a_branch, r"If.*holds a graph of its own"),
        (weights_elsewhere, r"'w1' are in another file"),
        (a_quantized_layer, r"nothing to train.*DequantizeLinear"),
        (lambda: b"these bytes are no model", "24 bytes|opset 0"),
        (functools.partial(a_classifier, opset=11), "opset 11: training takes 13 and later"),
        (lambda: a_model([*HIDDEN, node("Det", ["h"], ["y"])], {"y": 6}), r"Det.*has no gradient rule"),
        (lambda: a_model([*HIDDEN, node("Relu", ["h"], ["a"])], {"h": 6, "a": 6}), r"2 float outputs \(h, a\)"),
        (lambda: a_model([node("MatMul", ["lr", "w2"], ["y"])], {"y": 3}, inputs=NAMED_LR), "'lr', a name training"),
    ],
)
def test_a_model_that_cannot_be_trained_says_why(build: Any, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        training_step(build())


def test_a_parameter_without_effect_is_refused() -> None:
    nodes = [*HIDDEN, node("Mul", ["none", "extra"], ["zero"]), node("Cast", ["zero"], ["z"], to=TensorProto.INT64)]
    nodes += [node("Cast", ["z"], ["back"], to=TensorProto.FLOAT), node("Add", ["h", "back"], ["y"])]
    model = a_model(nodes, {"y": 6}, constants={**WEIGHTS, "none": np.zeros(6, F32), "extra": np.ones(6, F32)})
    with pytest.raises(UnsupportedModel, match="'extra' has no effect on the loss"):
        training_step(model, trainable=["w1", "extra"])


def test_batch_statistics_are_used_and_their_running_ones_kept() -> None:
    """Against numpy: y = scale (x - mean) / sqrt(var + e) + bias of the batch, running = m running + (1 - m) batch."""
    scales = {"s": np.array([1.0, 2.0, 0.5, 1.5, 1.0, 1.0], F32), "o": np.zeros(6, F32)}
    start = {"mean": np.full(6, 0.3, F32), "var": np.full(6, 2.0, F32)}
    nodes = [*HIDDEN, node("BatchNormalization", ["h", "s", "o", "mean", "var"], ["n"], momentum=0.8), *HEAD]
    nodes[2].input[0] = "n"
    model = a_model(nodes, {"logits": 3}, constants=WEIGHTS | scales | start)
    graph = training_step(model, loss="mse", optimizer=SGD(momentum=0), batch_statistics=True)
    assert {"s", "o", "mean", "var"} <= graph.parameters.keys()
    got = step(graph, lr=0.1, x=X, target=VALUES)
    h = (X @ WEIGHTS["w1"].T + WEIGHTS["b1"]).astype(np.float64)
    np.testing.assert_allclose(got["new.mean"], 0.8 * 0.3 + 0.2 * h.mean(0), rtol=1e-5)
    np.testing.assert_allclose(got["new.var"], 0.8 * 2.0 + 0.2 * h.var(0), rtol=1e-5)
    xhat = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
    d = 2 * ((xhat * scales["s"]) @ WEIGHTS["w2"] + WEIGHTS["b2"] - VALUES) / VALUES.size
    np.testing.assert_allclose(got["new.s"], scales["s"] - 0.1 * ((d @ WEIGHTS["w2"].T) * xhat).sum(0), atol=1e-5)
    dx = d @ WEIGHTS["w2"].T * scales["s"]
    dh = (dx - dx.mean(0) - xhat * (dx * xhat).mean(0)) / np.sqrt(h.var(0) + 1e-5)
    np.testing.assert_allclose(got["new.w1"], WEIGHTS["w1"] - 0.1 * dh.T @ X, atol=1e-5)
