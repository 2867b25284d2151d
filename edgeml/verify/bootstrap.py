"""How much worse a variant could be: the drop of the metric over resampled rows, source and variant paired."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeml.artifacts import Answers
from edgeml.metrics import METRICS, drop, rarer_class

OF_LABELS = frozenset({"accuracy", "balanced_accuracy", "precision", "recall", "f1"})  # blind to the scores
CELLS = 2_000_000  # indices held at once


def resampled_drops(
    metric: str, target: np.ndarray, answers: Answers, reference: Answers, *, resamples: int = 1000, seed: int = 0
) -> np.ndarray:
    """Return the drop of `metric` on each of `resamples` draws of the rows; NaN where a draw leaves it undefined."""
    if _same(metric, answers, reference):
        return np.zeros(resamples)
    draws = _draws(len(target), resamples, seed)
    if metric in _PER_ROW:
        before, after = (_PER_ROW[metric](target, given) for given in (reference, answers))
        means = [np.stack([before[index].mean(axis=1), after[index].mean(axis=1)]) for index in draws]
        values = np.concatenate(means, axis=1)
        values = np.sqrt(values) if metric == "rmse" else values
        return np.asarray(values[0] - values[1] if METRICS[metric].greater_is_better else values[1] - values[0])
    return np.array([_one(metric, target, answers, reference, i) for index in draws for i in index])


def _one(metric: str, target: np.ndarray, answers: Answers, reference: Answers, index: np.ndarray) -> float:
    positive = rarer_class(target)  # of all rows: a draw must not swap the classes
    before, after = (
        METRICS[metric].score(
            target[index],
            None if given.labels is None else given.labels[index],
            given.scores[index],
            positive=positive if given.scores.shape[1] == 2 else None,
        )
        for given in (reference, answers)
    )
    return drop(metric, before, after)


def _same(metric: str, answers: Answers, reference: Answers) -> bool:
    """Whether no draw can tell the two apart."""
    if metric in OF_LABELS:
        return np.array_equal(np.asarray(answers.labels), np.asarray(reference.labels))
    return np.array_equal(answers.scores, reference.scores)


def _draws(rows: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield row indices (draws, rows), `resamples` draws in all, a bounded number at a time."""
    generator, step = np.random.default_rng(seed), max(1, CELLS // max(rows, 1))
    for start in range(0, resamples, step):
        yield generator.integers(0, rows, size=(min(step, resamples - start), rows))


def _hits(target: np.ndarray, answers: Answers) -> np.ndarray:
    return np.asarray(answers.labels == target, dtype=np.float64)


def _absolute(target: np.ndarray, answers: Answers) -> np.ndarray:
    return np.asarray(np.abs(answers.scores[:, 0] - target))


def _squared(target: np.ndarray, answers: Answers) -> np.ndarray:
    return np.asarray((answers.scores[:, 0] - target) ** 2)


_PER_ROW = {"accuracy": _hits, "mae": _absolute, "rmse": _squared}  # means over rows: all draws at once
