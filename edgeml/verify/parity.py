"""Row by row: how far a variant's answers are from those of its source."""

from __future__ import annotations

import numpy as np

from edgeml.artifacts import Answers, Parity

TIE = 1e-6  # two best scores of the source this close are a tie: either label is right


def compare(answers: Answers, reference: Answers, *, tie: float = TIE) -> Parity:
    """Return the parity of `answers` with `reference`; a NaN that only one of them has counts as infinitely far."""
    rows = len(reference.scores)
    difference = differences(answers.scores, reference.scores)
    mine, theirs = top(answers), top(reference)
    flips = np.zeros(rows, dtype=bool) if mine is None or theirs is None else mine != theirs
    tied = ties(reference.scores, tie)
    return Parity(rows, float(difference.max(initial=0.0)), int((flips & ~tied).sum()), int((flips & tied).sum()))


def relative(answers: Answers, reference: Answers) -> float:
    """Return the largest difference relative to the source's value (to 1 where that is smaller)."""
    difference = differences(answers.scores, reference.scores)
    return float((difference / np.maximum(np.abs(np.nan_to_num(reference.scores)), 1.0)).max(initial=0.0))


def rms_share(answers: Answers, reference: Answers) -> float:
    """Return the root mean square difference as a share of the spread of the source's scores."""
    difference = differences(answers.scores, reference.scores)
    spread = float(np.nanstd(reference.scores))
    error = float(np.sqrt(np.mean(difference**2)))
    return error / spread if spread > 0 else (0.0 if error == 0 else float("inf"))


def top(answers: Answers) -> np.ndarray | None:
    """Return the label of each row: the model's own, or its best score where it has several."""
    if answers.labels is not None:
        return answers.labels
    return answers.scores.argmax(axis=1) if answers.scores.shape[1] > 1 else None


def ties(scores: np.ndarray, tie: float = TIE) -> np.ndarray:
    """Return which rows have two best scores within `tie`."""
    if scores.shape[1] < 2:
        return np.zeros(len(scores), dtype=bool)
    best = np.partition(scores, -2, axis=1)[:, -2:]
    return np.asarray(best[:, 1] - best[:, 0] <= tie)


def differences(scores: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the absolute differences; infinity where only one side is NaN."""
    with np.errstate(invalid="ignore"):
        difference = np.abs(scores - reference)
    same = (scores == reference) | (np.isnan(scores) & np.isnan(reference))
    return np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference))
