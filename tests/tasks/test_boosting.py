"""Boosted trees over uneven devices are those of the pooled rows, and those of scikit-learn from the same edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import GradientBoostingRegressor, HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgeml.convert import open_room
from edgeml.errors import DataError, UnsupportedModel, UserError
from edgeml.tasks import binning, boosting, study
from edgeml.tasks.program import Columns, Program
from edgeml_runtime.session import Session
from tests.tasks.fleet import Rows, answer, conclude, split, sums

CLASSIFIER = HistGradientBoostingClassifier(max_iter=6, max_leaf_nodes=None, max_depth=3, l2_regularization=0.5)
REGRESSOR = HistGradientBoostingRegressor(max_iter=6, max_leaf_nodes=None, max_depth=3, min_samples_leaf=5)


def rows_of(load: Any, *, missing: bool = False) -> Rows:
    x, y = load(return_X_y=True)
    x = x.astype(np.float32)
    if missing:
        x[::7, 1], x[::5, 2] = np.nan, np.nan
    return {"x": x, "target": y.astype(np.float64 if load is load_diabetes else np.int64)}


CASES = {
    "regression": (REGRESSOR, rows_of(load_diabetes), ()),
    "regression, missing": (REGRESSOR, rows_of(load_diabetes, missing=True), ()),
    "binary": (CLASSIFIER, rows_of(load_breast_cancer), ("0 malignant", "1 benign")),
    "binary, missing": (CLASSIFIER, rows_of(load_breast_cancer, missing=True), (0, 1)),
    "multiclass": (CLASSIFIER, rows_of(load_iris), (0, 1, 2)),
}
every_case = pytest.mark.parametrize("case", CASES)


def columns_of(case: str) -> Columns:
    _, rows, classes = CASES[case]
    return Columns(rows["x"].shape[1], classes=classes)


@every_case
def test_trees_over_ten_devices_are_those_of_the_pooled_rows(case: str) -> None:
    estimator, rows, _ = CASES[case]
    fleet = conclude(boosting.begin(estimator, columns_of(case)), split(rows)).result()
    pooled = conclude(boosting.begin(estimator, columns_of(case)), [rows]).result()
    for one, other in zip(fleet._predictors, pooled._predictors, strict=True):
        assert [tree.nodes.tobytes() for tree in one] == [tree.nodes.tobytes() for tree in other]
    assert np.array_equal(fleet._baseline_prediction, pooled._baseline_prediction)


@every_case
def test_trees_from_the_same_edges_are_those_of_scikit_learn(case: str) -> None:
    estimator, rows, classes = CASES[case]
    target = np.array(classes)[rows["target"]] if classes else rows["target"]
    theirs = type(estimator)(**estimator.get_params()).fit(rows["x"], target)
    edges = theirs._bin_mapper.bin_thresholds_
    ours = conclude(boosting.begin(estimator, columns_of(case), edges=edges), split(rows)).result()
    if classes:
        assert np.allclose(ours.predict_proba(rows["x"]), theirs.predict_proba(rows["x"]), atol=1e-6)
        assert (ours.predict(rows["x"]) == theirs.predict(rows["x"])).all()
    else:
        assert np.allclose(ours.predict(rows["x"]), theirs.predict(rows["x"]), rtol=1e-6)
    assert ours.get_params() == estimator.get_params()


@every_case
def test_the_fitted_estimator_converts_as_any_other(case: str) -> None:
    estimator, rows, classes = CASES[case]
    made = conclude(boosting.begin(estimator, columns_of(case)), split(rows)).result()
    model = open_room("sklearn").convert(made, {"numeric": rows["x"].shape[1]}, source="test")
    said = Session(model.data).run({"numeric": rows["x"]})
    if classes:
        assert np.allclose(said["probabilities"], made.predict_proba(rows["x"]), atol=1e-5)
    else:
        assert np.allclose(said["prediction"][:, 0], made.predict(rows["x"]), rtol=1e-5)


def test_it_is_a_statistic_by_itself_and_behind_a_scaler() -> None:
    rows = CASES["binary"][1]
    plain = conclude(study(CLASSIFIER, features=30, classes=(0, 1)), split(rows)).result()
    behind = conclude(study(make_pipeline(StandardScaler(), CLASSIFIER), features=30, classes=(0, 1)), split(rows))
    agree = behind.result().predict(rows["x"]) == plain.predict(rows["x"])
    assert agree.mean() > 0.99


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), devices=st.integers(2, 6), classes=st.sampled_from([0, 2, 3]))
def test_any_rows_divided_anyhow_grow_the_same_trees(seed: int, devices: int, classes: int) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice([rng.normal(), 0.0, 1.0, np.nan, 1e6], (40, 2)).astype(np.float32)  # ties everywhere
    rows = {"x": x, "target": rng.integers(0, classes, 40) if classes else rng.choice([0.1, -3.0, 1e4], 40)}
    names = tuple(range(classes))
    kind = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    estimator = kind(max_iter=2, max_depth=2, min_samples_leaf=2, max_bins=4)
    place = rng.integers(0, devices, 40)
    fleet = [{name: array[place == device] for name, array in rows.items()} for device in range(devices)]
    one, other = (
        conclude(boosting.begin(estimator, Columns(2, classes=names)), shares).result() for shares in (fleet, [rows])
    )
    found = [[tree.nodes.tobytes() for trees in made._predictors for tree in trees] for made in (one, other)]
    assert found[0] == found[1]


def test_training_lowers_the_loss_that_it_reports() -> None:
    made = conclude(boosting.begin(CLASSIFIER, columns_of("binary")), split(CASES["binary"][1])).result()
    assert (np.diff(made.train_score_) > 0).all() and len(made.train_score_) == 6


def test_a_node_that_is_not_split_is_asked_no_more() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 3)).astype(np.float32)
    rows = {"x": x, "target": (x[:, 0] > 1).astype(np.int64)}  # one side is pure at once
    current = boosting.begin(HistGradientBoostingClassifier(max_iter=1, max_depth=4), Columns(3, classes=(0, 1)))
    shapes = []
    while not current.done:
        shapes.append(current.task().outputs.get("count", ("", (1, 0)))[1][1])
        current = current.take(sums(current.task(), [rows]))
    assert max(shapes) < 8  # the fourth level has room for as many


def test_it_ends_when_no_split_gains_anything() -> None:
    rows = {"x": np.zeros((40, 2), np.float32), "target": np.arange(40) % 2}
    ended = conclude(boosting.begin(CLASSIFIER, Columns(2, classes=(0, 1))), split(rows))
    assert "0 of 6 trees" in ended.notes[0]
    assert np.allclose(ended.result().predict_proba(rows["x"]), 0.5)


def test_edges_have_about_equal_counts_between_them_and_keep_few_values_apart() -> None:
    rng = np.random.default_rng(3)
    x = np.stack([rng.lognormal(0, 3, 4000), rng.integers(-3, 4, 4000), rng.normal(1e4, 1e-1, 4000)], axis=1)
    x = x.astype(np.float32).astype(np.float64)
    edges = binning.universal_edges(3)
    for _ in range(4):
        bins = binning.bins_of(x, edges)
        counts = np.stack([np.bincount(column, minlength=edges.shape[1] + 2) for column in bins.T])
        edges, before = binning.refined(edges, counts), edges
    found = binning.equal_counts(before, counts, bins=32)
    assert len(found[1]) == 6 and not binning.too_wide(before, counts, bins=32)
    for column, one in ((0, found[0]), (2, found[2])):
        held = np.bincount(np.searchsorted(one, x[:, column]), minlength=32)
        assert held.max() < 2 * 4000 / 32, held


@pytest.mark.parametrize("closed", ["right", "left"])
def test_bins_in_the_graph_are_those_of_searchsorted(closed: binning.Closed) -> None:
    edges = binning.padded([np.array([-1.0, 0.0, 2.5]), np.array([0.5]), np.arange(7.0)])
    program = Program(Columns(3), missing=True)
    bins = binning.emit_bins(program.e, program.x, program.parameter("edges", edges), shape=edges.shape, closed=closed)
    program.output("counts", binning.emit_counts(program.e, bins, features=3, size=9), (3, 9))
    x = np.array([[np.nan, 0.5, 6], [-1, -1e30, 7], [0, 1e30, 0], [2.5, 0.4, -1], [9, 0.6, 3]], np.float32)
    expected = binning.bins_of(x.astype(np.float64), edges, closed)
    counts = answer(program.task("statistics", "test"), {"x": x})["counts"]
    assert np.array_equal(counts, np.stack([np.bincount(column, minlength=9) for column in expected.T]))


def test_what_is_not_federated_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="GradientBoostingRegressor"):
        boosting.begin(GradientBoostingRegressor(), Columns(2))
    with pytest.raises(UserError, match="loss='gamma'"):
        boosting.begin(HistGradientBoostingRegressor(loss="gamma"), Columns(2))
    with pytest.raises(UserError, match="max_leaf_nodes=7"):
        boosting.begin(HistGradientBoostingRegressor(max_leaf_nodes=7), Columns(2))
    with pytest.raises(UserError, match="at least two"):
        boosting.begin(CLASSIFIER, Columns(2))
    with pytest.raises(UserError, match="max_bins=255"):
        boosting.begin(REGRESSOR, Columns(1), edges=[np.arange(300.0)])
    with pytest.raises(DataError, match="no device has a row"):
        rows = {"x": np.zeros((3, 1), np.float32), "target": np.full(3, np.nan)}
        conclude(boosting.begin(REGRESSOR, Columns(1)), [rows])
