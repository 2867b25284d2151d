"""Rows through preprocessing into an estimator, as one scikit-learn pipeline over columns by position.

    Estimator, Rows -> fit_pipeline -> TablePipeline -> answers(rows) -> Answers

The columns of `numeric` come first, then those of `categorical`. All numbers are float32 from end to end: the
thresholds and scales that are learned are then the ones a float32 graph can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from edgeml.artifacts import Answers, ModelTask, Rows
from edgeml.train.estimators import Estimator
from edgeml_runtime.wire.manifest import CATEGORICAL, NUMERIC


@dataclass(frozen=True)
class TablePipeline:
    """A fitted scikit-learn pipeline that takes `Rows`; `convert` reads `sklearn`, everyone else asks `answers`."""

    sklearn: Pipeline
    task: ModelTask
    classes: int  # 0 for regression

    def answers(self, rows: Rows) -> Answers:
        """Return what the pipeline says about `rows`, in scikit-learn's own arithmetic."""
        if self.task == "regression":
            predicted = np.asarray(self.sklearn.predict(matrix(rows)), dtype=np.float64)
            return Answers(None, predicted.reshape(-1, 1))
        found = np.asarray(self.sklearn.predict_proba(matrix(rows)), dtype=np.float64)
        scores = np.zeros((len(found), self.classes))
        scores[:, self.sklearn.classes_] = found
        return Answers(scores.argmax(axis=1).astype(np.int64), scores)


def fit_pipeline(
    estimator: Estimator, settings: Mapping[str, Any], rows: Rows, *, task: ModelTask, classes: int, seed: int
) -> TablePipeline:
    """Return the pipeline of one estimator with these settings, fitted on `rows`."""
    assert rows.target is not None
    final = estimator.build(task, settings, seed)
    pipeline = Pipeline([*_preprocessing(estimator, rows), ("estimator", final)])
    if isinstance(final, MLPRegressor):
        _fit_in_own_units(pipeline, final, rows)
    else:
        pipeline.fit(matrix(rows), rows.target)
    return TablePipeline(pipeline, task, classes)


def matrix(rows: Rows) -> Any:
    """Return the rows as scikit-learn takes them: one array, or a frame when numbers and texts stand side by side."""
    arrays = [rows.inputs[name] for name in (NUMERIC, CATEGORICAL) if name in rows.inputs]
    if len(arrays) == 1:
        return arrays[0]
    frames = [pd.DataFrame(array) for array in arrays]
    return pd.concat(frames, axis=1, ignore_index=True)


def _preprocessing(estimator: Estimator, rows: Rows) -> list[tuple[str, Any]]:
    numeric: list[tuple[str, Any]] = []
    if estimator.impute:
        numeric.append(("impute", SimpleImputer(strategy="median", keep_empty_features=True)))
    if estimator.scale:
        numeric.append(("scale", StandardScaler()))
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False, dtype=np.float32)
    if CATEGORICAL not in rows.inputs:
        return numeric
    if NUMERIC not in rows.inputs:
        return [("one_hot", one_hot)]
    first = rows.inputs[NUMERIC].shape[1]
    last = first + rows.inputs[CATEGORICAL].shape[1]
    sides = [
        (NUMERIC, Pipeline(numeric) if numeric else "passthrough", list(range(first))),
        (CATEGORICAL, one_hot, list(range(first, last))),
    ]
    return [("columns", ColumnTransformer(sides, sparse_threshold=0))]


def _fit_in_own_units(pipeline: Pipeline, network: MLPRegressor, rows: Rows) -> None:
    """Fit a network on the standardized target, then fold the target's scale into its last layer.

    `target_scale_` (mean, deviation) tells a converter how to take it out again: gradients of a loss in
    the target's own units are larger by the square of the deviation, and training them diverges.
    """
    assert rows.target is not None
    mean, deviation = float(np.mean(rows.target)), float(np.std(rows.target)) or 1.0
    pipeline.fit(matrix(rows), ((rows.target - mean) / deviation).astype(np.float32))
    network.target_scale_ = (mean, deviation)
    network.coefs_[-1] = network.coefs_[-1] * np.float32(deviation)
    network.intercepts_[-1] = network.intercepts_[-1] * np.float32(deviation) + np.float32(mean)
