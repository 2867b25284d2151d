"""Pipelines over a fleet: every step fitted on what the steps before it make of the rows, as on pooled rows."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.naive_bayes import MultinomialNB
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PolynomialFeatures, RobustScaler, StandardScaler

from edgeml import convert
from edgeml.errors import UnsupportedModel, UserError
from edgeml.tasks import study
from edgeml_runtime.session import Session
from tests.tasks.fleet import conclude, split
from tests.tasks.pooled import rows_of

NEWTON = LogisticRegression(C=0.5, solver="newton-cholesky", tol=1e-12)
PIPELINES = [
    (make_pipeline(StandardScaler(), NEWTON), "breast_cancer"),
    (make_pipeline(MinMaxScaler(clip=True), PCA(0.9, whiten=True), NEWTON), "wine"),
    (make_pipeline(RobustScaler(), PoissonRegressor(solver="newton-cholesky", tol=1e-12)), "diabetes"),
    (make_pipeline(StandardScaler(with_std=False), PCA(5), StandardScaler(), Ridge(0.1)), "diabetes"),
    (make_pipeline(SimpleImputer(strategy="median"), StandardScaler(), NEWTON), "wine with holes"),
    (make_pipeline(SimpleImputer(), MinMaxScaler(clip=True), MaxAbsScaler(clip=True), Ridge()), "diabetes with holes"),
    (make_pipeline(StandardScaler(), SimpleImputer(strategy="constant"), NEWTON), "breast_cancer with holes"),
    (make_pipeline(TfidfTransformer(), MultinomialNB()), "digits"),
]


@pytest.mark.parametrize("estimator, data", PIPELINES, ids=lambda value: value if isinstance(value, str) else "")
def test_a_pipeline_over_devices_is_that_of_the_pooled_rows_and_converts(estimator: Any, data: str) -> None:
    data, *holes = data.split(" with ")
    x, y = rows_of(data)
    if holes:
        x = np.where(np.arange(x.size).reshape(x.shape) % 11 == 3, np.float32(np.nan), x)
    target = y.astype(np.float64) if data == "diabetes" else y
    classes = () if data == "diabetes" else tuple(range(int(y.max()) + 1))
    asked = study(estimator, features=x.shape[1], classes=classes)
    done = conclude(asked, split({"x": x, "target": target}))
    found = done.result()
    assert not any("left out" in note for note in done.notes)
    wide = x.astype(np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pooled = Pipeline(estimator.steps).fit(wide, y)
    says = pooled.predict(wide) if data == "diabetes" else pooled.predict_proba(wide)
    mine = found.predict(wide) if data == "diabetes" else found.predict_proba(wide)
    assert np.abs(mine - says).max() < 1e-9 * max(1, np.abs(says).max())
    graph = convert.open_room("sklearn").convert(found, {"numeric": x.shape[1]}, source="test")
    given = Session(graph.data).run({"numeric": x})
    only = next(value for value in given.values() if value.size == says.size and value.dtype == np.float32)
    assert np.allclose(only.reshape(says.shape), says, rtol=1e-3, atol=2e-3)


def test_steps_that_are_passed_over_stay_where_they_are() -> None:
    x, y = rows_of("diabetes")
    estimator = make_pipeline("passthrough", StandardScaler(), None, Ridge())
    found = conclude(study(estimator, features=10), split({"x": x, "target": y})).result()
    assert [type(step).__name__ for _name, step in found.steps] == ["str", "StandardScaler", "NoneType", "Ridge"]
    wide = x.astype(np.float64)
    assert np.allclose(found.predict(wide), Pipeline(estimator.steps).fit(wide, y).predict(wide), rtol=1e-12)


def test_the_pipeline_that_was_asked_for_stays_unfitted() -> None:
    estimator = make_pipeline(StandardScaler(), Ridge())
    x, y = rows_of("diabetes")
    conclude(study(estimator, features=10), split({"x": x, "target": y}))
    assert not hasattr(estimator[0], "mean_") and not hasattr(estimator[1], "coef_")


@pytest.mark.parametrize(
    "estimator, complaint",
    [
        (make_pipeline(PolynomialFeatures(), Ridge()), "PolynomialFeatures"),
        (make_pipeline(StandardScaler(), "passthrough"), "must not be passed over"),
        (make_pipeline(KMeans(2, init=np.zeros((2, 4))), Ridge()), "before its last step"),
        (make_pipeline(StandardScaler(), Ridge(positive=True)), "positive=True"),
    ],
    ids=["no form", "no end", "a cluster", "an option"],
)
def test_a_pipeline_that_cannot_be_federated_is_refused_before_any_round(estimator: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        study(estimator, features=4)


def test_a_forest_at_the_end_is_refused_before_any_round() -> None:
    with pytest.raises(UnsupportedModel, match="RandomForestClassifier"):
        study(make_pipeline(StandardScaler(), RandomForestClassifier()), features=4, classes=(0, 1))
