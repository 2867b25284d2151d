"""Dropout by a counter: the same mask in numpy, in the graph, and in the task that a device runs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeml.artifacts import TrainingGraph
from edgeml.autodiff import SGD, training_step
from edgeml.autodiff.dropout import mask
from edgeml.errors import UnsupportedModel, UserError
from edgeml.tasks import training
from edgeml_runtime.session import Session

node = helper.make_node
F32 = np.float32
RNG = np.random.default_rng(2)
X, TARGET = RNG.normal(size=(12, 4)).astype(F32), RNG.normal(size=(12, 2)).astype(F32)
W = {"w1": RNG.normal(size=(4, 6)).astype(F32), "w2": RNG.normal(size=(6, 2)).astype(F32)}
RATIO = 0.4


def a_model(*, training_mode: bool | None = None, extra: str = "x") -> bytes:
    """x w1 -> tanh -> (Dropout) -> w2; a Dropout that trains, one that does not, or none (None)."""
    constants = {**W, "r": np.array(RATIO, F32), "t": np.array(bool(training_mode))}
    nodes = [node("MatMul", [extra, "w1"], ["m"]), node("Tanh", ["m"], ["h"])]
    if training_mode is not None:
        nodes.append(node("Dropout", ["h", "r", "t"], ["d"], name="drop"))
    nodes.append(node("MatMul", ["d" if training_mode is not None else "h", "w2"], ["prediction"]))
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(extra, TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def gradients(draw: int) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients of the model above in float64, with the mask of `draw` on its hidden layer."""
    x, w1, w2 = X.astype(float), W["w1"].astype(float), W["w2"].astype(float)
    scale = mask((12, 6), ratio=RATIO, draw=draw, layer=0) / (1 - RATIO if draw >= 0 else 1)
    h = np.tanh(x @ w1)
    off = (h * scale) @ w2 - TARGET
    dz = 2 * off / off.size
    dh = dz @ w2.T * scale * (1 - h * h)
    return float((off**2).mean()), {"w1": x.T @ dh, "w2": (h * scale).T @ dz}


def one_step(graph: TrainingGraph, draw: int) -> dict[str, np.ndarray]:
    feeds = {**graph.parameters, "x": X, "target": TARGET, "lr": np.array(1.0, F32), "draw": np.array(draw)}
    return Session(graph.data).run(feeds)


@pytest.mark.parametrize("draw", [0, 7, 2**40 + 3, -1])
@pytest.mark.parametrize("inserted", [True, False])
def test_a_step_drops_what_the_counter_says(draw: int, inserted: bool) -> None:
    model = a_model() if inserted else a_model(training_mode=True)
    graph = training_step(model, loss="mse", optimizer=SGD(momentum=0), dropout={"h": RATIO} if inserted else None)
    got, (loss, slopes) = one_step(graph, draw), gradients(draw)
    assert got["loss"] == pytest.approx(loss, rel=1e-5)
    for name, slope in slopes.items():
        np.testing.assert_allclose(W[name] - got[f"new.{name}"], slope, atol=2e-6)


def test_a_dropout_that_does_not_train_stays_an_identity() -> None:
    graph = training_step(a_model(training_mode=False), loss="mse", optimizer=SGD(momentum=0))
    assert "draw" not in Session(graph.data).inputs
    got = Session(graph.data).run({**graph.parameters, "x": X, "target": TARGET, "lr": np.array(1.0, F32)})
    assert got["loss"] == pytest.approx(gradients(-1)[0], rel=1e-5)


def test_two_layers_drop_different_elements_and_their_share() -> None:
    many = [mask((100, 100), ratio=0.3, draw=draw, layer=layer) for draw in (0, 1, 2**20) for layer in (0, 1)]
    for one in many:
        assert one.mean() == pytest.approx(0.7, abs=0.02)
        assert one.mean(axis=0).std() < 0.08 and one.mean(axis=1).std() < 0.08  # a fair coin: 0.046
    for i, one in enumerate(many):
        for other in many[:i]:
            assert np.corrcoef(one.ravel(), other.ravel())[0, 1] == pytest.approx(0, abs=0.04)


@given(draw=st.integers(0, 2**51), layer=st.integers(0, 50), ratio=st.floats(0.05, 0.95))
def test_any_draw_keeps_about_its_share(draw: int, layer: int, ratio: float) -> None:
    kept = mask((4000,), ratio=ratio, draw=draw, layer=layer)
    assert abs(kept.mean() - (1 - ratio)) < 6 * np.sqrt(ratio * (1 - ratio) / 4000)
    assert np.array_equal(kept, mask((4000,), ratio=ratio, draw=draw, layer=layer))


def test_a_task_drops_other_elements_in_every_batch_and_none_in_the_losses_it_reports() -> None:
    graph = training_step(a_model(), loss="mse", optimizer=SGD(momentum=0), dropout={"h": RATIO})
    plain = training_step(a_model(), loss="mse", optimizer=SGD(momentum=0))
    feeds = {**graph.parameters, "x": X, "target": TARGET, "lr": np.array(0.1, F32)}

    def answers(step: TrainingGraph, seed: int) -> dict[str, np.ndarray]:
        return Session(training(step, epochs=2, batch_size=4).data).run({**feeds, "seed": np.array(seed)})

    one, again, other, without = answers(graph, 1), answers(graph, 1), answers(graph, 2), answers(plain, 1)
    assert one["loss.before"] == pytest.approx(float(without["loss.before"]), rel=1e-6)
    np.testing.assert_array_equal(one["delta.w1"], again["delta.w1"])
    for another in (other, without):
        assert abs(one["delta.w1"] - another["delta.w1"]).max() > 1e-4


@pytest.mark.parametrize(
    ("ratios", "message"),
    [({"nothing": 0.5}, "'nothing', no tensor of the model"), ({"h": 1.0}, r"ratio 1\.0: choose a number")],
)
def test_a_wrong_name_or_ratio_says_what_to_change(ratios: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_step(a_model(), loss="mse", dropout=ratios)


def test_a_model_that_has_an_input_of_that_name_is_told_to_rename_it() -> None:
    with pytest.raises(UnsupportedModel, match=r"'draw'.*rename it"):
        training_step(a_model(extra="draw"), loss="mse", dropout={"h": 0.5})
