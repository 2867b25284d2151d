"""Pruned forests are smaller, answer within the bound on rows that were not priced, and load."""

import numpy as np
import pytest
from sklearn import ensemble
from sklearn.datasets import load_diabetes, load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgeml.artifacts import Rows, Skipped
from edgeml.convert.sklearn import convert
from edgeml.graph import load
from edgeml.graph.trees import visits
from edgeml.quantize import Options, quantize
from edgeml_runtime.session import Session

CLASSIFIERS = {
    "forest": ensemble.RandomForestClassifier(20, random_state=0),
    "extra trees": ensemble.ExtraTreesClassifier(20, random_state=0),
    "boosting": ensemble.GradientBoostingClassifier(n_estimators=15, random_state=0),
    "behind a scaler": make_pipeline(StandardScaler(), ensemble.RandomForestClassifier(20, random_state=0)),
}


def depth_of(data: bytes) -> float:
    return sum(visits(node) for node in load(data).graph.node if node.op_type.startswith("TreeEnsemble"))


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_gets_smaller_and_keeps_its_accuracy_on_rows_that_were_not_priced(name):
    rows, target = load_digits(return_X_y=True)
    rows = rows.astype(np.float32)
    estimator = CLASSIFIERS[name].fit(rows[:1200], target[:1200])
    model = convert(estimator, {"numeric": 64}, source=name)
    options = Options(metric="accuracy", task="classification", max_drop=0.04)
    full, pruned = quantize(model, Rows({"numeric": rows[:1200]}, target[:1200]), ["forest-pruned"], options=options)
    assert pruned.recipe == "forest-pruned"
    assert len(pruned.model.data) < 0.95 * len(full.model.data)
    assert depth_of(pruned.model.data) < depth_of(full.model.data)
    before, after = (Session(each.model.data).run({"numeric": rows[1200:]}) for each in (full, pruned))
    assert {k: v.dtype for k, v in before.items()} == {k: v.dtype for k, v in after.items()}
    assert (after["label"] == target[1200:]).mean() > (before["label"] == target[1200:]).mean() - 0.06


def test_a_regressor_is_held_to_its_error_and_missing_values_take_their_side():
    rows, target = load_diabetes(return_X_y=True)
    rows = rows.astype(np.float32)
    rows[::9, 2] = np.nan
    estimator = ensemble.HistGradientBoostingRegressor(max_iter=30, random_state=0).fit(rows, target)
    model = convert(estimator, {"numeric": 10}, source="diabetes")
    options = Options(metric="rmse", task="regression", max_drop=0.1)
    made = quantize(model, Rows({"numeric": rows}, target.astype(np.float32)), ["forest-pruned"], options=options)[1]
    found = Session(made.model.data).run({"numeric": rows})["prediction"][:, 0]
    full = estimator.predict(rows)
    rmse = [float(np.sqrt(np.mean((answer - target) ** 2))) for answer in (full, found)]
    assert rmse[1] - rmse[0] < 0.1 * target.std()
    assert len(made.model.data) < len(model.data)


def test_what_cannot_lose_anything_is_skipped_with_the_share_that_stays():
    rows, target = load_digits(return_X_y=True)
    rows = rows.astype(np.float32)
    estimator = ensemble.GradientBoostingClassifier(n_estimators=2, max_depth=1, random_state=0).fit(rows, target)
    model = convert(estimator, {"numeric": 64}, source="stumps")
    options = Options(metric="accuracy", task="classification", max_drop=0.0)
    made = quantize(model, Rows({"numeric": rows}, target), ["forest-pruned"], options=options)[1]
    assert isinstance(made, Skipped)
    assert "of the bytes" in made.reason
