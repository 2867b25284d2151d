"""What the intervals of a timing promise, held to on durations whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_runtime.measure import (
    bootstrap,
    confidence_of_median,
    intervals,
    order_interval,
)


def alike(rng: np.random.Generator, count: int, rho: float) -> np.ndarray:
    """Return exponential durations of which neighbours are alike: `rho` is their normal scores' correlation."""
    scores = [rng.normal()]
    for shock in rng.normal(size=count - 1) * math.sqrt(1 - rho**2):
        scores.append(rho * scores[-1] + shock)
    return np.array([-math.log(math.erfc(score / math.sqrt(2)) / 2) for score in scores])


@pytest.mark.parametrize(("count", "rho"), [(100, 0.0), (100, 0.5), (500, 0.0), (500, 0.8), (3000, 0.9)])
def test_intervals_hold_the_truth_about_95_times_in_100_however_alike_neighbours_are(count: int, rho: float) -> None:
    rng, draws = np.random.default_rng(1), 100
    found = [order_interval(alike(rng, count, rho), quantile) for _ in range(draws) for quantile in (0.5,)]
    inside = sum(told is not None and told[0] <= math.log(2) <= told[1] for told in found)
    assert inside >= 0.88 * draws


def test_a_quantile_that_the_queries_are_too_few_for_has_no_interval() -> None:
    rng, quantiles = np.random.default_rng(4), {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    told = {count: set(intervals(rng.exponential(1.0, count), quantiles)) for count in (100, 1000, 10_000)}
    assert told == {100: {"p50", "p90"}, 1000: {"p50", "p90", "p99"}, 10_000: set(quantiles)}


def test_intervals_of_tails_hold_the_truth() -> None:
    rng, inside = np.random.default_rng(5), {"p90": 0, "p99": 0}
    for _ in range(60):
        told = intervals(rng.exponential(1.0, 2000), {"p90": 0.9, "p99": 0.99})
        for name, truth in (("p90", math.log(10)), ("p99", math.log(100))):
            inside[name] += told[name][0] <= truth <= told[name][1]
    assert min(inside.values()) >= 53


def test_moods_of_the_machine_widen_the_interval() -> None:
    """A slow drift makes neighbours alike; runs taken as independent would claim far too much."""
    rng = np.random.default_rng(2)
    steady = rng.normal(10, 1, 3100)
    moody = np.sort(steady)
    widths = [high - low for low, high in map(confidence_of_median, (steady, moody))]
    assert widths[1] > 5 * widths[0]


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=400))
def test_the_interval_lies_around_the_middle(samples: list[float]) -> None:
    low, high = confidence_of_median(np.array(samples))
    assert min(samples) <= low <= high <= max(samples)


def test_a_bootstrap_interval_covers_the_true_quantile() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for seed in range(100):
        ((low, high),) = bootstrap(rng.exponential(1.0, 2000), [0.9], seed)
        inside += low <= np.log(10) <= high
    assert inside >= 88
