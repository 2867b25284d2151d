"""Scores of answers against the truth, by scikit-learn's scorer names.

    target, Answers -> {name: value}

Binary metrics take the rarer class as positive, multi-class ones are the mean over the classes that occur in
the target. A score that the rows at hand leave undefined (one class only, for roc_auc) is NaN, never a guess.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from sklearn import metrics as sk

from edgeml.artifacts import Answers, ModelTask
from edgeml.errors import UserError

MULTICLASS = -1  # in place of a positive class
IN_TARGET_UNITS = ("rmse", "mae")  # a limit on these is a share of the target's standard deviation


class Score(Protocol):
    """The computation of one metric; `positive` is a class index or MULTICLASS."""

    def __call__(self, y: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, positive: int) -> float: ...


@dataclass(frozen=True)
class Metric:
    """One entry of the table."""

    name: str
    task: ModelTask
    compute: Score
    greater_is_better: bool = True

    def score(
        self, y: np.ndarray, labels: np.ndarray | None, scores: np.ndarray, *, positive: int | None = None
    ) -> float:
        """Return the value on target `y`; `positive` is the rarer class of `y` unless given."""
        if self.task == "regression":
            return self.compute(y, scores[:, 0], scores, positive=MULTICLASS)
        if labels is None:
            raise UserError(f"{self.name} needs class labels, and this model gives none: use rmse, mae or r2")
        binary = scores.shape[1] == 2
        if binary and positive is None:
            positive = rarer_class(y)
        chosen = positive if binary and positive is not None else MULTICLASS
        return self.compute(y, labels, scores, positive=chosen)


def rarer_class(y: np.ndarray) -> int:
    """Return the index of the rarer class of a binary target; 1 when both are as frequent."""
    ones = int(np.count_nonzero(y))
    return 1 if 2 * ones <= len(y) else 0


def _over_classes(score: Callable[[np.ndarray, np.ndarray], float]) -> Score:
    """Return the metric that scores the positive class, or the mean of one against the rest."""

    def compute(y: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, positive: int) -> float:
        classes = np.unique(y) if positive == MULTICLASS else np.array([positive])
        truths = [y == c for c in classes]
        if any(truth.all() or not truth.any() for truth in truths):
            return float("nan")
        return float(np.mean([score(truth, scores[:, c]) for truth, c in zip(truths, classes, strict=True)]))

    return compute


def _over_labels(score: Callable[..., float]) -> Score:
    """Return the metric of labels that scores the positive class, or the mean over the classes of the target."""

    def compute(y: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, positive: int) -> float:
        classes = np.unique(y) if positive == MULTICLASS else np.array([positive])
        return float(score(y, labels, labels=classes, average="macro", zero_division=0))

    return compute


def _log_loss(y: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, positive: int) -> float:
    share = scores / np.maximum(scores.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return float(sk.log_loss(y, share, labels=np.arange(scores.shape[1])))


def _brier(y: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, positive: int) -> float:
    if positive != MULTICLASS:
        return float(np.mean((scores[:, positive] - (y == positive)) ** 2))
    return float(np.mean(np.sum((scores - np.eye(scores.shape[1])[y]) ** 2, axis=1)))


def _plain(score: Callable[[np.ndarray, np.ndarray], float]) -> Score:
    def compute(y: np.ndarray, labels: np.ndarray, scores: np.ndarray, *, positive: int) -> float:
        return float(score(y, labels))

    return compute


def _balanced(y: np.ndarray, labels: np.ndarray) -> float:
    return float(sk.recall_score(y, labels, labels=np.unique(y), average="macro", zero_division=0))


def _r2(y: np.ndarray, predicted: np.ndarray) -> float:
    return float(sk.r2_score(y, predicted)) if len(y) > 1 else float("nan")


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "classification", _plain(sk.accuracy_score)),
        Metric("balanced_accuracy", "classification", _plain(_balanced)),
        Metric("precision", "classification", _over_labels(sk.precision_score)),
        Metric("recall", "classification", _over_labels(sk.recall_score)),
        Metric("f1", "classification", _over_labels(sk.f1_score)),
        Metric("roc_auc", "classification", _over_classes(sk.roc_auc_score)),
        Metric("average_precision", "classification", _over_classes(sk.average_precision_score)),
        Metric("log_loss", "classification", _log_loss, greater_is_better=False),
        Metric("brier", "classification", _brier, greater_is_better=False),
        Metric("rmse", "regression", _plain(sk.root_mean_squared_error), greater_is_better=False),
        Metric("mae", "regression", _plain(sk.mean_absolute_error), greater_is_better=False),
        Metric("r2", "regression", _plain(_r2)),
    )
}


@functools.cache
def names_for(task: ModelTask) -> tuple[str, ...]:
    """Return the names of the metrics of `task`, in the table's order."""
    return tuple(name for name, metric in METRICS.items() if metric.task == task)


def find(name: str, task: ModelTask) -> Metric:
    """Return the metric called `name`; raise UserError when there is none for `task`."""
    if name not in METRICS or METRICS[name].task != task:
        raise UserError(f"{name!r} is no metric of {task}: choose one of {', '.join(names_for(task))}")
    return METRICS[name]


def evaluate(
    task: ModelTask, target: np.ndarray, answers: Answers, /, names: Sequence[str] | None = None
) -> dict[str, float]:
    """Return the value of every metric in `names`, or of every metric of `task`.

    A model of task "tensor" is scored as a classifier when it gives labels, as a regressor when it gives
    one number a row, and not at all otherwise.
    """
    if task == "tensor":
        single = answers.scores.ndim == 2 and answers.scores.shape[1] == 1
        if answers.labels is None and not single:
            return {}
        task = "regression" if answers.labels is None else "classification"
    chosen = [find(name, task) for name in (names_for(task) if names is None else names)]
    return {metric.name: metric.score(target, answers.labels, answers.scores) for metric in chosen}


def drop(metric: str, reference_value: float, value: float) -> float:
    """Return how much worse `value` is than `reference_value`: positive is worse, whatever the metric's direction.

    >>> drop("rmse", 2.0, 2.5), drop("accuracy", 0.75, 0.5)
    (0.5, 0.25)
    """
    worse = reference_value - value
    return worse if METRICS[metric].greater_is_better else -worse


def limit_of(metric: str, share: float, target: np.ndarray | None) -> float:
    """Return the largest drop that `share` allows: of what is in units of the `target`, a share of its deviation."""
    return share * float(np.std(target)) if metric in IN_TARGET_UNITS and target is not None else share
