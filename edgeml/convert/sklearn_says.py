"""What a fitted estimator answers, by its kind: the outputs its graph must have, and how to ask it for them.

    estimator -answers_of-> [Says(label), Says(probabilities)]

| kind | outputs |
|---|---|
| classifier | `label` class index; `probabilities`, or `scores` where it has only a decision function |
| regressor | `prediction` |
| outlier detector | `scores` (its decision function), `inlier` +1 or -1 |
| clusterer, mixture | `cluster`; `distances` or `probabilities` where it has them |
| transformer | `features` |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse
from sklearn.base import is_classifier, is_outlier_detector, is_regressor

from edgeml.errors import UnsupportedModel
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, PROBABILITIES, SCORES

INLIER, CLUSTER, DISTANCES, FEATURES = "inlier", "cluster", "distances", "features"
WHOLE = {LABEL, INLIER, CLUSTER}  # int64; any other difference than none is a flip
Ask = Callable[[Any], Any]


@dataclass(frozen=True)
class Says:
    """One output: its name and how the estimator is asked for it; an array with the rows first."""

    name: str
    ask: Ask


def answers_of(estimator: Any) -> list[Says]:
    """Return what `estimator` answers; raise UnsupportedModel when that is nothing a graph could say."""
    kind = type(estimator).__name__
    if is_classifier(estimator):
        return _classifier(estimator, kind)
    if is_outlier_detector(estimator):
        _needs(estimator, kind, "decision_function")
        return [Says(SCORES, _column(estimator.decision_function)), Says(INLIER, _whole(estimator.predict))]
    if is_regressor(estimator):
        return [Says(PREDICTION, _column(estimator.predict))]
    if hasattr(estimator, "predict_proba"):  # mixtures
        return [Says(CLUSTER, _whole(estimator.predict)), Says(PROBABILITIES, _matrix(estimator.predict_proba))]
    if hasattr(estimator, "predict"):
        says = [Says(CLUSTER, _whole(_as_fitted(estimator, estimator.predict)))]
        return [*says, Says(DISTANCES, _matrix(estimator.transform))] if hasattr(estimator, "transform") else says
    _needs(estimator, kind, "transform")
    return [Says(FEATURES, _matrix(estimator.transform))]


def classes_of(estimator: Any) -> list[Any] | None:
    """Return the classes of a classifier by index, or None."""
    found = getattr(estimator, "classes_", None)
    return list(found) if is_classifier(estimator) and found is not None else None


def _classifier(estimator: Any, kind: str) -> list[Says]:
    classes = classes_of(estimator)
    if not classes or isinstance(classes[0], np.ndarray | list):
        count = len(classes) if classes else "several"
        raise UnsupportedModel(f"this {kind} predicts {count} targets at once: save one model per target")

    def labels(rows: Any) -> np.ndarray:
        said = np.asarray(estimator.predict(rows))
        if said.ndim != 1:
            raise UnsupportedModel(f"this {kind} predicts {said.shape[1]} targets at once: save one model per target")
        return np.searchsorted(np.asarray(classes), said).astype(np.int64)

    says = [Says(LABEL, labels)]
    if hasattr(estimator, "predict_proba"):
        return [*says, Says(PROBABILITIES, _matrix(estimator.predict_proba))]
    return (
        [*says, Says(SCORES, _column(estimator.decision_function))] if hasattr(estimator, "decision_function") else says
    )


def _needs(estimator: Any, kind: str, method: str) -> None:
    if not hasattr(estimator, method):
        raise UnsupportedModel(
            f"this {kind} describes the rows it was fitted on and has no {method} for new ones: "
            f"there is nothing to run on a device"
        )


def _as_fitted(estimator: Any, ask: Ask) -> Ask:
    """Return `ask`, given rows in the dtype of the centres: scikit-learn's k-means takes no other."""
    last = estimator.steps[-1][1] if hasattr(estimator, "steps") else estimator
    dtype = getattr(getattr(last, "cluster_centers_", None), "dtype", None)
    return ask if dtype is None else lambda rows: ask(np.asarray(rows, dtype=dtype))


def _matrix(ask: Ask) -> Ask:
    def dense(rows: Any) -> np.ndarray:
        said = ask(rows)
        whole = np.asarray(said.toarray() if sparse.issparse(said) else said)
        return whole.reshape(1, -1) if len(rows) == 1 else whole  # SparsePCA drops the axis of a single row

    return dense


def _column(ask: Ask) -> Ask:
    return lambda rows: (said := np.asarray(ask(rows))).reshape(len(said), -1)


def _whole(ask: Ask) -> Ask:
    return lambda rows: np.asarray(ask(rows)).astype(np.int64)
