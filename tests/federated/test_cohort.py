"""Whom a round asks: who may take part, in which order, how many, and how long it waits for them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import UserError
from edgeml.federated import Candidate, CohortOptions, Federation, Patience, Plan, Round, State, Update
from edgeml.federated.cohort import ORDERS, choose, deadline_after, objection

PARAMETERS = {"w": np.zeros(2, np.float32)}


def a_candidate(device: str = "a", **changes: Any) -> Candidate:
    return Candidate(**{"device": device, "rows": 50, **changes})


def fleet(count: int) -> list[Candidate]:
    return [a_candidate(f"pi-{i:02d}") for i in range(count)]


def draw(candidates: list[Candidate], number: int = 1, quorum: int = 2, **options: Any) -> frozenset[str]:
    return choose(candidates, CohortOptions(**options), min_rows=20, quorum=quorum, draw=(7, number)).asked


@pytest.mark.parametrize(
    ("one", "options", "says"),
    [
        ({}, {}, ""),
        ({"rows": 19}, {}, "19 labelled rows, 20 needed"),
        ({"online": False}, {}, "offline"),
        ({"board": "pi"}, {"selector": "board:pi"}, ""),
        ({"board": "pi"}, {"selector": "board:nano"}, "not selected by board:nano"),
        ({}, {"selector": "b, c"}, "not selected by b, c"),
        ({}, {"selector": "b, a"}, ""),
        ({"temperature_c": 71.0}, {"max_temperature_c": 70}, "71 C, at most 70 C wanted"),
        ({"temperature_c": 71.0}, {}, ""),
        ({}, {"max_temperature_c": 70, "min_battery": 0.5, "mains_only": True}, ""),  # it reports nothing
        ({"battery": 0.3, "mains": False}, {"min_battery": 0.5}, "battery at 30%, at least 50% wanted"),
        ({"battery": 0.3, "mains": True}, {"min_battery": 0.5}, ""),
        ({"mains": False}, {"mains_only": True}, "on battery"),
    ],
)
def test_who_may_take_part(one: dict[str, Any], options: dict[str, Any], says: str) -> None:
    assert objection(a_candidate(**one), CohortOptions(**options), min_rows=20) == says


def test_a_few_more_than_the_target_are_asked_and_the_others_are_named() -> None:
    chosen = choose(fleet(20), CohortOptions(target=6, over=0.5), min_rows=20, quorum=2, draw=(0, 1))
    assert len(chosen.asked) == 9 and chosen.target == 6
    assert set(chosen.passed_over.values()) == {"not drawn"} and len(chosen.passed_over) == 11


def test_without_a_target_everybody_is_asked_and_waited_for() -> None:
    chosen = choose(fleet(5), CohortOptions(), min_rows=20, quorum=2, draw=(0, 1))
    assert len(chosen.asked) == chosen.target == 5


@pytest.mark.parametrize("options", [{"least": 6}, {"selector": "pi-00"}])
def test_nobody_is_asked_below_the_quorum_or_the_least_cohort(options: dict[str, Any]) -> None:
    assert draw(fleet(5), **options) == frozenset()


@pytest.mark.parametrize("order", ORDERS)
def test_every_order_is_the_same_for_the_same_draw_and_another_for_another(order: str) -> None:
    some: dict[str, Any] = {"target": 5, "over": 0.0, "order": order}
    assert draw(fleet(40), 1, **some) == draw(fleet(40)[::-1], 1, **some)
    assert len({draw(fleet(40), number, **some) for number in range(8)}) > 1


def test_devices_with_more_rows_are_drawn_more_often() -> None:
    devices = [a_candidate(f"d{i}", rows=rows) for i, rows in enumerate([20, 20, 20, 400])]
    seen = Counter(d for n in range(300) for d in draw(devices, n, quorum=1, target=1, over=0.0, order="rows"))
    expected = 300 * 400 / 460
    assert abs(seen["d3"] - expected) < 4 * np.sqrt(expected * 60 / 460)


def test_the_rested_come_first() -> None:
    devices = [a_candidate(f"d{i}", last_round=i) for i in range(6)]
    assert draw(devices, target=3, over=0.0, order="rested") == {"d0", "d1", "d2"}


@pytest.mark.parametrize(
    ("options", "says"),
    [({"order": "alphabet"}, "random, rows, rested"), ({"min_battery": 50}, "share"), ({"over": -1}, "0 or more")],
)
def test_options_that_mean_nothing_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        CohortOptions(**options)


def test_the_deadline_is_fixed_until_there_is_a_spread_and_something_to_learn_from() -> None:
    assert deadline_after([1.0] * 9, Patience(), longest_s=60) == 60
    assert deadline_after([1.0, 1.0], Patience(spread=3), longest_s=60) == 60


@given(st.lists(st.floats(0, 1e4), min_size=3, max_size=30), st.floats(0.1, 10), st.randoms())
def test_the_adaptive_deadline_is_bounded_and_knows_no_order(durations: list[float], k: float, rng: Any) -> None:
    patience = Patience(spread=k, shortest_s=2)
    found = deadline_after(durations, patience, longest_s=60)
    assert 2 <= found <= 60 and (found >= np.median(durations) or found == 60)
    rng.shuffle(durations)
    assert deadline_after(durations, patience, longest_s=60) == found


def test_one_straggler_among_past_answers_does_not_move_the_deadline() -> None:
    patience = Patience(spread=3, shortest_s=0.1)
    usual = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0]
    assert deadline_after([*usual, 500.0], patience, longest_s=60) == pytest.approx(
        deadline_after(usual, patience, longest_s=60), rel=0.3
    )


def an_update(device: str) -> Update:
    return Update(device, 30, {"w": np.ones(2, np.float32)})


def test_a_round_closes_at_its_target_and_does_not_wait_for_the_slow() -> None:
    r = Round("r-1", frozenset("abcd"), quorum=2, opened=0, deadline=60, parameters=PARAMETERS, target=3)
    for now, device in enumerate("abc", start=1):
        assert r.state is State.OPEN
        r.receive(device, an_update(device), now)
    assert (r.state, r.why) == (State.CLOSED, "target reached")
    assert r.outcome is not None and r.outcome.silent == ("d",) and r.outcome.took == {"a": 1, "b": 2, "c": 3}
    assert r.receive("d", an_update("d"), 4) == "late"


def test_a_federation_asks_the_rested_and_learns_how_long_answers_take() -> None:
    plan = Plan(
        rounds=3,
        min_devices=2,
        cohort=CohortOptions(target=2, over=0.0, order="rested"),
        patience=Patience(spread=3, shortest_s=1),
    )
    f = Federation("run", plan, model="m", parameters=PARAMETERS)
    everyone = [a_candidate(name) for name in "abcd"]
    seen = []
    for now in (0.0, 100.0):
        opened = f.begin(everyone, now)
        assert opened is not None and opened.deadline == now + 60 and len(f.passed_over) == 2
        seen.append(opened.cohort)
        for device in sorted(opened.cohort):
            opened.receive(device, an_update(device), now + 2)
        f.conclude(now + 2)
    assert seen[0] | seen[1] == set("abcd"), "those who had not taken part came first"
    third = f.begin(everyone, 200.0)
    assert third is not None and third.deadline == 202.0, "four answers of 2 s without any spread"
