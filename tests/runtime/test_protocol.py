"""The deployment machine: every step of the table, and what no sequence of events may ever do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_runtime.presence import Presence, Verdict
from edgeml_runtime.protocol import (
    BEFORE,
    ENDS,
    SERVING,
    STEPS,
    TERMINAL,
    TRANSITIONS,
    Deployment,
    Do,
    Phase,
    Record,
    Report,
    Save,
)
from edgeml_runtime.wire.messages import TERMINAL as WIRE_TERMINAL
from edgeml_runtime.wire.messages import Assignment, Online

HAPPY = ("arrived", "verified", "arrived", "installed", "probed", "serving")


def an_assignment(**changes: Any) -> Assignment:
    return Assignment(
        **{
            "device": "pi-1",
            "job": "j1",
            "model": "digits",
            "release": "r1",
            "manifest": "0" * 64,
            "manifest_bytes": 100,
            "seq": 1,
            "deadline_s": 60.0,
            **changes,
        }
    )


def a_deployment(*events: str, **changes: Any) -> Deployment:
    """Return a machine that was assigned a job at time 0 and then told these events."""
    machine = Deployment()
    machine.assign(an_assignment(**changes), 0.0)
    for event in events:
        machine.outcome(event, 1.0, reason="Why", detail="because")
    return machine


def steps(machine: Deployment) -> tuple[str, str]:
    assert machine.status is not None
    return machine.status.state, machine.status.step


def test_a_job_goes_through_every_step_to_success() -> None:
    machine, seen = Deployment(), []
    machine.assign(an_assignment(), 0.0)
    for event in HAPPY:
        seen.append(steps(machine)[1])
        machine.outcome(event, 1.0)
    seen.append(steps(machine)[1])
    machine.observe(2.0, predictions=0, errors=0)
    assert seen == ["DOWNLOADING", "VERIFYING", "DOWNLOADING", "VERIFYING", "PROBING", "TRIAL", "SOAKING"]
    assert steps(machine) == ("SUCCEEDED", "") and machine.status is not None and machine.status.progress == 1.0


@pytest.mark.parametrize(("phase", "event"), sorted(TRANSITIONS))
def test_every_row_of_the_table_saves_and_reports_before_it_acts(phase: Phase, event: str) -> None:
    machine = Deployment(an_assignment(), Record(phase=phase, seq=1))
    if event == "assigned":
        effects = machine.assign(an_assignment(job="j2", seq=2), 0.0)
    elif event == "soaked":
        effects = machine.observe(0.0, predictions=0, errors=0)
    else:
        effects = machine.outcome(event, 0.0, reason="Why", detail="because")
    after = TRANSITIONS[phase, event]
    assert machine.phase is after
    assert isinstance(effects[0], Save) and isinstance(effects[1], Report)
    assert [effect.phase for effect in effects[2:] if isinstance(effect, Do)] == ([after] if after in STEPS else [])


def test_every_end_is_one_that_the_wire_knows() -> None:
    assert {phase.value for phase in TERMINAL} == WIRE_TERMINAL
    assert set(Phase) == {Phase.IDLE, *STEPS, *TERMINAL}


@pytest.mark.parametrize("event", sorted(ENDS))
@pytest.mark.parametrize("count", range(len(BEFORE)))
def test_a_job_that_ends_before_its_trial_never_touched_the_release_that_serves(event: str, count: int) -> None:
    machine = a_deployment(*HAPPY[:count])
    effects = machine.outcome(event, 2.0, reason="Why", detail="because")
    assert not [effect for effect in effects if isinstance(effect, Do)]
    assert machine.phase is ENDS[event]
    assert machine.status is not None and (machine.status.reason, machine.status.detail) == ("Why", "because")


@pytest.mark.parametrize(
    ("event", "end"),
    [("failed", "ROLLED_BACK"), ("refused", "ROLLED_BACK"), ("overdue", "TIMED_OUT"), ("superseded", "CANCELED")],
)
@pytest.mark.parametrize("count", [5, 6])
def test_a_job_that_ends_from_its_trial_on_goes_back_first(event: str, end: str, count: int) -> None:
    machine = a_deployment(*HAPPY[:count])
    assert machine.phase in SERVING
    effects = machine.outcome(event, 2.0, reason="Why", detail="because")
    assert [effect.phase for effect in effects if isinstance(effect, Do)] == [Phase.ROLLING_BACK]
    machine.outcome("back", 3.0)
    assert steps(machine)[0] == end and machine.status is not None and machine.status.reason == "Why"


def test_when_there_is_nothing_to_go_back_to_the_job_says_so() -> None:
    machine = a_deployment(*HAPPY)
    machine.observe(1.0, predictions=3, errors=1, last_error="NaN in, nothing out")
    machine.outcome("failed", 2.0, reason="ModelRefused", detail="there is no earlier release")
    assert machine.status is not None
    assert machine.status.state == "FAILED"
    assert "1 of 4 predictions" in machine.status.detail and "no earlier release" in machine.status.detail


def test_soaking_lasts_until_time_and_predictions_are_both_reached() -> None:
    machine = a_deployment(*HAPPY, soak_predictions=10, soak_s=5.0)
    assert machine.observe(3.0, predictions=50, errors=0) == []
    assert machine.observe(9.0, predictions=9, errors=0) == []
    machine.observe(9.0, predictions=10, errors=0)
    assert machine.phase is Phase.SUCCEEDED


def test_the_same_assignment_again_is_answered_and_not_done() -> None:
    machine = a_deployment(*HAPPY)
    machine.observe(1.0, predictions=0, errors=0)
    effects = machine.assign(an_assignment(), 9.0)
    assert effects == [Report(machine.status)] and machine.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("changes", [{"seq": 4}, {"seq": 5, "job": "other"}])
def test_an_older_assignment_is_rejected_by_number_and_leaves_the_state_alone(changes: dict[str, Any]) -> None:
    machine = Deployment(an_assignment(seq=5), Record(phase=Phase.SUCCEEDED, seq=5))
    reply, last = machine.assign(an_assignment(**{"job": "old", **changes}), 0.0)
    assert isinstance(reply, Report) and reply.status is not None
    assert reply.status.state == "REJECTED" and "not newer than 5" in reply.status.detail
    assert last == Report(machine.status) and machine.record.seq == 5


def test_a_newer_assignment_takes_the_place_of_one_that_is_downloading() -> None:
    machine = a_deployment("arrived", "verified")
    effects = machine.assign(an_assignment(job="j2", seq=2), 3.0)
    told = [effect.status for effect in effects if isinstance(effect, Report) and effect.status]
    assert [(status.job, status.state) for status in told] == [("j1", "CANCELED"), ("j2", "IN_PROGRESS")]
    assert machine.assignment == an_assignment(job="j2", seq=2)


def test_a_newer_assignment_waits_until_a_trial_has_been_taken_back() -> None:
    machine = a_deployment(*HAPPY, soak_s=100.0)
    machine.assign(an_assignment(job="j2", seq=2), 3.0)
    assert machine.phase is Phase.ROLLING_BACK
    machine.assign(an_assignment(job="j3", seq=3), 3.0)
    effects = machine.outcome("back", 4.0)
    told = [effect.status for effect in effects if isinstance(effect, Report) and effect.status]
    assert [(status.job, status.state) for status in told] == [("j1", "CANCELED"), ("j3", "IN_PROGRESS")]


def test_after_a_restart_a_job_starts_from_what_is_on_the_disk() -> None:
    for phase in (*BEFORE, *SERVING):
        machine = Deployment(an_assignment(), Record(phase=phase, seq=1))
        effects = machine.resume(10.0, remaining_s=5.0)
        assert Do(Phase.MANIFEST, an_assignment()) in effects
        machine.tick(15.0)
        assert machine.phase is Phase.TIMED_OUT


def test_a_release_that_kills_the_agent_is_blamed() -> None:
    machine = Deployment(an_assignment(), Record(phase=Phase.SOAKING, seq=1))
    machine.resume(0.0, remaining_s=50.0, crashed=True)
    machine.outcome("back", 1.0)
    assert steps(machine)[0] == "ROLLED_BACK"


def test_a_restart_in_the_middle_of_going_back_goes_on_with_it() -> None:
    machine = Deployment(an_assignment(), Record(phase=Phase.ROLLING_BACK, verdict=Phase.TIMED_OUT, seq=1, reason="X"))
    assert Do(Phase.ROLLING_BACK, an_assignment()) in machine.resume(0.0, remaining_s=0.0)
    machine.outcome("back", 1.0)
    assert machine.phase is Phase.TIMED_OUT


def test_progress_is_reported_twice_a_second_at_most() -> None:
    machine = a_deployment("arrived", "verified")
    reports = [effect for i in range(100) for effect in machine.advance(i / 100, 1.0 + i * 0.05)]
    assert 8 <= len(reports) <= 11


EVENTS = sorted({event for _, event in TRANSITIONS} - {"assigned", "soaked"})
ACTIONS = st.one_of(
    st.tuples(st.just("outcome"), st.sampled_from(EVENTS)),
    st.tuples(st.just("assign"), st.integers(0, 6)),
    st.tuples(st.just("observe"), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.integers(0, 40)),
)


@given(st.lists(ACTIONS, max_size=40))
def test_whatever_happens_the_machine_keeps_its_promises(actions: list[tuple[str, Any]]) -> None:
    machine, now = Deployment(), 0.0
    for kind, value in actions:
        before, seq = machine.status, machine.record.seq
        match kind:
            case "outcome":
                effects = machine.outcome(value, now, reason="Why", detail="because")
            case "assign":
                effects = machine.assign(an_assignment(job=f"j{value}", seq=value, deadline_s=30.0), now)
            case "observe":
                effects = machine.observe(now, predictions=5, errors=value)
            case _:
                now += value
                effects = machine.tick(now)
        assert machine.record.seq >= seq
        if before is not None and before.state in WIRE_TERMINAL and kind != "assign":
            assert machine.status == before and effects == []
        work = [i for i, effect in enumerate(effects) if isinstance(effect, Do)]
        assert all(any(isinstance(effect, Save) for effect in effects[:i]) for i in work)
        assert not work or machine.active
    machine.outcome("back", now)
    now += 1000.0
    machine.tick(now)
    machine.outcome("back", now)
    machine.tick(now + 1000.0)
    machine.outcome("back", now + 1000.0)
    assert not machine.active, "silence did not end the job"


def test_a_late_will_of_an_older_boot_makes_the_agent_speak_up() -> None:
    presence = Presence("new")
    assert presence.seen(Online(online=True, boot_id="old")) is Verdict.FINE
    assert presence.seen(Online(online=True, boot_id="new")) is Verdict.FINE
    assert presence.seen(Online(online=False, boot_id="old")) is Verdict.SPEAK_UP


@pytest.mark.parametrize("online", [True, False])
def test_a_boot_that_appears_after_ones_own_is_another_agent(online: bool) -> None:
    presence = Presence("a")
    presence.seen(Online(online=True, boot_id="a"))
    assert presence.seen(Online(online=online, boot_id="b")) is Verdict.CONFLICT


def test_of_two_agents_the_older_one_yields() -> None:
    older, newer = Presence("a"), Presence("b")
    older.seen(Online(online=True, boot_id="a"))
    newer.seen(Online(online=False, boot_id="a"))  # the will of the one it threw out
    newer.seen(Online(online=True, boot_id="b"))
    assert older.seen(Online(online=False, boot_id="b")) is Verdict.CONFLICT
    assert newer.seen(Online(online=True, boot_id="a")) is Verdict.FINE
