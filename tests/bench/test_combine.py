"""Estimates made into one: what precision weighting with correlated errors must and must not do."""

import dataclasses
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.artifacts import Prediction
from edgeml.bench.predict.combine import RHO, combine, spread

METHODS = ("prior", "emulated", "calibrated")


def a_prediction(method: str, ms: float, factor: float) -> Prediction:
    return Prediction(ms / factor, ms, ms * factor, 60.0, method)  # type: ignore[arg-type]


predictions = st.lists(
    st.builds(a_prediction, st.sampled_from(METHODS), st.floats(1e-3, 1e5), st.floats(1.02, 8.0)),
    min_size=1,
    max_size=4,
)


@given(predictions)
def test_the_outcome_lies_among_the_estimates_and_in_its_own_range(given_: list[Prediction]):
    found = combine(given_)
    assert found.low < found.predicted < found.high
    assert min(p.predicted for p in given_) <= found.predicted * (1 + 1e-9)
    assert found.predicted <= max(p.predicted for p in given_) * (1 + 1e-9)


@given(predictions)
def test_no_combination_is_narrower_than_shared_mistakes_allow(given_: list[Prediction]):
    assert spread(combine(given_)) >= math.sqrt(RHO) * min(map(spread, given_)) * (1 - 1e-9)


@given(predictions, st.integers(0, 99))
def test_the_order_of_the_estimates_is_no_matter(given_: list[Prediction], seed: int):
    shuffled = random.Random(seed).sample(given_, len(given_))
    assert combine(shuffled) == combine(given_)


@given(predictions, st.floats(1.0, 3.0), st.integers(0, 3))
def test_a_slower_estimate_never_makes_the_outcome_faster(given_: list[Prediction], times: float, which: int):
    slower, index = list(given_), which % len(given_)
    one = given_[index]
    slower[index] = dataclasses.replace(
        one, low=one.low * times, predicted=one.predicted * times, high=one.high * times
    )
    assert combine(slower).predicted >= combine(given_).predicted * (1 - 1e-9)


@given(st.floats(1.02, 4.0), st.floats(1.0, 5.0), st.floats(1.02, 4.0))
def test_a_wider_estimate_never_makes_agreeing_ones_narrower(factor: float, wider: float, other: float):
    alike = [a_prediction("prior", 10.0, factor), a_prediction("calibrated", 10.0, other)]
    widened = [a_prediction("prior", 10.0, factor * wider), alike[1]]
    assert spread(combine(widened)) >= spread(combine(alike)) * (1 - 1e-9)


def test_a_weak_prior_leaves_a_calibration_as_it_is():
    calibrated = a_prediction("calibrated", 10.0, 1.15)
    found = combine([a_prediction("prior", 14.0, 2.0), calibrated])
    assert found.method == "calibrated"
    assert (found.low, found.predicted, found.high) == pytest.approx((calibrated.low, 10.0, calibrated.high))
    assert {one.method: one.weight for one in found.sources} == {"prior": 0.0, "calibrated": 1.0}


def test_two_equals_meet_in_the_middle_and_gain_little():
    found = combine([a_prediction("prior", 10.0, 1.5), a_prediction("emulated", 12.1, 1.5)])
    assert found.method == "combined"
    assert found.predicted == pytest.approx(11.0)
    assert spread(found) == pytest.approx(math.sqrt(0.75) * math.log(1.5) / 1.645)


def test_estimates_that_contradict_each_other_widen_the_range():
    apart = combine([a_prediction("prior", 10.0, 1.2), a_prediction("emulated", 40.0, 1.2)])
    assert apart.low < 12.0 and apart.high > 33.0


def test_a_weak_estimate_far_off_is_told_though_it_decides_nothing():
    found = combine([a_prediction("prior", 100.0, 1.8), a_prediction("calibrated", 10.0, 1.1)])
    assert found.predicted == pytest.approx(10.0)
    assert "prior says 55.6 to 180 ms, far from that" in found.notes[0]


def test_one_estimate_stays_what_it_is():
    alone = a_prediction("prior", 10.0, 2.0)
    assert combine([alone]) is alone


def test_an_estimate_that_claims_to_be_exact_is_taken_for_nearly_so():
    found = combine([a_prediction("prior", 10.0, 1.0), a_prediction("calibrated", 12.0, 1.5)])
    assert found.predicted == pytest.approx(10.0)
    assert found.low < 10.0 < found.high
