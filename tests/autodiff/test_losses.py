"""Every loss: its gradient by finite differences, its options by what they must be equal to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.artifacts import TrainingGraph
from edgeml.autodiff import LOSSES, SGD, Options, training_step
from edgeml.errors import UserError
from edgeml_runtime.session import Session

F32, RNG, ROWS, CLASSES = np.float32, np.random.default_rng(5), 9, 4
X = RNG.normal(size=(ROWS, 3)).astype(F32)
W, B = RNG.normal(size=(3, CLASSES)).astype(F32), RNG.normal(size=CLASSES).astype(F32)
LABELS, VALUES = RNG.integers(0, CLASSES, ROWS), RNG.normal(size=(ROWS, CLASSES)).astype(F32)
COUNTS = np.array([1, 2, 1, 3, 1, 1, 2, 1, 1])
PLAIN = SGD(momentum=0)
OPTIONS: dict[str, list[Options]] = {
    "softmax_cross_entropy": [
        Options(),
        Options(weighted=True),
        Options(class_weights=(0.5, 1.0, 2.0, 0.1), label_smoothing=0.2),
        Options(weighted=True, class_weights=(0.5, 1.0, 2.0, 0.1)),
    ],
    "binary_cross_entropy": [Options(), Options(weighted=True)],
    "mse": [Options(), Options(weighted=True)],
    "mae": [Options(), Options(weighted=True)],
    "huber": [Options(delta=0.7), Options(weighted=True)],
    "pinball": [Options(quantile=0.1), Options(quantile=0.9, weighted=True)],
    "custom": [Options(output="cost")],
}
EVERY = [(loss, i) for loss, options in OPTIONS.items() for i in range(len(options))]


def a_model(*extra: Any, outputs: tuple[str, ...] = ("y",), inputs: tuple[str, ...] = ("x",)) -> bytes:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"]), *extra]
    shapes = {"x": ["rows", 3], "target": ["rows", CLASSES], "y": ["rows", CLASSES], "p": ["rows", CLASSES], "cost": []}
    given = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in inputs]
    results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name]) for name in outputs]
    weights = [numpy_helper.from_array(W, "w"), numpy_helper.from_array(B, "b")]
    graph = helper.make_graph(nodes, "model", given, results, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def with_a_cost() -> bytes:
    """The mean fourth power of what is left, by the model's own operators."""
    left = helper.make_node("Sub", ["y", "target"], ["left"])
    square, fourth = (helper.make_node("Mul", [a, a], [b]) for a, b in (("left", "square"), ("square", "fourth")))
    cost = helper.make_node("ReduceMean", ["fourth"], ["cost"], keepdims=0)
    return a_model(left, square, fourth, cost, outputs=("y", "cost"), inputs=("x", "target"))


def graph_of(loss: str, options: Options, **more: Any) -> TrainingGraph:
    model = with_a_cost() if loss == "custom" else a_model()
    return training_step(model, loss=loss, options=options, optimizer=PLAIN, **more)


def target_of(loss: str) -> np.ndarray:
    if loss == "softmax_cross_entropy":
        return LABELS
    return (VALUES > 0).astype(F32) if loss == "binary_cross_entropy" else VALUES


def run(graph: TrainingGraph, *, lr: float = 1.0, **feeds: Any) -> dict[str, np.ndarray]:
    return Session(graph.data).run({**graph.parameters, **feeds, "lr": np.array(lr, F32)})


def feeds_of(loss: str, options: Options, rows: np.ndarray | None = None) -> dict[str, np.ndarray]:
    chosen = np.arange(ROWS) if rows is None else rows
    weights = {"weight": COUNTS[chosen].astype(F32)} if options.weighted else {}
    return {"x": X[chosen], "target": target_of(loss)[chosen], **weights}


def test_every_loss_has_its_options_here() -> None:
    assert OPTIONS.keys() == LOSSES.keys()


@pytest.mark.parametrize(("loss", "index"), EVERY)
def test_every_loss_and_its_gradient_agree(loss: str, index: int) -> None:
    options = OPTIONS[loss][index]
    graph, feeds = graph_of(loss, options, trainable=["b"]), feeds_of(loss, options)
    slope = B - run(graph, **feeds)["new.b"]
    for i in range(CLASSES):
        moved = np.zeros(CLASSES, F32)
        moved[i] = 0.01
        up, down = (float(run(graph, **feeds, b=B + by)["loss"]) for by in (moved, -moved))
        assert (up - down) / 0.02 == pytest.approx(slope[i], abs=4e-3 * float(1 + abs(slope).max()))


@pytest.mark.parametrize("loss", [name for name, loss in LOSSES.items() if "weighted" in loss.takes])
def test_a_row_of_weight_n_counts_like_n_rows(loss: str) -> None:
    weighted = run(graph_of(loss, Options(weighted=True)), **feeds_of(loss, Options(weighted=True)))
    repeated = run(graph_of(loss, Options()), **feeds_of(loss, Options(), np.repeat(np.arange(ROWS), COUNTS)))
    for name, value in repeated.items():
        np.testing.assert_allclose(weighted[name], value, rtol=1e-5, atol=1e-6)


def test_the_weight_of_a_class_is_that_of_its_rows() -> None:
    by_class = (0.5, 1.0, 2.0, 0.1)
    loss = "softmax_cross_entropy"
    one = run(graph_of(loss, Options(class_weights=by_class)), **feeds_of(loss, Options()))
    weights = np.array(by_class, F32)[LABELS]
    other = run(graph_of(loss, Options(weighted=True)), x=X, target=LABELS, weight=weights)
    for name, value in other.items():
        np.testing.assert_allclose(one[name], value, rtol=1e-5, atol=1e-6)


def test_label_smoothing_is_cross_entropy_with_a_softened_target() -> None:
    smooth, logits = 0.3, X @ W + B
    logp = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    soft = (1 - smooth) * np.eye(CLASSES)[LABELS] + smooth / CLASSES
    got = run(graph_of("softmax_cross_entropy", Options(label_smoothing=smooth)), x=X, target=LABELS)
    assert got["loss"] == pytest.approx(-(soft * logp).sum(1).mean(), rel=1e-5)


def test_binary_cross_entropy_starts_before_the_sigmoid_and_stays_finite() -> None:
    model = a_model(helper.make_node("Sigmoid", ["y"], ["p"]), outputs=("p",))
    graph = training_step(model, loss="binary_cross_entropy", optimizer=PLAIN)
    got = run(graph, lr=0.01, x=1000 * X, target=target_of("binary_cross_entropy"))
    assert all(np.isfinite(value).all() for value in got.values()) and got["loss"] > 50


@pytest.mark.parametrize(
    ("loss", "options", "message"),
    [
        ("mse", {"label_smoothing": 0.1}, "mse has no option 'label_smoothing'"),
        ("softmax_cross_entropy", {"class_weights": (1.0, 2.0)}, "2 class_weights for 4 classes"),
        ("custom", {}, "needs output="),
        ("custom", {"output": "nothing"}, "no float output 'nothing': the model has y, cost"),
        ("huber", {"delta": 0.0}, "delta 0.0 must be above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(loss: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        graph_of(loss, Options(**options))
