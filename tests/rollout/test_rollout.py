"""A rollout is a state machine: reports and time in, assignments out."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.rollout import TRANSITIONS, Assign, Phase, Policy, Progress, Rollout
from edgeml_runtime.wire.messages import TERMINAL, JobStatus

JOB = "roll-1"


def said(state: str, *, job: str = JOB, reason: str = "", detail: str = "") -> JobStatus:
    return JobStatus(job=job, state=state, reason=reason, detail=detail)  # type: ignore[arg-type]


def a_rollout(count: int = 3, **policy: float) -> Rollout:
    return Rollout(JOB, [f"d{i}" for i in range(count)], policy=Policy(**policy))  # type: ignore[arg-type]


def names(effects: list[Assign]) -> list[str]:
    return [effect.device for effect in effects]


def test_the_canary_goes_first_and_the_rest_follows_its_success() -> None:
    rollout = a_rollout()
    assert names(rollout.start(0)) == ["d0"]
    assert rollout.reported("d0", said("IN_PROGRESS"), now=1) == []
    assert names(rollout.reported("d0", said("SUCCEEDED"), now=2)) == ["d1", "d2"]
    rollout.reported("d1", said("SUCCEEDED"), now=3)
    rollout.reported("d2", said("SUCCEEDED"), now=3)
    assert (rollout.phase, rollout.detail) == (Phase.SUCCEEDED, "3 of 3 devices run it")


def test_a_failed_canary_leaves_everybody_else_alone() -> None:
    rollout = a_rollout(4)
    rollout.start(0)
    assert rollout.reported("d0", said("ROLLED_BACK", reason="ModelRefused", detail="3 label flips"), now=1) == []
    assert rollout.phase is Phase.FAILED
    assert (
        rollout.detail == "1 of 4 devices failed, 3 were left as they are: d0: ROLLED_BACK ModelRefused 3 label flips"
    )
    assert [rollout.devices[f"d{i}"].state for i in (1, 2, 3)] == ["WAITING"] * 3


def test_too_many_failures_halt_and_devices_at_work_may_finish() -> None:
    rollout = a_rollout(20, tolerated=0.1, in_flight=4)
    rollout.start(0)
    rollout.reported("d0", said("SUCCEEDED"), now=1)
    for device in ("d1", "d2"):
        assert len(rollout.reported(device, said("FAILED"), now=2)) == 1  # tolerated, so the next one gets its turn
    assert rollout.reported("d3", said("FAILED"), now=3) == []
    assert rollout.phase is Phase.HALTING
    for device in ("d4", "d5", "d6"):
        assert rollout.reported(device, said("SUCCEEDED"), now=4) == []
    assert rollout.phase is Phase.FAILED
    assert "3 of 20 devices failed, 13 were left as they are" in rollout.detail


def test_silence_is_failure_with_what_was_heard_last() -> None:
    rollout = a_rollout(2, deadline_s=60)
    rollout.start(0)
    rollout.reported("d0", JobStatus(job=JOB, state="IN_PROGRESS", step="DOWNLOADING"), now=10)
    assert rollout.tick(59.9) == []
    assert rollout.phase is Phase.CANARY
    rollout.tick(60)
    assert rollout.phase is Phase.FAILED
    assert "TIMED_OUT Deadline no end within 60 s, last heard: IN_PROGRESS DOWNLOADING" in rollout.detail


def test_the_first_end_of_a_device_is_the_one_that_counts() -> None:
    rollout = a_rollout(1)
    rollout.start(0)
    rollout.reported("d0", said("SUCCEEDED"), now=1)
    rollout.reported("d0", said("FAILED"), now=2)
    assert rollout.devices["d0"].state == "SUCCEEDED"


def test_other_jobs_and_strangers_change_nothing() -> None:
    rollout = a_rollout(1)
    rollout.start(0)
    rollout.reported("d0", said("FAILED", job="roll-0"), now=1)
    rollout.reported("stranger", said("FAILED"), now=1)
    assert (rollout.phase, rollout.devices["d0"].state) == (Phase.CANARY, "QUEUED")


def test_a_device_that_another_rollout_takes_is_not_waited_for() -> None:
    rollout = a_rollout(1)
    rollout.start(0)
    rollout.superseded("d0", "roll-2", now=1)
    assert rollout.phase is Phase.FAILED
    assert "rollout roll-2 took this device" in rollout.detail


def test_a_stopped_rollout_goes_on_where_it_was() -> None:
    known = {"d0": Progress(state="SUCCEEDED"), "d1": Progress(state="IN_PROGRESS"), "d2": Progress()}
    rollout = Rollout.resume(JOB, known)
    assert rollout.reported("d1", said("IN_PROGRESS"), now=0) == []  # heard before it is assigned again
    assert names(rollout.start(0)) == ["d1", "d2"]
    for device in ("d1", "d2"):
        rollout.reported(device, said("SUCCEEDED"), now=1)
    assert rollout.phase is Phase.SUCCEEDED


def test_an_end_that_came_while_the_server_was_away_counts() -> None:
    rollout = Rollout.resume(JOB, {"d0": Progress(state="IN_PROGRESS"), "d1": Progress()})
    assert names(rollout.reported("d0", said("SUCCEEDED"), now=0)) == ["d1"]
    assert rollout.start(0) == []


@pytest.mark.parametrize(("before", "event"), sorted(TRANSITIONS), ids=str)
def test_every_transition_leaves_its_phase_and_an_ended_rollout_has_none(before: Phase, event: str) -> None:
    assert TRANSITIONS[before, event] is not before
    assert not before.ended


def test_a_thousand_devices_some_of_them_failing_all_come_to_an_end() -> None:
    rng = random.Random(7)
    rollout = a_rollout(1000, tolerated=0.2, in_flight=100, deadline_s=3)
    working, now, most = names(rollout.start(0)), 0.0, 0
    while working:
        now += 0.01
        most = max(most, len(working))
        device = working.pop(0)
        if device != "d0" and rng.random() < 0.05:
            continue  # it falls silent
        working += names(rollout.reported(device, said("IN_PROGRESS"), now=now))
        state = "FAILED" if device != "d0" and rng.random() < 0.05 else "SUCCEEDED"
        working += names(rollout.reported(device, said(state), now=now))
        late = names(rollout.tick(now))
        working = [name for name in working if not rollout.devices[name].ended] + late
    rollout.tick(now + 4)
    assert rollout.phase is Phase.SUCCEEDED
    assert most <= 100
    assert set(rollout.counts) == {"SUCCEEDED", "FAILED", "TIMED_OUT"}
    assert sum(rollout.counts.values()) == 1000


events = st.tuples(st.integers(0, 5), st.sampled_from(["IN_PROGRESS", "QUEUED", "TICK", *sorted(TERMINAL)]))


@settings(max_examples=300)
@given(
    count=st.integers(1, 6),
    canary=st.integers(1, 3),
    in_flight=st.integers(1, 3),
    tolerated=st.floats(0, 1),
    script=st.lists(events, max_size=40),
)
def test_whatever_devices_say_nobody_is_assigned_twice_and_the_end_comes(
    count: int, canary: int, in_flight: int, tolerated: float, script: list[tuple[int, str]]
) -> None:
    rollout = a_rollout(count, canary=canary, in_flight=in_flight, tolerated=tolerated, deadline_s=5)
    assigned, now = names(rollout.start(0)), 0.0
    for index, state in script:
        now += 1
        ends_before = {name for name, progress in rollout.devices.items() if progress.ended}
        if state == "TICK":
            assigned += names(rollout.tick(now))
        else:
            assigned += names(rollout.reported(f"d{index}", said(state), now=now))
        at_work = [name for name in assigned if not rollout.devices[name].ended]
        assert len(at_work) <= in_flight
        assert {name for name, progress in rollout.devices.items() if progress.ended} >= ends_before
    for _ in range(count):
        now += 6
        assigned += names(rollout.tick(now))
    assert len(assigned) == len(set(assigned))
    assert rollout.phase.ended
    assert rollout.detail
    succeeded = [name for name, progress in rollout.devices.items() if progress.state == "SUCCEEDED"]
    if rollout.phase is Phase.SUCCEEDED:
        assert len(succeeded) >= count - int(tolerated * count)
