"""Several estimates of one latency made into one, by precision, with a guard against counting one mistake twice.

    estimates (prior, emulated, calibrated) of the logarithm of a time, each with a standard deviation s
    -combine-> weights w >= 0 that sum to 1 and make w' C w least, C = s s' (RHO, 1 on the diagonal)

That is precision weighting for errors that correlate by RHO: every method counts the same graph and assumes the same
of its kernels, so that two of them are often wrong together. An estimate that is 1 / RHO times as wide as the best
gets no weight: a weak one cannot narrow a good one. No combination is narrower than sqrt(RHO) times the narrowest.
Where the estimates in use lie further apart than they say (chi-square above its degrees of freedom), the interval is
widened by that much (R. T. Birge, The Calculation of Errors by the Method of Least Squares, 1932).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain, combinations

import numpy as np

from edgeml.artifacts import Estimate, Prediction

RHO = 0.5  # correlation of the errors of two methods; the middle of what cannot be known without many boards
Z90 = 1.645  # half the width of a 90 % interval, in standard deviations
EXACT = 1e-3  # no estimate is better than a thousandth, whatever it says
FAR = 2.0  # standard deviations: an estimate that far from the outcome is told, though it has no weight


def combine(predictions: Sequence[Prediction]) -> Prediction:
    """Return one prediction made of all, whose `sources` are what each one said.

    Memory, coverage and notes are those of the estimate with the largest weight.
    """
    if len(predictions) == 1:
        return predictions[0]
    ordered = sorted(predictions, key=lambda one: (one.method, one.predicted, one.low))  # so that order is no matter
    middles = np.array([math.log(one.predicted) for one in ordered])
    spreads = np.maximum([spread(one) for one in ordered], EXACT)
    weights, variance = best_weights(spreads)
    middle = float(weights @ middles)
    sigma = math.sqrt(variance) * _disagreement(middles - middle, spreads, weights)
    used = [one for one, weight in zip(ordered, weights, strict=True) if weight > 0]
    first = ordered[int(np.argmax(weights))]
    notes = (*first.notes, *_strangers(ordered, weights, (middle, sigma)))
    estimates = tuple(
        Estimate(one.method, one.low, one.predicted, one.high, round(float(weight), 4))
        for one, weight in zip(ordered, weights, strict=True)
    )
    factor = math.exp(Z90 * sigma)
    predicted = math.exp(middle)
    return Prediction(
        predicted / factor,
        predicted,
        predicted * factor,
        first.memory_mb,
        "combined" if len(used) > 1 else first.method,
        first.coverage,
        notes,
        estimates,
    )


def spread(prediction: Prediction | Estimate) -> float:
    """Return the standard deviation of the logarithm that the range of `prediction` stands for."""
    return math.log(prediction.high / prediction.low) / (2 * Z90)


def best_weights(spreads: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the weights, none negative, that give the least variance, and that variance.

    There are a handful of methods, so every subset of them is tried.
    """
    count, best, least = len(spreads), np.zeros(len(spreads)), math.inf
    covariance = covariance_of(spreads)
    for chosen in chain.from_iterable(combinations(range(count), size) for size in range(1, count + 1)):
        index = list(chosen)
        found = np.linalg.solve(covariance[np.ix_(index, index)], np.ones(len(index)))
        weights = np.zeros(count)
        weights[index] = found / found.sum()
        variance = float(weights @ covariance @ weights)
        if weights.min() >= 0 and variance < least * (1 - 1e-12):
            best, least = weights, variance
    return best, least


def covariance_of(spreads: np.ndarray, rho: float = RHO) -> np.ndarray:
    """Return the covariance of errors of these spreads, each pair of which correlates by `rho`."""
    return np.outer(spreads, spreads) * (rho + (1 - rho) * np.eye(len(spreads)))


def _disagreement(residuals: np.ndarray, spreads: np.ndarray, weights: np.ndarray) -> float:
    """Return Birge's ratio of the estimates in use, at least 1."""
    used = weights > 0
    freedom = int(used.sum()) - 1
    if not freedom:
        return 1.0
    apart = residuals[used]
    chi_square = float(apart @ np.linalg.solve(covariance_of(spreads[used]), apart))
    return math.sqrt(max(1.0, chi_square / freedom))


def _strangers(predictions: Sequence[Prediction], weights: np.ndarray, outcome: tuple[float, float]) -> tuple[str, ...]:
    """Return a note for every estimate without weight that lies far from the outcome."""
    middle, sigma = outcome
    return tuple(
        f"{one.method} says {one.low:.3g} to {one.high:.3g} ms, far from that: measure it on the board"
        for one, weight in zip(predictions, weights, strict=True)
        if weight == 0 and abs(math.log(one.predicted) - middle) > FAR * math.hypot(spread(one), sigma)
    )
