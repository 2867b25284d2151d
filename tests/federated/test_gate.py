"""What a candidate must show before it ships: the rule, case by case, and for any numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.federated.gate import GATES, Gain, Gate, Own, rule, rule_own

ROWS = 200


def a_gain(low: float, value: float, high: float, **changes: Any) -> Gain:
    told = {"metric": "accuracy", "before": 0.8, "after": 0.8 + value, "rows": ROWS, "where": "rows", **changes}
    return Gain(value=value, low=low, high=high, **told)


BETTER, MAYBE_BETTER = a_gain(0.02, 0.05, 0.08), a_gain(-0.02, 0.01, 0.04)
MAYBE_WORSE, WORSE, SAME = a_gain(-0.04, -0.01, 0.02), a_gain(-0.08, -0.05, -0.02), a_gain(0.0, 0.0, 0.0)
UNKNOWN = a_gain(math.nan, 0.05, math.nan)


@pytest.mark.parametrize(
    ("gate", "here", "fleet", "ships"),
    [
        ("better", BETTER, BETTER, True),
        ("better", MAYBE_WORSE, BETTER, True),  # the server's few rows cannot say that it is worse
        ("better", SAME, BETTER, True),
        ("better", WORSE, BETTER, False),
        ("better", BETTER, MAYBE_BETTER, False),
        ("better", BETTER, SAME, False),
        ("better", BETTER, WORSE, False),
        ("better", BETTER, UNKNOWN, False),
        ("better", BETTER, None, True),
        ("better", MAYBE_BETTER, None, False),
        ("better", UNKNOWN, None, False),
        ("not-worse", MAYBE_BETTER, MAYBE_BETTER, True),
        ("not-worse", MAYBE_WORSE, MAYBE_BETTER, True),
        ("not-worse", MAYBE_BETTER, MAYBE_WORSE, True),
        ("not-worse", MAYBE_WORSE, MAYBE_WORSE, False),
        ("not-worse", SAME, SAME, False),
        ("not-worse", BETTER, WORSE, False),
        ("not-worse", WORSE, BETTER, False),
        ("not-worse", MAYBE_BETTER, None, True),
        ("not-worse", MAYBE_WORSE, None, False),
        ("not-worse", UNKNOWN, UNKNOWN, True),
    ],
)
def test_what_ships(gate: Gate, here: Gain, fleet: Gain | None, ships: bool) -> None:
    ruling = rule(gate, here, fleet)
    assert ruling.ships == ships, ruling.why
    assert str(here) in ruling.why and (str(fleet) if fleet else "the fleet was not asked") in ruling.why


def test_a_refusal_says_what_would_change_it() -> None:
    few = rule("better", BETTER, a_gain(-0.02, 0.01, 0.04, rows=100, where="held-out rows of 3 devices")).why
    assert few == (
        "not better in the fleet beyond chance: here accuracy 0.8000 -> 0.8500 on 200 rows, a gain of +0.0500 "
        "[+0.0200, +0.0800]; in the fleet accuracy 0.8000 -> 0.8100 on 100 held-out rows of 3 devices, a gain of "
        "+0.0100 [-0.0200, +0.0400]; a gain of this size shows on about 900 rows: label more, or let it learn more in "
        "more rounds; federated.gate: not-worse ships without that proof"
    )
    assert "no gain was found: let it learn more" in rule("better", BETTER, SAME).why
    assert "label more, or learn less from each" in rule("better", BETTER, WORSE).why
    assert "lower the learning rate" in rule("better", WORSE, BETTER).why
    assert "nothing was gained yet" in rule("not-worse", SAME, SAME).why


numbers = st.floats(-1, 1)
gains = st.tuples(numbers, numbers, numbers).map(lambda three: a_gain(*sorted(three)))


@given(st.sampled_from(sorted(GATES)), gains, st.none() | gains)
def test_what_is_worse_beyond_chance_never_ships_and_the_stricter_gate_lets_less_pass(
    gate: Gate, here: Gain, fleet: Gain | None
) -> None:
    ships = rule(gate, here, fleet).ships
    if here.high < 0 or (fleet and fleet.high < 0):
        assert not ships
    if ships:
        assert rule("not-worse", here, fleet).ships
        assert gate != "better" or (fleet or here).low > 0


@given(gains)
def test_the_rows_that_a_gain_needs_are_more_than_those_that_did_not_show_it(gain: Gain) -> None:
    if gain.rows_needed:
        assert (gain.rows_needed <= gain.rows) == (gain.low >= 0) or gain.rows_needed == gain.rows


@pytest.mark.parametrize(
    ("own", "here", "says"),
    [
        (Own(before=2.0, after=0.5, devices=2, rounds=3), MAYBE_WORSE, ""),
        (Own(before=2.0, after=0.5, devices=2, rounds=3), WORSE, "worse by more than 0.02 for devices without"),
        (Own(before=0.5, after=0.5, devices=2, rounds=3), BETTER, "the devices' own models are not better"),
        (Own(before=0.5, after=math.nan, devices=2, rounds=3), BETTER, "the devices' own models are not better"),
        (
            Own(before=math.nan, after=math.nan, devices=0, rounds=3),
            BETTER,
            "no device told its loss both in the first",
        ),
        (Own(before=2.0, after=2.0, devices=2, rounds=1), BETTER, "one round cannot show"),
    ],
)
def test_what_ships_where_the_last_layer_stays_on_devices(own: Own, here: Gain, says: str) -> None:
    ruling = rule_own(here, own, 0.02)
    assert ruling.ships == (not says) and ruling.why.startswith(says or "own: loss of the devices' own models 2 -> 0.5")
    assert str(here) in ruling.why
