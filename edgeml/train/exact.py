"""Estimators that a fleet fits exactly, by the name that `family` has: unfitted, with the preprocessing they want.

What makes them sums over devices is `edgeml.tasks.study`'s; here is only which there are, and for which task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ElasticNet,
    GammaRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
)
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from edgeml.artifacts import ModelTask
from edgeml.errors import UserError


@dataclass(frozen=True)
class Exact:
    """One family: its class, what it learns, whether its penalty wants columns of one scale, and if it knows holes."""

    kind: type
    task: ModelTask
    scaled: bool = False
    takes_missing: bool = False


FAMILIES: Mapping[str, Exact] = {
    one.kind.__name__: one
    for one in (
        Exact(LogisticRegression, "classification", scaled=True),
        Exact(GaussianNB, "classification"),
        Exact(MultinomialNB, "classification"),
        Exact(BernoulliNB, "classification"),
        Exact(LinearDiscriminantAnalysis, "classification"),
        Exact(QuadraticDiscriminantAnalysis, "classification"),
        Exact(HistGradientBoostingClassifier, "classification", takes_missing=True),
        Exact(Ridge, "regression", scaled=True),
        Exact(LinearRegression, "regression"),
        Exact(Lasso, "regression", scaled=True),
        Exact(ElasticNet, "regression", scaled=True),
        Exact(PoissonRegressor, "regression", scaled=True),
        Exact(GammaRegressor, "regression", scaled=True),
        Exact(HistGradientBoostingRegressor, "regression", takes_missing=True),
    )
}


def exact_for(task: ModelTask) -> list[str]:
    """Return the families that learn `task`.

    >>> exact_for("regression")[:2]
    ['Ridge', 'LinearRegression']
    """
    return [name for name, one in FAMILIES.items() if one.task == task]


def exact_pipeline(family: str, task: ModelTask, options: Mapping[str, Any], *, missing: bool = False) -> Pipeline:
    """Return the unfitted pipeline of `family` with these options, medians in place of `missing` numbers if need be.

    Raises UserError when there is no such family, or no such option.
    """
    found = FAMILIES.get(family)
    if found is None or found.task != task:
        raise UserError(f"family {family!r} is none that learns {task} exactly; choose of {', '.join(exact_for(task))}")
    try:
        estimator = found.kind(**options)
    except TypeError as error:
        raise UserError(f"{family}: {error}") from error
    fill = [("impute", SimpleImputer(strategy="median"))] if missing and not found.takes_missing else []
    scale = [("scale", StandardScaler())] if found.scaled else []
    return Pipeline([*fill, *scale, ("estimator", estimator)])
