"""From sums to metrics by the names of `edgeml.metrics`, each with its interval, and gains over another model.

Binary metrics take the rarer class as positive, multi-class ones are the mean over the classes that occur, as there.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml.errors import DataError, UserError
from edgeml.tasks.evaluation.groups import ALL
from edgeml.tasks.evaluation.intervals import Estimate, Sums, of_counts, of_mean
from edgeml.tasks.evaluation.values import GAINS, VALUES, Judged

Counts = Callable[[np.ndarray], np.ndarray]  # (draws, classes, classes) -> (draws,)


@dataclass(frozen=True)
class Group:
    """The rows that count together: how many, on how many devices, and what they say."""

    rows: int
    devices: int  # 0 where single answers are not seen, as under secure aggregation
    metrics: Mapping[str, Estimate]
    confusion: np.ndarray | None = None  # (classes, classes), by target and label
    calibration: np.ndarray | None = None  # (3, bins): rows, their summed confidence, how many were right


@dataclass(frozen=True)
class Evaluation:
    """What a fleet says of a model. `gains` say how much better it is than the one before, positive is better."""

    task: Judged
    classes: tuple[str, ...]
    groups: Mapping[str, Group]  # "all" first
    left_out: int
    before: Mapping[str, Estimate] = field(default_factory=dict)  # the other model on the same rows
    gains: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.groups[ALL].rows

    def metric(self, name: str, group: str = ALL) -> Estimate:
        """Return the metric `name` over all rows or those of a group; raise UserError when there is none."""
        if group not in self.groups:
            raise UserError(f"no group {group!r}: there is {', '.join(self.groups)}")
        found = self.groups[group].metrics
        if name not in found:
            raise UserError(f"{name!r} is not made of sums over devices: choose one of {', '.join(found)}")
        return found[name]

    def is_better(self, name: str) -> bool:
        """Return whether the model is better than the one before with both intervals of the gain above 0."""
        return self._gain(name).cautious[0] > 0

    def is_worse(self, name: str) -> bool:
        """Return whether it is worse with both intervals below 0."""
        return self._gain(name).cautious[1] < 0

    def _gain(self, name: str) -> Estimate:
        if name not in self.gains:
            raise UserError(
                f"no gain in {name!r}: there is {', '.join(self.gains) or 'none, no model was given before'}"
            )
        return self.gains[name]


@dataclass(frozen=True)
class Tables:
    """Everything summed, G groups with that of all rows first, V columns, K classes."""

    rows: np.ndarray  # (G,)
    devices: np.ndarray  # (G,)
    device_rows: np.ndarray  # (G,)
    columns: tuple[str, ...]
    total: np.ndarray  # (G, V)
    square: np.ndarray
    device_square: np.ndarray
    device_cross: np.ndarray

    def sums(self, column: str, group: int = 0) -> Sums:
        """Return the sums of one column in one group."""
        at = group, self.columns.index(column)
        return Sums(
            float(self.rows[group]),
            float(self.total[at]),
            float(self.square[at]),
            float(self.devices[group]),
            float(self.device_square[at]),
            float(self.device_cross[at]),
            float(self.device_rows[group]),
        )


def of_confusion(confusion: np.ndarray) -> dict[str, Estimate]:
    """Return the metrics that counts by target and label (classes, classes) decide."""
    chosen = _judged_classes(confusion)
    return {name: of_counts(confusion, functools.partial(metric, chosen)) for name, metric in BY_LABELS.items()}


def gains_of_pairs(pairs: np.ndarray) -> dict[str, Estimate]:
    """Return the gains in the same metrics from counts (classes, classes, classes) by target, label, label before."""
    chosen = _judged_classes(pairs.sum(axis=2))

    def gain(metric: Callable[..., np.ndarray], draws: np.ndarray) -> np.ndarray:
        return np.asarray(metric(chosen, draws.sum(axis=3)) - metric(chosen, draws.sum(axis=2)))

    return {name: of_counts(pairs, functools.partial(gain, metric)) for name, metric in BY_LABELS.items()}


def _judged_classes(confusion: np.ndarray) -> np.ndarray:
    occurring = confusion.sum(axis=1)
    if len(confusion) == 2:
        return np.array([1 if 2 * occurring[1] <= occurring.sum() else 0])
    return np.flatnonzero(occurring)


def _balanced(chosen: np.ndarray, draws: np.ndarray) -> np.ndarray:
    occurring = draws.sum(axis=2)
    right = np.diagonal(draws, axis1=1, axis2=2) / np.where(occurring > 0, occurring, np.nan)
    return np.asarray(np.nanmean(np.where(occurring.any(axis=1, keepdims=True), right, 0.0), axis=1))


def _precision(chosen: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return _mean_ratio(np.diagonal(draws, axis1=1, axis2=2), draws.sum(axis=1), chosen)


def _recall(chosen: np.ndarray, draws: np.ndarray) -> np.ndarray:
    return _mean_ratio(np.diagonal(draws, axis1=1, axis2=2), draws.sum(axis=2), chosen)


def _f1(chosen: np.ndarray, draws: np.ndarray) -> np.ndarray:
    right = np.diagonal(draws, axis1=1, axis2=2)
    return _mean_ratio(2 * right, draws.sum(axis=1) + draws.sum(axis=2), chosen)


def _mean_ratio(part: np.ndarray, whole: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    ratio = part / np.where(whole > 0, whole, 1)
    return np.asarray(ratio[:, chosen].mean(axis=1)) if len(chosen) else np.full(len(part), np.nan)


BY_LABELS: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "balanced_accuracy": _balanced,
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
}


def area(scores: np.ndarray) -> Estimate:
    """Return the area under the ROC curve from counts (2, bins) of a score by class; scores of one bin are tied."""

    def auc(draws: np.ndarray) -> np.ndarray:
        negative, positive = draws[:, 0], draws[:, 1]
        below = np.cumsum(negative, axis=1) - negative / 2
        pairs = negative.sum(axis=1) * positive.sum(axis=1)
        return np.asarray((positive * below).sum(axis=1) / np.where(pairs > 0, pairs, np.nan))

    return of_counts(scores, auc)


def calibration_error(bins: np.ndarray) -> float:
    """Return the expected calibration error (Guo et al. 2017) from (3, bins): rows, summed confidence, right ones."""
    rows, confidence, right = bins
    return float(np.abs(confidence - right).sum() / rows.sum()) if rows.sum() else math.nan


def of_regression(tables: Tables, group: int, before: str = "") -> dict[str, Estimate]:
    """Return rmse, mae, r2 and bias (predicted minus target)."""
    squared = of_mean(tables.sums(before + "squared_error", group))
    target = tables.sums("target", group)
    variance = tables.sums("target.square", group).mean - target.mean**2 if target.rows else math.nan
    return {
        "rmse": _through(squared, lambda mse: math.sqrt(max(mse, 0.0))),
        "mae": of_mean(tables.sums(before + "absolute_error", group)),
        "r2": _through(squared, lambda mse: 1 - mse / variance if variance > 0 else math.nan),
        "bias": of_mean(tables.sums(before + "error", group)),
    }


def _through(found: Estimate, function: Callable[[float], float]) -> Estimate:
    """Return the estimate of a monotone function of what was found."""

    def ends(low: float, high: float) -> tuple[float, float]:
        a, b = function(low), function(high)
        return (a, b) if not a > b else (b, a)

    over = ends(*found.over_devices) if found.over_devices else None
    return Estimate(function(found.value), *ends(found.low, found.high), over)


def regression_gains(tables: Tables) -> dict[str, Estimate]:
    """Return the gains in rmse and mae; a^2 - b^2 = (a - b)(a + b) makes one of squared errors one of rmse."""
    both = sum(math.sqrt(tables.sums(prefix + "squared_error").mean) for prefix in ("", "before."))
    squared = tables.sums("gain.squared_error").scaled(1 / both if both else 0.0)
    return {"rmse": of_mean(squared), "mae": of_mean(tables.sums("gain.absolute_error"))}


def columns_of(task: Judged, *, paired: bool) -> tuple[str, ...]:
    """Return the names of the columns of values, in the order of the graph's."""
    own = VALUES[task]
    if not paired:
        return own
    return (*own, *(f"before.{name}" for name in own), *(f"gain.{name}" for name in GAINS[task]))


def some_rows(rows: float) -> None:
    """Raise DataError when there are none."""
    if rows < 1:
        raise DataError("no device has a row with a target that the model could be judged by: label rows")
