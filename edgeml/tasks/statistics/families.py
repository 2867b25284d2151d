"""The table of estimators that a fleet fits exactly: how each begins, what it honours, how exact it is."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgeml.errors import UnsupportedModel, UserError
from edgeml.tasks.program import Columns
from edgeml.tasks.statistics import linear
from edgeml.tasks.study import Inquiry, Question


@dataclass(frozen=True)
class Family:
    """One estimator: `begin` writes its first question; parameters it neither honours nor may ignore are refused."""

    module: str  # of scikit-learn
    begin: Callable[[Any, Columns], Question]
    target: Literal["", "values", "classes"]
    rounds: str
    precision: float  # largest difference to scikit-learn on the pooled rows, relative to the largest number
    honours: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()  # how a solver goes about it, not where it arrives


_SOLVER = ("copy_X", "max_iter", "tol", "solver", "random_state", "n_jobs", "verbose")
FAMILIES: Mapping[str, Family] = {
    "Ridge": Family(
        module="sklearn.linear_model",
        begin=linear.ridge,
        target="values",
        rounds="2",
        precision=1e-9,
        honours=("alpha", "fit_intercept"),
        ignores=_SOLVER,
    ),
    "LinearRegression": Family(
        module="sklearn.linear_model",
        begin=linear.linear_regression,
        target="values",
        rounds="2",
        precision=1e-9,
        honours=("fit_intercept",),
        ignores=_SOLVER,
    ),
}


def begin(estimator: Any, columns: Columns) -> Inquiry:
    """Return the study that fits `estimator`, an unfitted scikit-learn one or its name, on rows like `columns`.

    Raises UnsupportedModel when its training is no sum over devices, UserError when an option of it is not honoured.
    """
    name = estimator if isinstance(estimator, str) else type(estimator).__name__
    if name not in FAMILIES:
        raise UnsupportedModel(f"{name} is not federated exactly; these are: {', '.join(FAMILIES)}")
    family = FAMILIES[name]
    kind = getattr(importlib.import_module(family.module), name)
    estimator = kind() if isinstance(estimator, str) else copy.deepcopy(estimator)
    _check_options(estimator, kind, family)
    if family.target == "classes" and len(columns.classes) < 2:
        raise UserError(f"{name} tells classes apart: name at least two, columns have {len(columns.classes)}")
    return Inquiry("statistics", family.begin(estimator, columns))


def _check_options(estimator: Any, kind: Any, family: Family) -> None:
    default = kind().get_params(deep=False)
    for option, value in estimator.get_params(deep=False).items():
        free = option in family.honours or option in family.ignores
        if not free and repr(value) != repr(default[option]):
            raise UserError(
                f"{kind.__name__}({option}={value!r}): this option is not federated; leave it at {default[option]!r}, "
                f"or change one of {', '.join(family.honours) or 'none'}"
            )
