"""Rounds without waiting: what a step is made of, who is asked, and that no order of events hangs or counts twice."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgeml.errors import UserError
from edgeml.federated import Buffer, BufferOptions, Candidate, CohortOptions, ServerStep, State, Update
from edgeml.federated.buffer import Step
from edgeml.federated.journal import arrays_of, buffer_state, resume_buffer

PARAMETERS = {"w": np.zeros(2, np.float32)}


def a_buffer(size: int = 3, *, max_staleness: int = 5, at_once: int = 0, **changes: Any) -> Buffer:
    options = BufferOptions(size=size, max_staleness=max_staleness, at_once=at_once)
    given: dict[str, Any] = {"quorum": min(2, size), "min_rows": 20, "deadline_s": 60.0, "parameters": PARAMETERS}
    return Buffer(options, **{**given, "now": 0.0, **changes})


def fleet(names: str, rows: int = 30) -> list[Candidate]:
    return [Candidate(device=name, rows=rows) for name in names]


def an_update(device: str, value: float = 1.0, *, rows: int = 30) -> Update:
    return Update(device, rows, {"w": np.full(2, value, np.float32)})


def the_step(buffer: Buffer, now: float) -> Step:
    step = buffer.tick(now)
    assert step is not None
    return step


def test_a_step_is_made_at_k_updates_and_old_ones_weigh_less() -> None:
    b = a_buffer(size=2)
    assert b.ask(fleet("abc"), 0.0) == ("a", "b", "c")
    for device in "ab":
        assert b.receive(an_update(device), version=0) == ""
    step = the_step(b, 1.0)
    assert (step.number, step.state, step.why, step.silent) == (1, State.CLOSED, "buffer full", ("c",))
    np.testing.assert_allclose(b.parameters["w"], 1.0)
    assert b.ask(fleet("abc"), 1.0) == ("a", "b"), "c is still at work on version 0"
    assert b.receive(an_update("a", 3.0), version=1) == ""
    assert b.receive(an_update("c", 5.0), version=0) == "", "late, and taken"
    step = the_step(b, 2.0)
    assert {one.update.device: one.staleness for one in step.held} == {"a": 0, "c": 1}
    np.testing.assert_allclose(b.parameters["w"], 1.0 + (3.0 + 5.0 / np.sqrt(2)) / 2, rtol=1e-6)
    assert (b.version, b.steps) == (2, 2)


def test_an_update_older_than_the_limit_is_counted_and_its_device_asked_anew() -> None:
    b = a_buffer(size=1, quorum=1, max_staleness=1)
    b.ask(fleet("ab"), 0.0)
    for version in range(2):
        b.receive(an_update("a"), version=version)
        the_step(b, 1.0)
        b.ask(fleet("a"), 1.0)
    assert b.receive(an_update("b"), version=0) == "stale"
    assert b.rejected == {"b": {"stale": 1}} and b.ask(fleet("b"), 2.0) == ("b",)


@pytest.mark.parametrize(
    ("device", "version", "value", "fault"),
    [
        ("a", 0, 1.0, "duplicate"),
        ("b", 0, float("nan"), "nan"),
        ("b", 0, float("inf"), "infinite"),
        ("z", 0, 1.0, "stranger"),
        ("b", 7, 1.0, "late"),
    ],
)
def test_what_cannot_be_taken_is_counted_by_its_fault(device: str, version: int, value: float, fault: str) -> None:
    b = a_buffer()
    b.ask(fleet("ab"), 0.0)
    b.receive(an_update("a"), version=0)
    assert b.receive(an_update(device, value), version=version) == fault
    assert b.rejected == {device: {fault: 1}} and set(b.held) == {"a"}


def test_an_update_of_a_step_that_was_made_is_a_replay() -> None:
    b = a_buffer(size=1, quorum=1)
    b.ask(fleet("a"), 0.0)
    b.receive(an_update("a"), version=0)
    the_step(b, 1.0)
    assert b.receive(an_update("a"), version=0) == "replayed"


def test_below_k_a_step_is_made_when_nobody_is_at_work_any_more() -> None:
    b = a_buffer(size=5)
    b.ask(fleet("abc"), 0.0)
    b.receive(an_update("a"), version=0)
    b.refuse("b", "policy", version=0)
    b.receive(an_update("c"), version=0)
    step = the_step(b, 2.0)
    assert (step.why, len(step.held), dict(step.refused)) == ("nobody at work", 2, {"b": "policy"})


def test_nobody_waits_for_a_lost_device_but_its_update_is_taken_when_it_comes() -> None:
    b = a_buffer(size=5)
    b.ask(fleet("abc"), 0.0)
    b.lost("c")
    for device in "ab":
        b.receive(an_update(device), version=0)
    assert the_step(b, 1.0).why == "nobody at work"
    assert b.receive(an_update("c"), version=0) == "" and b.held["c"].staleness == 1


def test_without_a_quorum_it_is_abandoned_and_everybody_is_asked_again() -> None:
    b = a_buffer()
    b.ask(fleet("ab"), 0.0)
    b.receive(an_update("a"), version=0)
    assert b.tick(59.0) is None
    step = the_step(b, 60.0)
    assert (step.state, step.why, b.version, b.steps) == (State.ABANDONED, "deadline, quorum missed", 0, 1)
    assert b.ask(fleet("ab"), 60.0) == ("a", "b")
    assert b.receive(an_update("a"), version=0) == "", "the same version, once more"


def test_if_all_refuse_it_does_not_wait_for_the_deadline() -> None:
    b = a_buffer()
    b.ask(fleet("ab"), 0.0)
    for device in "ab":
        b.refuse(device, "policy", version=0)
    assert the_step(b, 1.0).why == "quorum impossible"


def test_devices_at_once_are_bounded_and_those_who_waited_longest_come_first() -> None:
    b = a_buffer(size=2, at_once=2)
    assert b.ask(fleet("abcd"), 0.0) == ("a", "b")
    for device in "ab":
        b.receive(an_update(device), version=0)
    the_step(b, 1.0)
    assert b.ask(fleet("abcd"), 1.0) == ("c", "d")


def test_the_servers_step_and_the_limits_of_the_cohort_hold_here_too() -> None:
    b = a_buffer(size=1, quorum=1, server=ServerStep(kind="momentum", beta1=0.5), cohort=CohortOptions(selector="a, b"))
    for version in range(2):
        assert b.ask([*fleet("ac"), Candidate(device="b", rows=3)], 0.0) == ("a",)
        b.receive(an_update("a"), version=version)
        the_step(b, 1.0)
    np.testing.assert_allclose(b.parameters["w"], 1 + 1.5)


def test_options_that_could_never_make_a_step_are_refused() -> None:
    with pytest.raises(UserError, match="1 or more"):
        BufferOptions(size=0)
    with pytest.raises(UserError, match="a quorum of 4 for a buffer of 3"):
        a_buffer(size=3, quorum=4)


class BufferMachine(RuleBasedStateMachine):
    """Any order of events: no update counts twice, the sum is right, no server's death changes it, and it goes on."""

    devices = st.sampled_from(["a", "b", "c", "d", "stranger"])

    @initialize(size=st.integers(1, 4), quorum=st.integers(1, 2), at_once=st.integers(0, 3))
    def open(self, size: int, quorum: int, at_once: int) -> None:
        self.settings: dict[str, Any] = {"size": size, "quorum": min(quorum, size), "at_once": at_once}
        self.b = a_buffer(**self.settings, max_staleness=2)
        self.now, self.faults = 0.0, 0
        self.taken: dict[str, tuple[float, int]] = {}
        self.expected = np.zeros(2)
        self.used = set[tuple[str, int, int]]()

    @rule()
    def ask(self) -> None:
        before = dict(self.b.tickets)
        for device in self.b.ask(fleet("abcd"), self.now):
            assert device not in before and self.b.tickets[device].version == self.b.version

    @rule(device=devices, back=st.integers(0, 4), value=st.floats(-5, 5), good=st.booleans())
    def update(self, device: str, back: int, value: float, good: bool) -> None:
        version = self.b.version - back
        staleness = self.b.version - version
        fault = self.b.receive(an_update(device, value if good else np.nan), version=version)
        if fault:
            self.faults += 1
            return
        assert good and staleness <= 2 and device in "abcd" and device not in self.taken
        assert (device, version, self.b.steps) not in self.used
        self.used.add((device, version, self.b.steps))
        self.taken[device] = (float(np.float32(value)), staleness)

    @rule(device=devices, back=st.integers(0, 2))
    def refuse(self, device: str, back: int) -> None:
        self.faults += bool(self.b.refuse(device, "policy", version=self.b.version - back))

    @rule(device=devices, back=st.booleans())
    def come_or_go(self, device: str, back: bool) -> None:
        (self.b.back if back else self.b.lost)(device)

    @rule(seconds=st.floats(0, 50))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        version, began = self.b.version, self.b.began
        step = self.b.tick(self.now)
        if step is None:
            assert self.now < began + 60 and len(self.b.held) < self.b.options.size
            return
        assert {one.update.device for one in step.held} == self.taken.keys()
        assert sum(sum(counts.values()) for counts in step.rejected.values()) == self.faults
        assert (step.state is State.CLOSED) == (len(step.held) >= self.b.quorum)
        if step.state is State.CLOSED:
            self.expected += sum(value / np.sqrt(1 + s) for value, s in self.taken.values()) / len(self.taken)
            assert self.b.version == version + 1
        self.taken, self.faults = {}, 0

    @rule()
    def the_server_dies_and_comes_back(self) -> None:
        state, arrays = buffer_state(self.b, self.now), arrays_of(self.b)
        held = [(one.update, self.b.version - one.staleness) for one in self.b.held.values()]
        again = a_buffer(**self.settings, max_staleness=2)
        resume_buffer(again, state, arrays, held=held, run="run", now=self.now)
        assert (again.held.keys(), again.seen, again.rejected) == (self.b.held.keys(), self.b.seen, self.b.rejected)
        assert again.tickets.keys() == self.b.tickets.keys() and again.began >= self.b.began
        self.b = again

    @invariant()
    def the_parameters_are_the_weighted_sums_of_what_was_taken(self) -> None:
        assert self.b.held.keys() == self.taken.keys()
        assert not self.b.held.keys() & self.b.tickets.keys()
        np.testing.assert_allclose(self.b.parameters["w"], self.expected, atol=1e-4)


TestBufferMachine = BufferMachine.TestCase
TestBufferMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
