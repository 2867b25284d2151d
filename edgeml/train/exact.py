"""Estimators that a fleet fits exactly, by the name that `family` has: unfitted, with the preprocessing they want.

What makes them sums over devices is `edgeml.tasks.study`'s; here is only which there are, and for which task.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import GammaRegressor, LinearRegression, LogisticRegression, PoissonRegressor, Ridge
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from edgeml.artifacts import ModelTask
from edgeml.errors import UserError


@dataclass(frozen=True)
class Exact:
    """One family: its class, what it learns, and whether its penalty wants columns of one scale."""

    kind: type
    task: ModelTask
    scaled: bool = False


FAMILIES: Mapping[str, Exact] = {
    one.kind.__name__: one
    for one in (
        Exact(LogisticRegression, "classification", scaled=True),
        Exact(GaussianNB, "classification"),
        Exact(MultinomialNB, "classification"),
        Exact(BernoulliNB, "classification"),
        Exact(LinearDiscriminantAnalysis, "classification"),
        Exact(QuadraticDiscriminantAnalysis, "classification"),
        Exact(HistGradientBoostingClassifier, "classification"),
        Exact(Ridge, "regression", scaled=True),
        Exact(LinearRegression, "regression"),
        Exact(PoissonRegressor, "regression", scaled=True),
        Exact(GammaRegressor, "regression", scaled=True),
        Exact(HistGradientBoostingRegressor, "regression"),
    )
}


def exact_for(task: ModelTask) -> list[str]:
    """Return the families that learn `task`.

    >>> exact_for("regression")[:2]
    ['Ridge', 'LinearRegression']
    """
    return [name for name, one in FAMILIES.items() if one.task == task]


def exact_pipeline(family: str, task: ModelTask, options: Mapping[str, Any]) -> Pipeline:
    """Return the unfitted pipeline of `family` with these options; raise UserError when there is none, or no option."""
    found = FAMILIES.get(family)
    if found is None or found.task != task:
        raise UserError(f"family {family!r} is none that learns {task} exactly; choose of {', '.join(exact_for(task))}")
    try:
        estimator = found.kind(**options)
    except TypeError as error:
        raise UserError(f"{family}: {error}") from error
    steps = [("scale", StandardScaler())] if found.scaled else []
    return Pipeline([*steps, ("estimator", estimator)])
