"""Intervals from sums: of a share (Wilson), of a mean, of a mean over devices that differ, of what counts say.

The interval over devices takes a device, not a row, as what was drawn: rows of one device are alike. It is that of a
ratio estimator (Cochran 1977, section 2.11): the sum over devices of (s - mean x n)^2, expanded into sums of products.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054  # both tails of 5 %
RESAMPLES, SEED = 1000, 0
MIN_DEVICES = 3  # fewer say nothing about how devices differ


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval: over rows, and over devices where there are enough of them."""

    value: float
    low: float
    high: float
    over_devices: tuple[float, float] | None = None

    @property
    def cautious(self) -> tuple[float, float]:
        """Return the ends that hold both intervals."""
        low, high = self.over_devices or (self.low, self.high)
        return min(self.low, low), max(self.high, high)


@dataclass(frozen=True)
class Sums:
    """One column of values in one group: over its rows, and products of the sums of each device."""

    rows: float
    total: float
    square: float  # sum over rows of value^2
    devices: float  # that have rows of the group
    device_square: float  # sum over devices of s^2
    device_cross: float  # of s n
    device_rows: float  # of n^2

    @property
    def mean(self) -> float:
        return self.total / self.rows if self.rows else math.nan

    def scaled(self, factor: float) -> Sums:
        """Return the sums of `factor` times each value."""
        return Sums(
            self.rows,
            self.total * factor,
            self.square * factor**2,
            self.devices,
            self.device_square * factor**2,
            self.device_cross * factor,
            self.device_rows,
        )


def wilson(share: float, rows: float) -> tuple[float, float]:
    """Return the score interval of a share (Wilson 1927).

    >>> [round(end, 4) for end in wilson(0.9, 100)]
    [0.8256, 0.9448]
    """
    if not rows:
        return math.nan, math.nan
    middle = (share + Z * Z / (2 * rows)) / (1 + Z * Z / rows)
    half = Z / (1 + Z * Z / rows) * math.sqrt(share * (1 - share) / rows + Z * Z / (4 * rows * rows))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def of_mean(sums: Sums, *, share: bool = False) -> Estimate:
    """Return the mean of a column; `share` says that its values are 0 and 1."""
    mean, rows = sums.mean, sums.rows
    if share:
        low, high = wilson(min(max(mean, 0.0), 1.0), rows)
    else:
        variance = max(sums.square / rows - mean * mean, 0.0) if rows else math.nan
        half = Z * math.sqrt(variance / max(rows - 1, 1))
        low, high = mean - half, mean + half
    return Estimate(mean, low, high, _over_devices(sums, share=share))


def _over_devices(sums: Sums, *, share: bool) -> tuple[float, float] | None:
    if sums.devices < MIN_DEVICES:
        return None
    mean = sums.mean
    residual = sums.device_square - 2 * mean * sums.device_cross + mean * mean * sums.device_rows
    half = Z * math.sqrt(max(residual, 0.0) * sums.devices / (sums.devices - 1)) / sums.rows
    low, high = mean - half, mean + half
    return (max(low, 0.0), min(high, 1.0)) if share else (low, high)


def of_counts(counts: np.ndarray, metric: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """Return what `metric`, of (draws, *shape) counts to (draws,), makes of `counts`, with a bootstrap over the rows.

    A metric of counts alone needs no rows to be resampled: multinomial draws of the counts are the same thing.
    """
    rows = round(float(counts.sum()))
    value = float(metric(counts[np.newaxis])[0])
    if not rows:
        return Estimate(math.nan, math.nan, math.nan)
    draws = np.random.default_rng(SEED).multinomial(rows, counts.ravel() / counts.sum(), size=RESAMPLES)
    found = metric(draws.reshape(RESAMPLES, *counts.shape).astype(np.float64))
    found = found[np.isfinite(found)]
    if not len(found) or math.isnan(value):
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(found, [0.025, 0.975])
    return Estimate(value, float(low), float(high))
