"""What the intervals of a timing promise, held to on durations whose truth is known."""

from __future__ import annotations

import math
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_runtime.measure import (
    Plan,
    bootstrap,
    confidence_of_median,
    intervals,
    measure,
    order_interval,
)
from edgeml_runtime.measure.statistics import repeated, student
from edgeml_runtime.measure.timing import MOST_SESSIONS
from edgeml_runtime.session import Session


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


@pytest.mark.parametrize(("freedom", "quantile"), [(3, 3.182), (5, 2.571), (7, 2.365), (15, 2.131), (200, 1.972)])
def test_students_t_is_that_of_the_tables(freedom: int, quantile: float) -> None:
    assert student(freedom) == pytest.approx(quantile, rel=2e-3)


def test_an_interval_holds_what_the_same_run_gives_again_where_sessions_differ() -> None:
    """Ten sessions a run, each off by a percent of its own: as much as where memory came to lie can do."""
    generator = np.random.default_rng(0)

    def run() -> list[np.ndarray]:
        return [generator.normal(1 + generator.normal(0, 0.01), 0.002, 200) for _ in range(10)]

    inside, before = [], []
    for _ in range(200):
        pieces, again = run(), float(np.median(np.concatenate(run())))
        low, high = repeated_interval(pieces)
        inside.append(low <= again <= high)
        before.append(repeated_interval(pieces[:1])[0] <= again <= repeated_interval(pieces[:1])[1])
    assert np.mean(inside) >= 0.93
    assert np.mean(before) < 0.5


def repeated_interval(pieces: list[np.ndarray]) -> tuple[float, float]:
    return intervals(np.concatenate(pieces), {"p50": 0.5}, pieces)["p50"]


def test_few_sessions_say_nothing_of_how_they_differ() -> None:
    assert repeated([np.ones(5), np.zeros(5), np.ones(5)], 0.5) == 0.0
    assert repeated([np.ones(5)] * 4, 0.5) == 0.0
    assert repeated([np.ones(5), np.zeros(5), np.ones(5), np.zeros(5)], 0.5) > 1.0


def test_a_run_opens_its_session_anew_and_holds_one_at_a_time(models: SimpleNamespace) -> None:
    held: weakref.WeakSet[Session] = weakref.WeakSet()
    most = []

    def opener() -> Session:
        most.append(len(held))
        session = Session(models.mlp())
        held.add(session)
        return session

    row = {"numeric": np.ones((1, 64), np.float32)}
    measure(opener, row, Plan(warmup_s=0.01, min_s=0.8, min_count=10, max_s=0.8))
    assert 4 <= len(most) <= MOST_SESSIONS and max(most) == 0
    measure(Session(models.mlp()), row, Plan(warmup_s=0.01, min_s=0.1, min_count=10, max_s=0.1))
    most.clear()
    measure(opener, row, Plan(warmup_s=0.01, min_s=0.2, min_count=10, max_s=0.2))
    assert len(most) == 1  # stretches of 25 ms are too short
