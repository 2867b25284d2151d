"""Federated over uneven devices equals scikit-learn on the pooled rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, Ridge

from edgeml.errors import DataError, UnsupportedModel, UserError
from edgeml.tasks.program import Columns
from edgeml.tasks.statistics import begin
from tests.tasks.fleet import conclude, split, sums


def diabetes() -> dict[str, np.ndarray]:
    x, y = load_diabetes(return_X_y=True, scaled=False)
    return {"x": x.astype(np.float32), "target": y.astype(np.float64)}


@pytest.mark.parametrize("estimator", [Ridge(0.5), Ridge(fit_intercept=False), LinearRegression()], ids=str)
def test_a_regression_over_ten_devices_is_that_of_the_pooled_rows(estimator: Ridge) -> None:
    rows = diabetes()
    found = conclude(begin(estimator, Columns(10)), split(rows)).result()
    pooled = estimator.fit(rows["x"].astype(np.float64), rows["target"])
    assert np.allclose(found.coef_, pooled.coef_, rtol=1e-9, atol=1e-9)
    assert np.allclose(found.intercept_, pooled.intercept_, rtol=1e-9)
    assert np.allclose(found.predict(rows["x"]), pooled.predict(rows["x"]))


def test_a_study_refuses_sums_that_are_not_its_tasks() -> None:
    study = begin("Ridge", Columns(10))
    given = sums(study.task(), split(diabetes()))
    with pytest.raises(DataError, match=r"sum\.x"):
        study.take({**given, "sum.x": np.full(10, np.nan)})
    with pytest.raises(DataError, match="the task gives"):
        study.take({"rows": given["rows"]})
    with pytest.raises(UserError, match="not done"):
        study.result()


def test_what_is_no_sum_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="RandomForestClassifier"):
        begin(RandomForestClassifier(), Columns(4))
    with pytest.raises(UserError, match="positive=True"):
        begin(Ridge(positive=True), Columns(4))
