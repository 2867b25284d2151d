"""The table of estimators: how each is built, what preprocessing it needs, which settings are worth a try.

name -> Estimator -> scikit-learn estimator for classification or regression
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier, MLPRegressor

from edgeml.artifacts import ModelTask

Settings = dict[str, Any]


@dataclass(frozen=True)
class Estimator:
    """One entry: `first` is tried before any setting that `draw` makes at random."""

    build: Callable[[ModelTask, Mapping[str, Any], int], Any]  # task, settings, seed
    first: Mapping[str, Any]
    draw: Callable[[np.random.Generator], Settings]
    scale: bool  # numeric columns to mean 0 and deviation 1
    impute: bool  # missing numbers to the median; otherwise the estimator takes NaN as it is

    def settings(self, count: int, seed: int) -> list[Settings]:
        """Return up to `count` different settings, always the same for one seed."""
        rng = np.random.default_rng(seed)
        found = [dict(self.first)]
        for _ in range(20 * count):
            if len(found) >= count:
                break
            drawn = {**self.first, **self.draw(rng)}
            found += [drawn] if drawn not in found else []
        return found[:count]


def _linear(task: ModelTask, settings: Mapping[str, Any], seed: int) -> Any:
    if task == "regression":
        return Ridge(alpha=1 / settings["C"])
    return LogisticRegression(max_iter=500, random_state=seed, **settings)


def _forest(task: ModelTask, settings: Mapping[str, Any], seed: int) -> Any:
    kind = RandomForestRegressor if task == "regression" else RandomForestClassifier
    return kind(random_state=seed, n_jobs=1, **settings)


def _boosting(task: ModelTask, settings: Mapping[str, Any], seed: int) -> Any:
    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    return kind(random_state=seed, early_stopping=False, **settings)


def _mlp(task: ModelTask, settings: Mapping[str, Any], seed: int) -> Any:
    kind = MLPRegressor if task == "regression" else MLPClassifier
    return kind(random_state=seed, activation="relu", max_iter=300, n_iter_no_change=15, **settings)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")


def _pick(rng: np.random.Generator, *choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


ESTIMATORS: dict[str, Estimator] = {
    "linear": Estimator(
        build=_linear,
        first={"C": 1.0},
        draw=lambda rng: {"C": _pick(rng, 0.003, 0.01, 0.03, 0.1, 0.3, 3.0, 10.0)},
        scale=True,
        impute=True,
    ),
    "forest": Estimator(
        build=_forest,
        first={"n_estimators": 100, "min_samples_leaf": 1, "max_features": "sqrt"},
        draw=lambda rng: {"min_samples_leaf": _pick(rng, 1, 2, 3, 5), "max_features": _pick(rng, "sqrt", 0.3, 0.6)},
        scale=False,
        impute=True,
    ),
    "boosting": Estimator(
        build=_boosting,
        first={"max_iter": 60, "learning_rate": 0.1, "max_leaf_nodes": 15, "min_samples_leaf": 20},
        draw=lambda rng: {
            "learning_rate": _log_uniform(rng, 0.04, 0.25),
            "max_leaf_nodes": _pick(rng, 7, 15, 31),
            "min_samples_leaf": _pick(rng, 5, 10, 20, 40),
        },
        scale=False,
        impute=False,
    ),
    "mlp": Estimator(
        build=_mlp,
        first={"hidden_layer_sizes": (64,), "alpha": 1e-3, "learning_rate_init": 3e-3},
        draw=lambda rng: {
            "hidden_layer_sizes": _pick(rng, (64,), (128,), (64, 32)),
            "alpha": _log_uniform(rng, 1e-5, 1),
            "learning_rate_init": _log_uniform(rng, 1e-3, 1e-2),
        },
        scale=True,
        impute=True,
    ),
}
FEDERABLE = frozenset({"mlp"})  # what devices can train on: its graph is differentiable
