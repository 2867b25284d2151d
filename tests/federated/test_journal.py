"""A federation that dies between any two events, and wakes up at any time, ends with the same bits."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.errors import UserError
from edgeml.federated import CohortOptions, Federation, Patience, Plan, ServerStep, State, Update
from edgeml.federated.journal import FederationState, arrays_of, resume, state_of
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.plain import from_plain, to_plain

PARAMETERS = {"w": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32)}
FLEET = dict.fromkeys("abcde", 50)
PLAN = Plan(
    rounds=3,
    min_devices=2,
    max_abandoned=10,
    deadline_s=60,
    server=ServerStep(kind="adam", rate=0.1),
    cohort=CohortOptions(target=3, over=0.5, order="rested"),
    patience=Patience(spread=3, shortest_s=5),
)


def a_federation(**changes: Any) -> Federation:
    return Federation("run", PLAN, model="m", parameters={**PARAMETERS, **changes})


def an_update(device: str, number: int) -> Update:
    rng = np.random.default_rng([ord(device), number])
    delta = {name: rng.normal(size=value.shape).astype(np.float32) for name, value in PARAMETERS.items()}
    return Update(device, 30 + ord(device) % 7, delta, {"loss.after": 0.5})


def reborn(federation: Federation, now: float, wakes: float) -> Federation:
    """Return what a new process makes of what the old one wrote: JSON and safetensors, and its kept updates."""
    facts = json.loads(json.dumps(to_plain(state_of(federation, now))))
    arrays = tensors.unpack(tensors.pack(arrays_of(federation)))
    again = a_federation()
    resume(again, from_plain(FederationState, facts), arrays, now=wakes)
    if federation.round is not None:
        assert again.round is not None
        for device, update in federation.round.updates.items():
            assert again.round.receive(device, update, wakes) == ""
            again.round.took[device] = federation.round.took[device]
    return again


def end(deaths: dict[int, float]) -> Federation:
    """Go through all rounds, dying before the events that `deaths` names and waking at its times."""
    federation, now, event = a_federation(), 0.0, 0
    while not federation.finished:
        opened = federation.begin(FLEET, now)
        assert opened is not None
        for device in sorted(opened.cohort):
            if event in deaths:
                federation = reborn(federation, now, deaths[event])
                now = deaths[event]
            event += 1
            assert federation.round is not None
            federation.round.receive(device, an_update(device, len(federation.history)), now)
        federation.conclude(now)
    return federation


@settings(max_examples=40)
@given(st.dictionaries(st.integers(0, 11), st.floats(-1e6, 1e6), max_size=5))
def test_deaths_at_any_event_and_clocks_that_jump_change_no_bit(deaths: dict[int, float]) -> None:
    undisturbed, found = end({}), end(deaths)
    for name, value in undisturbed.parameters.items():
        assert found.parameters[name].tobytes() == value.tobytes()
    assert [r.participants for r in found.history] == [r.participants for r in undisturbed.history]
    assert found.last_round == undisturbed.last_round


@given(st.floats(0, 1e5), st.floats(-1e6, 1e6))
def test_a_resumed_round_has_waited_what_it_has_waited_and_at_least_a_quarter_is_left(
    spent: float, wakes: float
) -> None:
    federation = a_federation()
    assert federation.begin(FLEET, 0.0) is not None
    again = reborn(federation, spent, wakes).round
    assert again is not None and again.tick(wakes) is State.OPEN
    assert again.deadline - wakes == pytest.approx(max(60 - spent, 15.0), abs=1e-6 * max(1.0, abs(wakes)))
    assert again.tick(again.deadline) is State.ABANDONED, "it ends all the same"


def test_refusals_and_counts_of_a_round_outlive_it() -> None:
    federation = a_federation()
    opened = federation.begin(FLEET, 0.0)
    assert opened is not None
    first, second = sorted(opened.cohort)[:2]
    opened.refuse(first, "policy", 1.0)
    opened.count(second, "unsigned")
    again = reborn(federation, 2.0, 0.0).round
    assert again is not None and again.refused == {first: "policy"} and again.rejected == {second: {"unsigned": 1}}
    assert (again.cohort, again.target, again.quorum) == (opened.cohort, opened.target, opened.quorum)


def test_a_journal_of_another_model_is_refused() -> None:
    state, arrays = state_of(a_federation(), 0.0), arrays_of(a_federation())
    with pytest.raises(UserError, match="2 parameters that are not those of the model"):
        resume(a_federation(w=np.zeros((3, 3), np.float32)), state, arrays, now=0.0)
