"""Releases reach devices over both brokers, whatever is killed on the way."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from edgeml.errors import FleetError, ServerUnavailable
from edgeml.registry import Registry
from edgeml.transport import Broker, start_broker
from edgeml_runtime.wire import topics
from edgeml_runtime.wire.messages import JobStatus
from tests.server.stand_ins import Device, Server, a_bundle, until

pytestmark = pytest.mark.broker
GRAPH = os.urandom(900_000)


def release(registry: Registry, graph: bytes = GRAPH, name: str = "ab12ab12ab12") -> None:
    registry.add_release(a_bundle(graph, name), summary={}, run_dir="")


def wait(registry: Registry, rollout_id: str) -> str:
    until(lambda: registry.rollout(rollout_id).is_over, f"rollout {rollout_id}")
    return registry.rollout(rollout_id).state


def test_a_release_reaches_every_device_canary_first(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    release(registry)
    fleet = [device(name) for name in ("a", "b", "c")]
    rollout_id = registry.request_rollout("toy", None, "all")
    assert wait(registry, rollout_id) == "SUCCEEDED"
    record = registry.rollout(rollout_id)
    assert {name: entry["state"] for name, entry in record.devices.items()} == dict.fromkeys("abc", "SUCCEEDED")
    assert record.detail == "3 of 3 devices run it"
    for one in fleet:
        assert one.running is not None
        assert (one.folder / one.running.graph).read_bytes() == GRAPH


def test_a_refused_canary_ends_the_rollout_with_its_reason(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    release(registry)
    canary, other = device("a"), device("b")
    canary.refuses = "12 of 64 goldens flip their label"
    rollout_id = registry.request_rollout("toy", None, "all")
    assert wait(registry, rollout_id) == "FAILED"
    assert "a: REJECTED ModelRefused 12 of 64 goldens flip" in registry.rollout(rollout_id).detail
    assert other.assignments == []


def test_a_silent_device_fails_at_its_deadline(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    release(registry)
    device("a").vanish()
    rollout_id = registry.request_rollout("toy", None, "a", deadline_s=0.3)
    assert wait(registry, rollout_id) == "FAILED"
    assert "TIMED_OUT" in registry.rollout(rollout_id).detail


def test_a_deploy_to_nobody_names_who_is_there(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    release(registry)
    device("a", "raspberry-pi-4")
    until(lambda: registry.devices()[0].board == "raspberry-pi-4", "the board")
    with pytest.raises(FleetError, match=r"'board:x' is nobody: known devices: a \(raspberry-pi-4\)"):
        registry.request_rollout("toy", None, "board:x")


def test_a_second_rollout_takes_a_device_from_the_first(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    release(registry)
    release(registry, b"other" * 1000, "cd34cd34cd34")
    device("a").vanish()
    until(lambda: not registry.devices()[0].online, "the will")
    first = registry.request_rollout("toy", "ab12ab12ab12", "a")
    until(lambda: registry.rollout(first).devices["a"]["state"] == "QUEUED", "the first assignment")
    registry.request_rollout("toy", "cd34cd34cd34", "a")
    assert wait(registry, first) == "FAILED"
    assert "took this device" in registry.rollout(first).detail


@pytest.mark.fault
def test_a_broker_killed_in_the_middle_of_a_transfer_costs_no_block_twice(
    registry: Registry, broker: Broker, server: Server, device: Callable[..., Device]
) -> None:
    graph = os.urandom(4 << 20)
    release(registry, graph)
    one = device("a")
    count = -(-len(graph) // (48 * 1024))
    again: list[Broker] = []

    def kill_in_the_middle() -> None:
        if one.blocks_received == count // 2 and not again:
            os.kill(broker.pid, signal.SIGKILL)
            broker.wait()
            again.append(start_broker(broker.port, kind=broker.kind))

    one.on_block = kill_in_the_middle
    rollout_id = registry.request_rollout("toy", None, "a")
    try:
        assert wait(registry, rollout_id) == "SUCCEEDED"
    finally:
        for started in again:
            started.stop()
    assert again
    assert one.running is not None
    assert (one.folder / one.running.graph).read_bytes() == graph
    assert one.blocks_received <= count + 2 + 2 * 8  # manifest and goldens, and at most the windows that were lost


@pytest.mark.fault
def test_a_rollout_outlives_its_server(
    registry: Registry, start_server: Callable[[], Server], device: Callable[..., Device]
) -> None:
    release(registry)
    first = start_server()
    one = device("a")
    one.vanish()
    rollout_id = registry.request_rollout("toy", None, "a")
    until(lambda: registry.rollout(rollout_id).devices["a"]["state"] == "QUEUED", "the assignment")
    first.stop()
    with pytest.raises(ServerUnavailable):
        registry.server_alive()
    one.client.reconnect()
    one.client.loop_start()
    until(lambda: len(one.assignments) == 1, "the retained assignment")
    start_server()
    assert wait(registry, rollout_id) == "SUCCEEDED"


def test_what_cannot_be_read_is_counted_for_its_device_and_nothing_else_happens(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    release(registry)
    one = device("a")
    for topic in (topics.reported("a"), topics.request("a"), topics.telemetry("a", "metrics"), topics.online("a")):
        one.client.publish(topic, b"\xff not a message", qos=1)
    one.client.publish("edgeml/v1/d/a/tel/logs", b"{}", qos=1)
    until(lambda: registry.devices()[0].malformed == 5, "five malformed messages")
    assert wait(registry, registry.request_rollout("toy", None, "a")) == "SUCCEEDED"
    assert server.alive


def test_two_agents_with_one_id_are_told_apart_from_a_reboot(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    first = device("a")
    second = device("a")
    # each connection of one kicks out the other, which comes back a second later
    until(lambda: any("two agents run as 'a'" in note for note in registry.devices()[0].notes), "the note")
    assert {first.boot_id, second.boot_id} >= {registry.devices()[0].boot_id}


def test_a_reboot_is_no_second_agent(registry: Registry, server: Server, device: Callable[..., Device]) -> None:
    boots = []
    for _ in range(3):
        one = device("a")
        until(lambda one=one: registry.devices()[0].boot_id == one.boot_id, "the boot")
        boots.append(one.boot_id)
        one.client.disconnect()
        one.client.loop_stop()
    assert len(set(boots)) == 3
    assert not any("two agents" in note for note in registry.devices()[0].notes)


def test_a_second_server_in_this_process_is_no_second_server_but_one_elsewhere_is(
    registry: Registry, server: Server, broker: Broker
) -> None:
    until(lambda: _beats(registry), "the heartbeat")
    beat = registry.server_alive()
    assert (beat.pid, beat.port) == (os.getpid(), broker.port)


def _beats(registry: Registry) -> bool:
    try:
        registry.server_alive()
    except ServerUnavailable:
        return False
    return True


def test_a_status_of_a_job_nobody_asked_for_changes_nothing(
    registry: Registry, server: Server, device: Callable[..., Device]
) -> None:
    one = device("a")
    one.report(JobStatus(job="roll-nobody", state="FAILED"))
    until(lambda: _job(registry) == "roll-nobody", "the report")
    assert registry.fleet.rollouts() == []
    assert server.alive


def _job(registry: Registry) -> str:
    reported = registry.devices()[0].reported
    return reported.job.job if reported and reported.job else ""
