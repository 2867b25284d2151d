"""A benchmark on a device, without a device: when it runs, when it waits, what ends it, what survives a restart."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_runtime.bench_protocol import (
    ACTIVE,
    BEAT_S,
    CALM_S,
    MAX_STARTS,
    TRANSITIONS,
    Facts,
    Fetch,
    LocalBench,
    Phase,
    Record,
    Report,
    Run,
    Save,
    Stop,
    hindrance,
)
from edgeml_runtime.config import BenchLimits, Policy
from edgeml_runtime.errors import AgentRefused, MalformedMessage
from edgeml_runtime.wire.blocks import digest_of
from edgeml_runtime.wire.messages import BenchBlob, BenchJob, BenchPlan, BenchTask

GRAPH, ROWS = digest_of(b"graph"), digest_of(b"rows")
POLICY = Policy()
CALM = Facts(temperature_c=40.0)


def a_job(**changes: Any) -> BenchJob:
    return BenchJob(**{"name": "fp32", "verb": "benchmark", "graph": GRAPH, "rows": ROWS, **changes})


def a_task(**changes: Any) -> BenchTask:
    blobs = BenchBlob(digest=GRAPH, size=1000), BenchBlob(digest=ROWS, size=100)
    given = {"device": "pi-1", "task": "b1", "kind": "measure", "seq": 1, "jobs": (a_job(),), "blobs": blobs}
    return BenchTask(**{**given, "deadline_s": 100.0, **changes})


def a_bench(policy: Policy = POLICY, **changes: Any) -> LocalBench:
    bench = LocalBench(policy)
    bench.offered(a_task(**changes), 0.0)
    return bench


def running(policy: Policy = POLICY) -> LocalBench:
    bench = a_bench(policy)
    bench.tick(1.0, CALM)
    bench.outcome("arrived", 2.0)
    assert bench.phase is Phase.RUNNING
    return bench


def test_a_benchmark_is_fetched_run_and_its_result_sent() -> None:
    bench = LocalBench(Policy())
    assert bench.offered(a_task(), 0.0) == [Save(), Report()]
    assert bench.tick(0.1, CALM) == [Save(), Report(), Fetch(a_task())]
    assert bench.outcome("arrived", 1.0) == [Save(), Report(), Run(a_task())]
    assert bench.outcome("ran", 2.0) == [Stop(), Save(), Report(upload=True)]
    assert bench.offered(a_task(), 3.0) == [Report(upload=True)]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        (Facts(at_work="a deployment is under way"), "Busy"),
        (Facts(rate=1.5), "Serving"),
        (Facts(temperature_c=81.0), "Hot"),
        (Facts(throttled=True), "Throttled"),
        (Facts(minute=23 * 60 + 30), "QuietHours"),
        (Facts(minute=5), "QuietHours"),
        (Facts(free_bytes=10 << 20), "Memory"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_it_waits_with_the_reason_until_the_device_has_been_calm_for_a_while(facts: Facts, reason: str) -> None:
    bench = a_bench(Policy(bench=BenchLimits(quiet_hours=("23:00-06:00",))))
    noon = CALM
    assert bench.tick(1.0, facts) == [Report()]
    assert (bench.phase, bench.reason) == (Phase.QUEUED, reason)
    assert bench.detail
    assert bench.tick(2.0, facts) == []  # said once
    assert bench.tick(3.0, noon) == []
    assert bench.phase is Phase.QUEUED
    bench.tick(3.0 + CALM_S, noon)
    assert bench.phase is Phase.FETCHING


def test_traffic_interrupts_it_and_what_is_done_goes_on_later() -> None:
    bench = running()
    assert bench.tick(3.0, Facts(rate=20.0))[0] == Stop()
    assert (bench.phase, bench.reason) == (Phase.QUEUED, "Serving")
    assert "20.0 predictions a second" in bench.detail
    bench.tick(4.0, CALM)
    bench.tick(4.0 + CALM_S, CALM)
    assert bench.outcome("arrived", 20.0)[-1] == Run(a_task())


def test_memory_that_it_takes_itself_does_not_interrupt_it() -> None:
    bench = running()
    assert bench.tick(3.0, Facts(free_bytes=1)) == []
    assert bench.phase is Phase.RUNNING


def test_a_board_that_got_too_hot_cools_down_before_it_goes_on() -> None:
    limits = BenchLimits()
    warm = Facts(temperature_c=limits.max_temperature_c - 1)
    assert hindrance(limits, warm, running=False) == ("", "")
    assert hindrance(limits, warm, running=False, paused=True)[0] == "Hot"


@pytest.mark.parametrize(
    ("changes", "policy", "reason", "words"),
    [
        ({}, Policy(accept=("training",)), "Policy", "accepts training, not bench"),
        (
            {"blobs": (BenchBlob(digest=GRAPH, size=1 << 40), BenchBlob(digest=ROWS, size=1))},
            Policy(),
            "Policy",
            "max_",
        ),
        (
            {"blobs": (BenchBlob(digest=GRAPH, size=9, inflated=1 << 40), BenchBlob(digest=ROWS, size=1))},
            Policy(),
            "Policy",
            "1,099,511,627,776 bytes",
        ),
        ({"jobs": (a_job(plan=BenchPlan(max_s=1e6)),)}, Policy(), "Policy", "max_s"),
        ({"jobs": ()}, Policy(), "MalformedMessage", "without jobs"),
        ({"blobs": ()}, Policy(), "MalformedMessage", "not among its blobs"),
        ({"jobs": (a_job(), a_job())}, Policy(), "MalformedMessage", "one name"),
        ({"jobs": (a_job(plan=BenchPlan(min_s=float("nan"))),)}, Policy(), "MalformedMessage", "beyond all measure"),
        ({"jobs": (a_job(runs=10**9),)}, Policy(), "MalformedMessage", "beyond all measure"),
    ],
    ids=["kind", "bytes", "bomb", "long", "nothing", "blobs", "names", "nan", "runs"],
)
def test_what_the_owner_or_reason_forbids_is_refused_with_the_numbers(
    changes: dict[str, Any], policy: Policy, reason: str, words: str
) -> None:
    bench = a_bench(policy, **changes)
    assert (bench.phase, bench.reason) == (Phase.REFUSED, reason)
    assert words in bench.detail


def test_an_older_task_is_not_accepted_and_a_known_one_not_begun_again() -> None:
    bench = running()
    with pytest.raises(MalformedMessage, match="number 1, and 1 was seen"):
        bench.offered(a_task(task="b2", seq=1), 3.0)
    assert bench.offered(a_task(), 3.0) == [Report()]
    assert bench.offered(a_task(seq=5), 3.0) == [Report()]  # a server that was started again numbers it anew
    with pytest.raises(MalformedMessage, match="number 5, and 5 was seen"):
        bench.offered(a_task(kind="cancel", seq=5), 3.0)


def test_a_newer_task_takes_the_place_of_the_one_at_work() -> None:
    bench = running()
    effects = bench.offered(a_task(task="b2", seq=2), 3.0)
    assert effects[0] == Stop()
    assert bench.task is not None
    assert (bench.task.task, bench.phase) == ("b2", Phase.QUEUED)


def test_what_is_taken_back_ends_and_another_task_does_not() -> None:
    bench = running()
    assert bench.offered(a_task(task="other", kind="cancel", seq=2, jobs=()), 3.0) == [Save()]
    assert bench.phase is Phase.RUNNING
    assert bench.offered(a_task(kind="cancel", seq=3, jobs=()), 3.0)[0] == Stop()
    assert bench.phase is Phase.CANCELED


@pytest.mark.parametrize("phase", ACTIVE)
def test_every_state_has_a_deadline_that_names_what_it_waited_for(phase: Phase) -> None:
    bench = LocalBench(Policy(), a_task(), Record(phase=phase, seq=1))
    bench.resume(0.0, remaining_s=50.0)
    for now in range(1, 50):
        bench.tick(float(now), Facts(rate=9.0))
        assert bench.active
    bench.tick(50.0, Facts(rate=9.0))
    assert (bench.phase, bench.reason) == (Phase.FAILED, "Timeout")
    assert "9.0 predictions a second" in bench.detail


def test_a_task_that_takes_the_agent_down_again_and_again_is_given_up() -> None:
    record = Record(phase=Phase.RUNNING, seq=1)
    for start in range(MAX_STARTS + 1):
        bench = LocalBench(Policy(), a_task(), record)
        bench.resume(0.0, remaining_s=90.0)
        assert bench.active is (start < MAX_STARTS)
        if bench.active:
            bench.tick(1.0, CALM)
            bench.outcome("arrived", 2.0)
        record = bench.record
    assert (record.phase, record.reason) == (Phase.FAILED, "AgentDied")


def test_while_it_lasts_the_server_hears_of_it() -> None:
    bench = running()
    assert bench.tick(2.0 + BEAT_S, CALM) == [Report()]
    assert bench.advance(0.5, 30.0) == [Report()]
    assert bench.advance(0.6, 30.5) == []
    assert bench.advance(0.6, 40.0) == []
    assert bench.advance(0.7, 40.0) == [Report()]


@given(
    st.lists(
        st.sampled_from(["offer", "calm", "traffic", "arrived", "ran", "failed", "cancel", "restart"]), max_size=30
    )
)
def test_whatever_happens_a_run_is_stopped_before_another_state_is_reached(events: list[str]) -> None:
    """The child runs if and only if the machine says RUNNING, and a fetch only while it says FETCHING."""
    bench, seq, now, child, fetching = LocalBench(Policy()), 0, 0.0, False, False
    for event in events:
        now += CALM_S
        effects: list[Any] = []
        match event:
            case "offer":
                seq += 1
                effects = bench.offered(a_task(task=f"b{seq}", seq=seq, deadline_s=1e6), now)
            case "cancel":
                seq += 1
                task = bench.task.task if bench.task else "none"
                effects = bench.offered(a_task(task=task, kind="cancel", seq=seq), now)
            case "calm" | "traffic":
                effects = bench.tick(now, CALM if event == "calm" else Facts(rate=9.0))
            case "restart":
                child = fetching = False
                bench = LocalBench(Policy(), bench.task, bench.record)
                effects = bench.resume(now, remaining_s=1e6)
            case _:
                effects = bench.outcome(event, now)
        for effect in effects:
            match effect:
                case Stop():
                    child = fetching = False
                case Run():
                    assert not child
                    child, fetching = True, False
                case Fetch():
                    assert not child
                    fetching = True
        assert child == (bench.phase is Phase.RUNNING)
        assert fetching == (bench.phase is Phase.FETCHING)
        assert bench.record.seq == seq


def test_terminal_states_are_left_only_by_a_new_task() -> None:
    ended = {Phase.DONE, Phase.REFUSED, Phase.FAILED, Phase.CANCELED}
    assert {event for (phase, event) in TRANSITIONS if phase in ended} == {"offered", "declined"}


@pytest.mark.parametrize("hours", ["22-6", "24:00-06:00", "22:00", "22:60-06:00", ""])
def test_quiet_hours_that_are_none_are_refused_by_name(hours: str) -> None:
    with pytest.raises(AgentRefused, match="quiet_hours has"):
        BenchLimits(quiet_hours=(hours,))
