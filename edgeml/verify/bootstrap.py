"""How much worse a variant could be: the drop of the metric over resampled rows, source and variant paired."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from edgeml.artifacts import Answers
from edgeml.metrics import METRICS, drop, rarer_class

OF_LABELS = frozenset({"accuracy", "balanced_accuracy", "precision", "recall", "f1"})  # blind to the scores
CELLS = 2_000_000  # indices held at once
SLOW = {"roc_auc": 200, "average_precision": 200}  # a sort per class and draw: fewer draws


def resampled_drops(
    metric: str,
    target: np.ndarray,
    answers: Answers,
    *,
    reference: Answers,
    resamples: int = 1000,
    seed: int = 0,
) -> np.ndarray:
    """Return the drop of `metric` on each of `resamples` draws of the rows; NaN where a draw leaves it undefined.

    Metrics that sort the scores get at most the draws that `SLOW` says.
    """
    resamples = min(resamples, SLOW.get(metric, resamples))
    if _same(metric, answers, reference):
        return np.zeros(resamples)
    draws = _draws(len(target), resamples, seed)
    if metric in _PER_ROW:
        before, after = (_PER_ROW[metric](target, given) for given in (reference, answers))
        means = [np.stack([before[index].mean(axis=1), after[index].mean(axis=1)]) for index in draws]
        values = np.concatenate(means, axis=1)
        values = np.sqrt(values) if metric == "rmse" else values
        return np.asarray(values[0] - values[1] if METRICS[metric].greater_is_better else values[1] - values[0])
    if metric in OF_LABELS:
        both = [
            [_of_confusion(metric, target, given, index=index) for given in (reference, answers)] for index in draws
        ]
        return np.concatenate([before - after for before, after in both])
    pair = (reference, answers)
    return np.array([_one(metric, target, pair, index=i) for index in draws for i in index])


def _of_confusion(metric: str, target: np.ndarray, answers: Answers, *, index: np.ndarray) -> np.ndarray:
    """Return a metric of labels for all draws in `index`, from their confusion matrices: METRICS, but vectorised."""
    width = max(answers.scores.shape[1], int(target.max()) + 1)
    cells = target * width + np.asarray(answers.labels)
    counts = np.stack([np.bincount(cells[draw], minlength=width * width) for draw in index])
    confusion = counts.reshape(len(index), width, width)
    hits, truths, said = confusion.diagonal(axis1=1, axis2=2), confusion.sum(axis=2), confusion.sum(axis=1)
    by_class = {"precision": hits / np.maximum(said, 1), "f1": 2 * hits / np.maximum(said + truths, 1)}
    values = by_class.get(metric, hits / np.maximum(truths, 1))
    if answers.scores.shape[1] == 2 and metric != "balanced_accuracy":
        return np.asarray(values[:, rarer_class(target)])
    present = truths > 0
    return np.asarray((values * present).sum(axis=1) / present.sum(axis=1))


def _one(metric: str, target: np.ndarray, pair: tuple[Answers, Answers], *, index: np.ndarray) -> float:
    positive = rarer_class(target)  # of all rows: a draw must not swap the classes
    before, after = (
        METRICS[metric].score(
            target[index],
            None if given.labels is None else given.labels[index],
            given.scores[index],
            positive=positive if given.scores.shape[1] == 2 else None,
        )
        for given in pair
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
