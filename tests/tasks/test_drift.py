"""Counts between agreed edges over uneven devices are those of the pooled rows; what moved is named, and only that."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from onnx import TensorProto, helper
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LinearRegression, LogisticRegression

from edgeml.artifacts import OnnxModel
from edgeml.artifacts import Rows as Table
from edgeml.convert import open_room
from edgeml.errors import DataError
from edgeml.tasks.drift import Drift, Reference, distances, drift, reference
from edgeml.tasks.evaluation import By, evaluation
from edgeml_runtime.wire.manifest import Feature
from tests.tasks.fleet import Rows, conclude, split, sums


@functools.cache
def of_numbers(regressor: bool = False) -> tuple[Reference, np.ndarray]:
    x, y = load_breast_cancer(return_X_y=True)
    x = x.astype(np.float32)
    x[::9, 4] = np.nan
    known = np.nan_to_num(x)
    estimator = (LinearRegression if regressor else LogisticRegression)().fit(known / known.max(axis=0), y)
    model = open_room("sklearn").convert(estimator, {"numeric": x.shape[1]}, source="test")
    return reference(model, Table({"numeric": x})), x


def text_model() -> OnnxModel:
    """Return a graph over `numeric` (n, 1) and `categorical` (n, 2) whose prediction is the number."""
    inputs = [
        helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", 1]),
        helper.make_tensor_value_info("categorical", TensorProto.STRING, ["rows", 2]),
    ]
    node = helper.make_node("Mul", ["numeric", "two"], ["prediction"])
    outputs = [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["rows", 1])]
    two = helper.make_tensor("two", TensorProto.FLOAT, [1], [2.0])
    graph = helper.make_graph([node], "text", inputs, outputs, [two])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    features = tuple(
        Feature(name=name, kind=kind)
        for name, kind in [("size", "numeric"), ("colour", "categorical"), ("shape", "categorical")]
    )
    return OnnxModel(proto.SerializeToString(), "test", features=features)


def texts(n: int = 400, *, red: float = 0.5) -> Rows:
    rng = np.random.default_rng(n)
    colour = np.where(rng.random(n) < red, "red", np.where(rng.random(n) < 0.9, "green", ""))
    shape = rng.choice(["round", "long"], n)
    size = rng.normal(0, 1, (n, 1)).astype(np.float32)
    return {"numeric": size, "categorical": np.stack([colour, shape], axis=1).astype(object)}


def judged(found: Reference, rows: Rows) -> Drift:
    return conclude(drift(found), split(rows)).result()


@pytest.mark.parametrize("regressor", [False, True])
def test_counts_over_ten_devices_are_those_of_the_pooled_rows(regressor: bool) -> None:
    known, x = of_numbers(regressor)
    task = drift(known).task()
    fleet = sums(task, split({"numeric": x}))
    for name, counts in known.counts.items():
        assert np.array_equal(fleet[name], counts), name
    assert fleet["numbers.numeric"][4, -1] == len(x[::9])  # missing values have a bin of their own
    filled = fleet["numbers.numeric"][0, :-1]
    assert filled.max() < 2 * len(x) / 16


def test_rows_like_the_reference_have_not_drifted_and_moved_ones_are_named() -> None:
    known, x = of_numbers()
    rng = np.random.default_rng(1)
    like = x[rng.integers(0, len(x), 300)]
    assert judged(known, {"numeric": like}).drifted == ()
    moved = like.copy()
    moved[:, 3] *= 1.5
    moved[:, 7] = np.nan
    found = judged(known, {"numeric": moved})
    assert set(found.drifted) == {"numeric[3]", "numeric[7]"}
    assert found.features["numeric[7]"].tv == pytest.approx(1.0)
    assert found.features["numeric[3]"].ks > 0.2
    assert found.rows == 300


def test_texts_are_compared_by_category_with_missing_and_others() -> None:
    model = text_model()
    known = reference(model, Table(texts()))
    assert judged(known, texts(300)).drifted == ()
    moved = texts(300, red=0.1)
    moved["categorical"][:40, 1] = "square"
    found = judged(known, moved)
    assert set(found.drifted) == {"colour", "shape"}
    counts = sums(drift(known).task(), split(moved))["texts.categorical.1"]
    assert counts[-1] == 40 and counts.sum() == 300
    assert found.answers is not None and not found.answers.drifted


def test_an_evaluation_tells_groups_apart_by_text() -> None:
    rows = texts(300)
    target = np.zeros(300)
    found = conclude(
        evaluation(text_model(), "regression", by=By("categorical", 0, values=("red", "green"))),
        split({**rows, "target": target}),
    ).result()
    colour, error = rows["categorical"][:, 0], 2 * rows["numeric"][:, 0].astype(np.float64)
    for name, where in (("red", colour == "red"), ("green", colour == "green"), ("other", colour == "")):
        assert found.groups[name].rows == where.sum()
        assert found.metric("rmse", name).value == pytest.approx(np.sqrt(np.mean(error[where] ** 2)), rel=1e-6)


def test_wide_inputs_are_compared_by_the_mean_and_spread_of_a_row() -> None:
    x = np.tile(load_digits().images.reshape(-1, 1, 64), (1, 8, 1)).astype(np.float32)
    node = helper.make_node("Flatten", ["x"], ["y"])
    ends = [
        helper.make_tensor_value_info("x", 1, ["rows", 8, 64]),
        helper.make_tensor_value_info("y", 1, ["rows", 512]),
    ]
    graph = helper.make_graph([node], "wide", ends[:1], ends[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    known = reference(OnnxModel(proto.SerializeToString(), "test"), Table({"x": x}))
    assert list(judged(known, {"x": x[:400]}).features) == ["x[0]", "x[1]"]
    assert set(judged(known, {"x": x[:400] * 0.6}).drifted) == {"x[0]", "x[1]"}


def test_chance_is_what_equal_distributions_rarely_exceed() -> None:
    rng = np.random.default_rng(0)
    share = rng.dirichlet(np.full(16, 5.0))
    reference_counts = rng.multinomial(5000, share)
    found = [distances(reference_counts, rng.multinomial(200, share), ordered=True) for _ in range(400)]
    exceeded = np.mean([one.psi > one.chance for one in found])
    assert 0.005 < exceeded < 0.11


def test_without_rows_there_is_nothing_to_compare() -> None:
    known, x = of_numbers()
    with pytest.raises(DataError, match="no reference rows"):
        reference(known.model, Table({"numeric": x[:0]}))
    study = drift(known)
    with pytest.raises(DataError, match="no device has a row"):
        study.take({name: np.zeros(shape) for name, (_, shape) in study.task().outputs.items()})
