"""The families that a federation may name: each is one that studies fit, with or without holes in the rows."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_wine

from edgeml.errors import UserError
from edgeml.tasks import study
from edgeml.train.exact import FAMILIES, exact_for, exact_pipeline
from tests.tasks.fleet import conclude, split

OPTIONS = {
    "HistGradientBoostingClassifier": {"max_iter": 2, "max_depth": 2, "max_leaf_nodes": None},
    "HistGradientBoostingRegressor": {"max_iter": 2, "max_depth": 2, "max_leaf_nodes": None},
    "LogisticRegression": {"C": 0.1},
}


@pytest.mark.parametrize("missing", [False, True], ids=["whole", "holes"])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_fleet_fits_every_family_on_all_rows(name: str, missing: bool) -> None:
    x, y = load_wine(return_X_y=True)
    x = x.astype(np.float32)
    if missing:
        x[::9, 2] = np.nan
    family = FAMILIES[name]
    target = y if family.task == "classification" else x[:, 0].astype(np.float64)
    estimator = exact_pipeline(name, family.task, OPTIONS.get(name, {}), missing=missing)
    classes = range(3) if family.task == "classification" else ()
    asked = study(estimator, features=13, classes=classes, name="numeric")
    done = conclude(asked, split({"numeric": x, "target": target}))
    assert not any("left out" in note for note in done.notes)
    assert abs(done.result().score(x, target) - estimator.fit(x, target).score(x, target)) < 0.02


def test_a_family_for_another_task_or_option_is_refused() -> None:
    with pytest.raises(UserError, match="'Ridge' is none that learns classification exactly; choose"):
        exact_pipeline("Ridge", "classification", {})
    with pytest.raises(UserError, match=r"Ridge.*slope"):
        exact_pipeline("Ridge", "regression", {"slope": 1})
    assert not set(exact_for("regression")) & set(exact_for("classification"))
