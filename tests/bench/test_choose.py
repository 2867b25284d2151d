"""The choice by intervals, and what is known of a board: sentences about real variants and made-up boards' answers."""

import dataclasses
from pathlib import Path

import pytest

from edgeml import bench
from edgeml.artifacts import FP32, Measurement, Prediction
from edgeml.bench.choose import SHARED, ratio
from edgeml.bench.predict.combine import spread
from edgeml.devices import find_board
from edgeml.errors import NotFound
from edgeml.project import Board
from tests.bench.test_bench import a_product, a_verdict

PI_4 = find_board("raspberry-pi-4")
INT8 = "int8-static-u8s8"


@pytest.fixture(scope="module")
def variants():
    return [v for v in a_product()[0] if v.recipe in (FP32, INT8)]


def a_measurement(recipe: str, ms: float, *, p90: float = 0.0, valid: bool = True, width: float = 0.01) -> Measurement:
    interval = (ms * (1 - width), ms * (1 + width))
    return Measurement(recipe, ms, p90 or 1.1 * ms, 1.2 * ms, 100, interval, valid, "" if valid else "throttled")


def chosen(variants, measured=(), **limits):
    known = bench.Known(profile=PI_4, measured={one.recipe: one for one in measured})
    verdicts = [a_verdict(variant.recipe) for variant in variants]
    return bench.choose(Board(board=PI_4.name, **limits), known, variants=variants, verdicts=verdicts, measurements=())


def test_the_ratio_of_two_predictions_for_one_board_is_known_better_than_either():
    slow, fast = Prediction(5.0, 10.0, 20.0, 60.0), Prediction(2.5, 5.0, 10.0, 60.0)
    low, middle, high = ratio(fast, slow)
    assert middle == 0.5
    assert high / middle == pytest.approx(middle / low)
    assert high < 1.0 and high / low == pytest.approx((20 / 5) ** (2 * (1 - SHARED)) ** 0.5)


def test_measurements_share_no_error():
    one = Prediction(9.0, 10.0, 11.0, 60.0, "measured")
    other = Prediction(4.5, 5.0, 5.5, 60.0, "measured")
    low, _, high = ratio(other, one)
    assert high / low == pytest.approx((11 / 9) ** (2**0.5), rel=0.01)
    assert spread(one) > 0


def test_what_the_board_itself_said_beats_every_prediction(variants):
    choice = chosen(variants, [a_measurement(FP32, 3.0), a_measurement(INT8, 5.0)])
    assert choice.variant == FP32  # though int8 is predicted to be faster
    assert choice.predictions[FP32].method == choice.predictions[INT8].method == "measured"
    assert "is measured there at 5 ms against 3 ms" in choice.reason


def test_int8_that_was_measured_faster_ships(variants):
    choice = chosen(variants, [a_measurement(FP32, 5.0), a_measurement(INT8, 3.0)])
    assert choice.variant == INT8
    assert "is measured there 1.7x as fast as fp32 (1.6x to 1.7x)" in choice.reason


def test_an_invalid_measurement_never_decides(variants):
    without, doubted = chosen(variants), chosen(variants, [a_measurement(INT8, 50.0, valid=False)])
    assert (doubted.variant, doubted.reason) == (without.variant, without.reason) and without.variant == INT8


def test_a_gain_that_may_be_none_ships_fp32_and_asks_for_a_measurement(variants):
    found = [a_measurement(FP32, 5.0, width=0.3), a_measurement(INT8, 4.0, width=0.3)]
    choice = chosen(variants, found)
    assert choice.variant == FP32
    assert "may be no gain: measure it on the board" in choice.reason


def test_a_limit_above_the_whole_range_is_kept_without_a_word(variants):
    assert "measure it" not in chosen(variants, latency_p90_ms=100.0).reason


def test_a_limit_below_the_whole_range_is_refused(variants):
    choice = chosen(variants, latency_p90_ms=0.1)
    assert (choice.fits, choice.variant) == (False, "")


@pytest.mark.parametrize(
    ("share", "said"), [(1.2, "likely but not surely kept"), (0.8, "more likely broken than kept")]
)
def test_a_limit_within_the_range_ships_and_says_to_measure_on_the_board(variants, share: float, said: str):
    full = bench.predict(variants[0].model, PI_4)
    choice = chosen(variants[:1], latency_p90_ms=share * full.predicted)
    assert choice.fits
    assert said in choice.reason and "measure it on the board" in choice.reason


def test_a_variant_that_surely_keeps_the_limit_is_taken_before_one_that_may_break_it(variants):
    found = [a_measurement(INT8, 4.0, p90=4.4)]
    choice = chosen(variants, found, latency_p90_ms=4.5)
    assert choice.variant == INT8
    assert "fp32 is predicted at" in choice.reason


def test_what_was_measured_of_one_variant_tells_of_the_others(variants):
    full, small = (bench.predict_for(variant, bench.Known(profile=PI_4)) for variant in variants)
    choice = chosen(variants, [a_measurement(FP32, 3 * full.predicted)])
    told = choice.predictions[INT8]
    assert told.method == small.method
    assert told.predicted == pytest.approx(3**SHARED * small.predicted)
    assert spread(told) == pytest.approx((1 - SHARED**2) ** 0.5 * spread(small))
    assert any("fp32 took 3 of its prediction there" in note for note in told.notes)


def test_a_measured_int8_goes_before_one_that_is_only_predicted_faster():
    every = a_product()[0]
    found = [a_measurement(FP32, 50.0), a_measurement("int8-static-s8s8", 20.0)]
    choice = chosen(every, found)
    assert choice.variant == "int8-static-s8s8"
    assert "is measured there 2.5x as fast" in choice.reason


def test_a_measured_limit_is_judged_by_the_p90(variants):
    assert chosen(variants[:1], [a_measurement(FP32, 3.0, p90=4.4)], latency_p90_ms=4.5).fits
    late = chosen(variants[:1], [a_measurement(FP32, 3.0, p90=4.6)], latency_p90_ms=4.5)
    assert not late.fits and "was measured there at 3 ms" in late.reason


def test_nothing_known_is_no_prediction(variants):
    with pytest.raises(NotFound, match="neither a profile nor a calibration"):
        bench.predict_for(variants[0], bench.Known())


def test_the_memory_that_was_measured_counts(variants):
    found = dataclasses.replace(a_measurement(FP32, 3.0), details={"memory_mb": {"peak": 99.5}})
    known = bench.Known(profile=PI_4, measured={FP32: found})
    assert bench.predict_for(variants[0], known).memory_mb == 99.5


def test_docs_show_the_constants_of_the_choice():
    page = (Path(__file__).parents[2] / "docs/bench.md").read_text(encoding="utf-8")
    assert f"correlate by {SHARED:g}" in " ".join(page.split())
