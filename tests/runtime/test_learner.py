"""The federated machine and the owner's policy: what a device refuses, and what it sends."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_runtime.config import Policy
from edgeml_runtime.errors import ShapeMismatch, TaskRefused
from edgeml_runtime.learner import (
    TRANSITIONS,
    Facts,
    Fetch,
    LocalRound,
    Phase,
    Refuse,
    Train,
    Upload,
    check_graph,
    feeds,
    update_of,
)
from edgeml_runtime.wire.manifest import TensorSpec
from edgeml_runtime.wire.messages import TaskOffer

FACTS = Facts("pi-1", rows=50, model="digits")
INPUTS = (
    TensorSpec(name="numeric", dtype="float32", shape=(-1, 4)),
    TensorSpec(name="target", dtype="int64", shape=(-1,)),
    TensorSpec(name="lr", dtype="float32", shape=()),
    TensorSpec(name="seed", dtype="int64", shape=()),
    TensorSpec(name="w", dtype="float32", shape=(4, 3)),
)
DELTA = TensorSpec(name="delta.w", dtype="float32", shape=(4, 3))
LOSS = TensorSpec(name="loss.after", dtype="float32", shape=())


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
        ({}, {"rows": 9}, {}, "9 labelled rows, and 10 are needed"),
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


def test_a_training_task_passes_the_check() -> None:
    check_graph(INPUTS, (DELTA, LOSS), max_update_bytes=48)


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ((DELTA, TensorSpec(name="rows", dtype="float32", shape=(-1, 4))), "'rows' of shape"),
        ((DELTA, TensorSpec(name="names", dtype="string", shape=(2,))), "could carry rows away"),
        ((LOSS,), "no training task"),
        ((DELTA, TensorSpec(name="extra", dtype="float32", shape=(5000,))), "5000 values"),
        ((TensorSpec(name="delta.w", dtype="float32", shape=(4, 4)),), "outputs of 64 bytes"),
        ((TensorSpec(name="delta.v", dtype="float32", shape=(4, 3)),), "the change of no parameter"),
        ((TensorSpec(name="delta.w", dtype="float32", shape=(3, 4)),), "the change of no parameter"),
    ],
)
def test_a_task_that_could_carry_rows_away_is_refused(outputs: tuple[TensorSpec, ...], why: str) -> None:
    with pytest.raises(TaskRefused, match=why):
        check_graph(INPUTS, outputs, max_update_bytes=48)


def given_feeds(specs: tuple[TensorSpec, ...] = INPUTS, target: np.ndarray | None = None) -> dict[str, np.ndarray]:
    local = {"numeric": np.ones((2, 4), np.float32), "unused": np.ones((2, 1), np.float32)}
    rows = local, np.array([0, 2]) if target is None else target
    return feeds(specs, rows, scalars={"lr": 0.5, "seed": 7.0}, parameters={"w": np.zeros((4, 3), np.float32)})


def test_the_feeds_are_what_the_graph_takes_in_its_own_types() -> None:
    found = given_feeds()
    assert set(found) == {"numeric", "target", "lr", "seed", "w"}
    assert found["seed"].dtype == np.int64 and found["seed"].shape == () and int(found["seed"]) == 7
    assert found["lr"].dtype == np.float32 and found["target"].tolist() == [0, 2]


def test_targets_of_a_regression_become_one_column() -> None:
    spec = TensorSpec(name="target", dtype="float32", shape=(-1, 1))
    found = given_feeds((spec,), np.array([1, 2]))
    assert found["target"].shape == (2, 1) and found["target"].dtype == np.float32


def test_an_input_that_nobody_has_is_named() -> None:
    with pytest.raises(ShapeMismatch, match="takes 'v'"):
        given_feeds((*INPUTS, TensorSpec(name="v", dtype="float32", shape=(2,))))
    with pytest.raises(ShapeMismatch, match="class indices"):
        given_feeds(INPUTS, np.array([0.5, 1.5], np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_update_that_diverged_is_refused(bad: float) -> None:
    delta = np.zeros((4, 3), np.float32)
    delta[1, 1] = bad
    with pytest.raises(TaskRefused, match="1 numbers of the update are NaN or infinite"):
        update_of({"delta.w": delta, "loss.after": np.float32(0.1)})


def test_the_update_is_named_by_parameter_and_the_losses_are_kept() -> None:
    update, metrics = update_of(
        {
            "delta.w": np.ones(2, np.float32),
            "loss.before": np.float32(2),
            "loss.after": np.float32(1),
            "rows": np.array(3),
        }
    )
    assert list(update) == ["w"] and metrics == {"loss.before": 2.0, "loss.after": 1.0}
