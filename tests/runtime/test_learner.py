"""The federated machine and the owner's policy: what a device refuses, and what it sends."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_runtime.config import Policy
from edgeml_runtime.learner import (
    TRANSITIONS,
    Facts,
    Fetch,
    LocalRound,
    Phase,
    Refuse,
    Train,
    Upload,
)
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.tasks import KINDS, LABELLED

FACTS = Facts("pi-1", rows=50, model="digits")


def an_offer(**changes: Any) -> TaskOffer:
    return TaskOffer(
        **{
            "round": "r1",
            "kind": "training",
            "model": "digits",
            "cohort": ("pi-1", "pi-2"),
            "graph": "0" * 64,
            "graph_bytes": 10,
            "parameters": "1" * 64,
            "parameters_bytes": 10,
            "scalars": {"lr": 0.1, "seed": 3.0},
            "min_rows": 10,
            "max_update_bytes": 1000,
            "deadline_s": 30.0,
            **changes,
        }
    )


def test_a_round_is_fetched_trained_and_uploaded() -> None:
    machine = LocalRound(Policy())
    assert machine.offered(an_offer(), FACTS, 0.0) == [Fetch(an_offer())]
    assert machine.outcome("arrived") == [Train(an_offer())]
    assert machine.outcome("trained") == [Upload(an_offer())]
    assert machine.phase is Phase.DONE


def test_a_device_outside_the_cohort_stays_silent() -> None:
    machine = LocalRound(Policy())
    assert machine.offered(an_offer(cohort=("pi-2",)), FACTS, 0.0) == []
    assert machine.phase is Phase.IDLE


@pytest.mark.parametrize(
    ("offer", "facts", "policy", "why"),
    [
        ({}, {}, {"accept": ()}, "accepts no tasks, not training"),
        ({}, {"model": ""}, {}, "no model runs here"),
        ({"model": "letters"}, {}, {}, "the task is for letters, and digits runs here"),
        ({}, {"rows": 9, "stored": 90}, {}, "9 labelled rows, and 10 are needed"),
        ({"kind": "evaluation"}, {"rows": 9, "stored": 90}, {}, "9 labelled rows, and 10 are needed"),
        ({"held_out": 0.2}, {"rows": 9, "aside": 3}, {}, "9 labelled rows to learn from (3 held out), and 10 are"),
        (
            {"held_out": 0.2, "kind": "evaluation"},
            {"rows": 9, "aside": 41},
            {},
            "9 labelled rows held out (41 to learn",
        ),
        ({"held_out": 0.25}, {}, {}, "held_out 0.25: a device holds out 0, 0.1"),
        ({"held_out": float("nan"), "kind": "drift"}, {}, {}, "held_out nan: a device holds out"),
        ({"kind": "drift"}, {"rows": 0, "stored": 9}, {}, "9 rows, and 10 are needed"),
        ({"kind": "statistics"}, {}, {"accept": ("training", "bench")}, "accepts training, bench, not statistics"),
        ({}, {}, {"min_rows": 51}, "50 labelled rows, and 51 are needed"),
        ({}, {}, {"max_update_bytes": 999}, "1,000 bytes, and the owner's policy allows 999"),
    ],
)
def test_what_policy_or_data_forbid_is_refused_with_the_numbers(
    offer: dict[str, Any], facts: dict[str, Any], policy: dict[str, Any], why: str
) -> None:
    machine = LocalRound(Policy(**policy))
    (effect,) = machine.offered(an_offer(**offer), Facts(**{**vars(FACTS), **facts}), 0.0)
    assert isinstance(effect, Refuse) and why in effect.reason
    assert machine.phase is Phase.REFUSED


@pytest.mark.parametrize("kind", sorted({*KINDS} - LABELLED))
def test_a_task_that_may_need_no_labels_is_fetched_for_rows_without(kind: str) -> None:
    (effect,) = LocalRound(Policy()).offered(an_offer(kind=kind), Facts("pi-1", 0, "digits", stored=10), 0.0)
    assert isinstance(effect, Fetch)


def test_an_offer_that_comes_twice_is_trained_once_and_answered_again() -> None:
    machine = LocalRound(Policy())
    machine.offered(an_offer(), FACTS, 0.0)
    assert machine.offered(an_offer(), FACTS, 1.0) == []
    machine.outcome("arrived")
    assert machine.offered(an_offer(), FACTS, 2.0) == []
    machine.outcome("trained")
    assert machine.offered(an_offer(), FACTS, 3.0) == [Upload(an_offer())]


def test_a_refused_round_is_taken_up_when_it_is_offered_again_and_the_rows_are_there() -> None:
    machine = LocalRound(Policy())
    machine.offered(an_offer(), Facts("pi-1", rows=0, model="digits"), 0.0)
    assert machine.offered(an_offer(), FACTS, 1.0) == [Fetch(an_offer())]


def test_a_newer_round_takes_the_place_of_one_under_way() -> None:
    machine = LocalRound(Policy())
    machine.offered(an_offer(), FACTS, 0.0)
    assert machine.offered(an_offer(round="r2"), FACTS, 1.0) == [Fetch(an_offer(round="r2"))]


@pytest.mark.parametrize("events", [(), ("arrived",)])
def test_a_deadline_ends_the_round_with_a_reason(events: tuple[str, ...]) -> None:
    machine = LocalRound(Policy())
    machine.offered(an_offer(), FACTS, 0.0)
    for event in events:
        machine.outcome(event)
    assert machine.tick(29.0) == []
    (effect,) = machine.tick(30.0)
    assert isinstance(effect, Refuse) and "after 30 s" in effect.reason


def test_after_a_lost_connection_the_answer_is_given_again_until_the_deadline() -> None:
    machine = LocalRound(Policy())
    machine.offered(an_offer(), FACTS, 0.0)
    machine.outcome("arrived")
    assert machine.reconnected(1.0) == []
    machine.outcome("trained")
    assert machine.reconnected(2.0) == [Upload(an_offer())]
    assert machine.reconnected(31.0) == []


@pytest.mark.parametrize(("phase", "event"), sorted(TRANSITIONS))
def test_every_row_of_the_table_has_one_effect(phase: Phase, event: str) -> None:
    machine = LocalRound(Policy())
    machine.phase, machine.offer = phase, an_offer()
    assert len(machine.outcome(event, reason="why")) == 1
    assert machine.phase is TRANSITIONS[phase, event]


@given(st.lists(st.sampled_from(sorted({event for _, event in TRANSITIONS})), max_size=20))
def test_nothing_is_trained_that_was_not_fetched(events: list[str]) -> None:
    machine, fetched = LocalRound(Policy()), False
    machine.offer = an_offer()
    for event in events:
        for effect in machine.outcome(event):
            assert not isinstance(effect, Train) or fetched
            fetched = isinstance(effect, Fetch)
