"""A round as a state machine: who is taken, who is turned away, and when it is over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgeml.errors import QuorumNotReached, UserError
from edgeml.federated import FAULTS, Round, State, Update, aggregate
from edgeml.federated.roll import MAX_STRANGERS, OTHERS
from edgeml.federated.round import TRANSITIONS

PARAMETERS = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}


def a_round(**changes: Any) -> Round:
    given: dict[str, Any] = {"id": "run-1", "cohort": frozenset("abc"), "quorum": 2, "opened": 0.0, "deadline": 60.0}
    return Round(**{**given, "parameters": PARAMETERS, **changes})


def an_update(device: str = "a", *, rows: int = 10, value: float = 1.0, **changes: Any) -> Update:
    delta = {name: np.full(array.shape, value, np.float32) for name, array in PARAMETERS.items()}
    return Update(device, rows, **{"delta": delta, **changes})


def test_a_round_closes_as_soon_as_every_device_answered() -> None:
    r = a_round()
    assert [r.receive(d, an_update(d), now) for now, d in enumerate("abc", start=1)] == ["", "", ""]
    assert (r.state, r.why) == (State.CLOSED, "all answered")
    assert r.outcome is not None and r.outcome.seconds == 3 and len(r.outcome.updates) == 3 and r.outcome.error is None


def test_changes_may_be_named_as_the_task_names_them() -> None:
    r = a_round()
    task_names = {f"delta.{name}": value for name, value in PARAMETERS.items()}
    assert r.receive("a", an_update("a", delta=task_names), 1) == ""
    assert r.updates["a"].delta.keys() == PARAMETERS.keys()


def test_a_refusal_is_an_answer_too() -> None:
    r = a_round()
    r.receive("a", an_update("a"), 1)
    r.refuse("c", "5 labelled rows, 20 needed", 2)
    assert r.outcome is None
    r.receive("b", an_update("b"), 3)
    assert r.outcome is not None and dict(r.outcome.refused) == {"c": "5 labelled rows, 20 needed"}
    assert r.state is State.CLOSED and r.outcome.silent == ()


def test_a_device_may_change_its_mind_while_the_round_is_open() -> None:
    r = a_round()
    r.refuse("a", "no rows yet", 1)
    assert r.receive("a", an_update("a"), 2) == ""
    assert not r.refused and set(r.updates) == {"a"}


def test_at_the_deadline_a_quorum_closes_the_round_and_the_silent_are_named() -> None:
    r = a_round()
    r.receive("a", an_update("a"), 1)
    r.receive("c", an_update("c"), 2)
    assert r.tick(59.9) is State.OPEN
    assert r.tick(60.0) is State.CLOSED
    assert r.outcome is not None and r.outcome.silent == ("b",) and r.outcome.seconds == 60


def test_below_the_quorum_the_round_is_abandoned_and_says_what_to_change() -> None:
    r = a_round()
    r.receive("a", an_update("a"), 1)
    assert r.tick(61) is State.ABANDONED
    assert r.outcome is not None
    error = r.outcome.error
    assert isinstance(error, QuorumNotReached) and (error.arrived, error.quorum) == (1, 2)
    assert "run-1: 1 of the 2 updates needed" in str(error) and "lower the quorum" in str(error)


def test_a_quorum_that_has_become_impossible_ends_the_round_at_once() -> None:
    r = a_round()
    r.refuse("a", "policy", 1)
    assert r.state is State.OPEN
    r.refuse("b", "policy", 2)
    assert (r.state, r.why) == (State.ABANDONED, "quorum impossible")


def test_nobody_waits_for_a_lost_device_once_there_is_a_quorum() -> None:
    r = a_round()
    r.receive("a", an_update("a"), 1)
    r.lost("c", 2)
    r.receive("b", an_update("b"), 3)
    assert r.state is State.CLOSED and r.outcome is not None and r.outcome.silent == ("c",)


def test_below_the_quorum_a_lost_device_is_waited_for_until_the_deadline() -> None:
    r = a_round(cohort=frozenset("ab"))
    r.receive("a", an_update("a"), 1)
    r.lost("b", 2)
    assert r.tick(30) is State.OPEN
    assert r.receive("b", an_update("b"), 31) == ""
    assert r.state is State.CLOSED


def test_a_device_that_is_back_is_waited_for_again() -> None:
    r = a_round()
    r.lost("c", 1)
    r.back("c", 2)
    for device in "ab":
        r.receive(device, an_update(device), 3)
    assert r.state is State.OPEN


def test_duplicates_strangers_late_and_invalid_updates_are_counted_with_their_reasons() -> None:
    r = a_round()
    broken = an_update("b", value=float("nan"))
    assert r.receive("a", an_update("a"), 1) == ""
    assert r.receive("a", an_update("a", value=5), 2) == "duplicate"
    assert r.receive("z", an_update("z"), 3) == "stranger"
    assert r.receive("b", broken, 4) == "nan"
    assert "6 of 6 values of the update are not finite" in r.refused["b"]
    r.tick(60)
    assert r.receive("c", an_update("c"), 61) == "late"
    assert r.refuse("c", "too busy", 62) == "late"
    assert r.outcome is not None
    assert {name: dict(counts) for name, counts in r.outcome.rejected.items()} == {
        "a": {"duplicate": 1},
        "z": {"stranger": 1},
        "b": {"nan": 1},
        "c": {"late": 2},
    }


@pytest.mark.parametrize(
    ("update", "fault", "detail"),
    [
        (an_update(rows=0), "rows", "0 rows of a; need 1 of a"),
        (an_update("b"), "rows", "10 rows of b; need 1 of a"),
        (an_update(delta={"w": np.zeros((2, 3), np.float32)}), "names", "'b' is missing"),
        (an_update(delta={**PARAMETERS, "extra": np.zeros(1, np.float32)}), "names", "'extra' is unknown"),
        (an_update(delta={**PARAMETERS, "b": np.zeros(4, np.float32)}), "shape", r"'b': the update has float32 \(4,\)"),
        (an_update(delta={**PARAMETERS, "b": np.zeros(3)}), "shape", "float64"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_with_the_numbers(update: Update, fault: str, detail: str) -> None:
    r = a_round()
    assert r.receive("a", update, 1) == fault and fault in FAULTS
    with pytest.raises(AssertionError, match=detail):
        raise AssertionError(r.refused["a"])
    assert not r.updates


def test_a_flood_of_strangers_stays_small() -> None:
    r = a_round()
    for i in range(MAX_STRANGERS + 500):
        r.receive(f"stranger-{i}", an_update(), 1)
    assert len(r.rejected) <= MAX_STRANGERS + len(r.cohort) + 1
    assert sum(sum(counts.values()) for counts in r.rejected.values()) == MAX_STRANGERS + 500
    assert r.rejected[OTHERS]["stranger"] > 400
    assert r.receive("a", an_update(), 1) == "" and r.receive("a", an_update(), 1) == "duplicate"
    assert r.rejected["a"] == {"duplicate": 1}


@pytest.mark.parametrize("changes", [{"quorum": 4}, {"quorum": 0}, {"cohort": frozenset()}, {"deadline": 0.0}])
def test_a_round_that_could_never_close_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="round run-1"):
        a_round(**changes)


def test_every_transition_leaves_the_open_state_for_good() -> None:
    assert {before for before, _ in TRANSITIONS} == {State.OPEN}
    assert State.OPEN not in TRANSITIONS.values()


def test_a_thousand_devices_take_part_in_one_round() -> None:
    devices = [f"pi-{i}" for i in range(1000)]
    rng = np.random.default_rng(0)
    r = a_round(cohort=frozenset(devices), quorum=700, deadline=1000.0)
    expected, rows, now = np.zeros((2, 3)), 0, 0.0
    for i, device in enumerate(rng.permutation(devices).tolist()):
        now += 0.1
        if i % 10 == 7:
            r.refuse(device, "too few rows", now)
        elif i % 10 == 8:
            r.lost(device, now)
        else:
            n, value = int(rng.integers(1, 500)), float(rng.normal())
            assert r.receive(device, an_update(device, rows=n, value=value), now) == ""
            expected += n * np.float32(value)
            rows += n
            assert r.receive(device, an_update(device), now) == "duplicate"
    assert r.state is State.CLOSED and r.outcome is not None
    assert (len(r.outcome.updates), len(r.outcome.refused), len(r.outcome.silent)) == (800, 100, 100)
    np.testing.assert_allclose(aggregate(r.outcome.updates)["w"], expected / rows, atol=1e-6)


class RoundMachine(RuleBasedStateMachine):
    """Any order of events: what was decided stays decided, and nothing is counted twice."""

    devices = st.sampled_from(["a", "b", "c", "d", "stranger"])

    @initialize(quorum=st.integers(1, 4), enough=st.integers(1, 4))
    def open(self, quorum: int, enough: int) -> None:
        self.round = a_round(cohort=frozenset("abcd"), quorum=quorum, target=enough)
        self.now, self.calls, self.taken = 0.0, 0, set[str]()
        self.ended: Any = None

    @rule(device=devices, good=st.booleans())
    def update(self, device: str, good: bool) -> None:
        value = 1.0 if good else float("inf")
        before = self.round.tick(self.now)
        reason = self.round.receive(device, an_update(device, value=value), self.now)
        self.calls += bool(reason)
        if not reason:
            assert good and before is State.OPEN and device in "abcd" and device not in self.taken
            self.taken.add(device)

    @rule(device=devices)
    def refuse(self, device: str) -> None:
        self.calls += bool(self.round.refuse(device, "policy", self.now))

    @rule(device=devices, back=st.booleans())
    def come_or_go(self, device: str, back: bool) -> None:
        (self.round.back if back else self.round.lost)(device, self.now)

    @rule(seconds=st.floats(0, 30))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.round.tick(self.now)

    @invariant()
    def the_books_balance(self) -> None:
        assert set(self.round.updates) == self.taken <= self.round.cohort
        assert not self.round.updates.keys() & self.round.refused.keys()
        assert sum(sum(counts.values()) for counts in self.round.rejected.values()) == self.calls

    @invariant()
    def it_ends_when_it_must_and_never_changes_again(self) -> None:
        outcome = self.round.outcome
        if self.ended is not None:
            assert (self.round.state, len(self.round.updates)) == self.ended
        elif outcome is not None:
            self.ended = (self.round.state, len(self.round.updates))
            reached = len(outcome.updates) >= self.round.quorum
            assert (outcome.state is State.CLOSED) == reached == (outcome.error is None)
        else:
            assert self.now < self.round.deadline and len(self.round.updates) < self.round.target
            assert len(self.round.updates) + len(self.round.refused) < 4


TestRoundMachine = RoundMachine.TestCase
TestRoundMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
