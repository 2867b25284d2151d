"""Estimators that only stand around another one: taken off before converting.

GridSearchCV(pipeline) -> unwrapped -> the pipeline that it refitted
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.ensemble import VotingClassifier
from sklearn.feature_selection import RFE
from sklearn.feature_selection._base import SelectorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection._search import BaseSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.semi_supervised import SelfTrainingClassifier

from edgeml.errors import UnsupportedModel

WITHIN = {BaseSearchCV: "best_estimator_", SelfTrainingClassifier: "estimator_", FrozenEstimator: "estimator"}


def unwrapped(estimator: Any) -> Any:
    """Return what answers in the place of `estimator`: the same object where nothing stands around it.

    Steps of a pipeline are unwrapped too. A selector that predicts (RFE) becomes its selection and its estimator.
    """
    for kind, attribute in WITHIN.items():
        if isinstance(estimator, kind):
            if not hasattr(estimator, attribute):
                raise UnsupportedModel(
                    f"this {type(estimator).__name__} has no {attribute}: fit it, a search with refit=True"
                )
            return unwrapped(getattr(estimator, attribute))
    if isinstance(estimator, Pipeline):
        return Pipeline([(name, unwrapped(step)) for name, step in estimator.steps])
    if isinstance(estimator, RFE) and hasattr(estimator.estimator_, "predict"):
        return Pipeline([("select", Selection(estimator)), ("estimator", unwrapped(estimator.estimator_))])
    if isinstance(estimator, SelectorMixin):
        return Selection(estimator)
    if isinstance(estimator, TransformedTargetRegressor):
        if not isinstance(estimator.transformer_, FunctionTransformer):
            name = type(estimator.transformer_).__name__
            raise UnsupportedModel(
                f"TransformedTargetRegressor(transformer={name}) is undone by no graph: give func and inverse_func"
            )
        back = FunctionTransformer(estimator.transformer_.inverse_func)
        back.n_features_in_ = 1
        return Pipeline([("regressor", unwrapped(estimator.regressor_)), ("inverse", back)])
    if isinstance(estimator, VotingClassifier):
        plain = copy.copy(estimator)
        plain.flatten_transform = False  # concerns `transform` alone, and skl2onnx refuses True
        return plain
    return estimator


class Selection(FunctionTransformer):  # type: ignore[misc]
    """The columns that a fitted selector keeps."""

    def __init__(self, selector: Any) -> None:
        super().__init__()
        self.kept = np.flatnonzero(selector.get_support())
        self.n_features_in_ = selector.n_features_in_
