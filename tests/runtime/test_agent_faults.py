"""The agent when things break: kills, cuts, a full disk, no broker, a double, noise on the wire."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgeml_runtime.wire import blocks, topics
from edgeml_runtime.wire.messages import Online, encode
from tests.runtime.agent_kit import (
    AgentProcess,
    Mosquitto,
    ServerSide,
    broker_in,
    deploy,
    needs_mosquitto,
    server_at,
    serves,
    until,
)
from tests.runtime.releases import a_release

pytestmark = [pytest.mark.broker, needs_mosquitto]
ROWS = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)


@pytest.mark.fault
def test_an_agent_that_is_killed_while_downloading_goes_on_without_asking_twice(
    agent: AgentProcess, server: ServerSide
) -> None:
    release = a_release("big", padding=4 << 20)
    graph, count = blocks.digest_of(release.blobs[0]), blocks.count(len(release.blobs[0]))
    server.limit = 50
    server.assign("pi-1", release, job="j1", seq=1)
    until(lambda: server.limit == 0, "the server to fall silent")
    bitmap = agent.state / "blobs" / f"{graph}.bitmap"
    here = until(lambda: {i for i, byte in enumerate(_bits(bitmap)) if byte}, "blocks on the disk")
    agent.kill()
    here = {i for i, bit in enumerate(_bits(bitmap)) if bit}
    server.limit = None
    server.served.clear()
    agent.start()
    assert server.until_ended("pi-1", "j1").state == "SUCCEEDED"
    asked = {index for digest, index in server.served if digest == graph}
    assert len(here) >= 16 and not asked & here and asked | here == set(range(count))
    assert serves(agent) == "big"


def _bits(path: Path) -> list[int]:
    data = path.read_bytes() if path.exists() else b""
    return [byte >> bit & 1 for byte in data for bit in range(8)]


@pytest.mark.fault
@pytest.mark.parametrize("step", ["VERIFYING", "PROBING", "TRIAL", "SOAKING"])
def test_an_agent_that_is_killed_in_any_step_serves_old_or_new_and_finishes(
    agent: AgentProcess, server: ServerSide, step: str
) -> None:
    deploy(agent, server, "one", seq=1)
    server.assign("pi-1", a_release("two"), job="j2", seq=2, soak_s=1.0)
    until(lambda: any(s.step == step for s in server.status("pi-1", "j2")), step)
    agent.kill()
    agent.start()
    assert serves(agent) in ("one", "two")
    assert server.until_ended("pi-1", "j2").state == "SUCCEEDED"
    assert serves(agent) == "two"


@pytest.mark.fault
def test_a_release_under_which_the_agent_keeps_dying_is_given_up(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    server.assign("pi-1", a_release("two"), job="j2", seq=2, soak_s=60.0)
    for _ in range(4):
        until(lambda: agent.status()["job"]["step"] == "SOAKING", "the soak")
        agent.kill()
        agent.start()
    ended = server.until_ended("pi-1", "j2")
    assert ended.state == "ROLLED_BACK" and "died again and again" in ended.detail
    assert serves(agent) == "one"


@pytest.mark.fault
def test_a_transfer_survives_the_death_of_the_broker(
    agent: AgentProcess, server: ServerSide, broker: Mosquitto
) -> None:
    release = a_release("big", padding=3 << 20)
    server.limit = 30
    server.assign("pi-1", release, job="j1", seq=1)
    until(lambda: server.limit == 0, "the server to fall silent")
    broker.kill()
    until(lambda: not agent.status()["broker"]["connected"], "the agent to notice")
    server.limit = None
    broker.start()
    assert server.until_ended("pi-1", "j1").state == "SUCCEEDED"
    twice = [key for key, count in server.served.items() if count > 1]
    assert len(twice) <= blocks.WINDOW_BLOCKS
    assert serves(agent) == "big"


@pytest.mark.fault
def test_a_full_disk_fails_the_job_with_the_numbers_and_the_old_release_answers(
    small_disk: Path, broker: Mosquitto, server: ServerSide
) -> None:
    with AgentProcess(small_disk, broker.port) as agent:
        agent.start()
        deploy(agent, server, "one", seq=1)
        server.assign("pi-1", a_release("big", padding=3 << 20), job="j2", seq=2)
        ended = server.until_ended("pi-1", "j2")
        assert (ended.state, ended.reason) == ("FAILED", "StorageFull")
        assert "bytes" in ended.detail and "free" in ended.detail
        assert serves(agent) == "one" and len(agent.predict(ROWS)["labels"]) == 3
        assert not list(agent.state.rglob("*.part")), "half a blob was left on the full disk"
        deploy(agent, server, "three", seq=3)
        assert serves(agent) == "three"


@pytest.mark.fault
def test_without_a_broker_the_agent_serves_and_says_so_once(tmp_path: Path) -> None:
    with broker_in(tmp_path) as broker, AgentProcess(tmp_path, broker.port) as agent:
        with server_at(broker.port) as server:
            agent.start()
            deploy(agent, server, "one", seq=1)
        agent.stop()
        broker.kill()
        agent.log.unlink()
        agent.start()
        assert len(agent.predict(ROWS)["labels"]) == 3
        until(lambda: "no broker answers" in agent.said(), "the line about the broker")
        until(lambda: not agent.status()["broker"]["connected"], "the status")
        broker.start()
        until(lambda: agent.status()["broker"]["connected"], "the connection")
        assert agent.said().count("no broker answers") == 1 and "Traceback" not in agent.said()


@pytest.mark.fault
def test_of_two_agents_with_one_id_the_older_yields_and_keeps_serving(tmp_path: Path, broker: Mosquitto) -> None:
    with server_at(broker.port) as server, AgentProcess(tmp_path, broker.port) as first:
        first.start()
        deploy(first, server, "one", seq=1)
        with AgentProcess(tmp_path, broker.port, state="twin") as second:
            second.start()
            until(lambda: first.status()["conflict"], "the older agent to yield")
            assert first.said().count("another agent uses the id pi-1: enroll one of them under another id") == 1
            assert len(first.predict(ROWS)["labels"]) == 3
            until(lambda: second.status()["broker"]["connected"], "the newer agent")
            assert second.status()["conflict"] == "" and not first.status()["broker"]["connected"]


@pytest.mark.fault
def test_a_second_agent_on_one_state_folder_is_refused(agent: AgentProcess) -> None:
    done = agent.command("run")
    assert done.returncode == 4
    assert "another agent (pid" in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_nothing_that_arrives_can_end_the_agent(agent: AgentProcess, server: ServerSide) -> None:
    junk = [b"", b"{", b"\xff" * 100, b"[" * 5000, b"x" * 70_000, b'{"signed": {}, "signatures": []}', b"null"]
    names = (topics.desired("pi-1"), topics.block("pi-1"), topics.online("pi-1"), topics.task("r1"))
    for topic in names:
        for payload in junk:
            server.publish(topic, payload)
    deploy(agent, server, "one", seq=1)
    status = agent.status()
    assert status["malformed"]["count"] >= 20 and status["malformed"]["last"]
    assert "Traceback" not in agent.said()
    until(lambda: any(m.last_error for m in server.metrics["pi-1"]), "the report of it")


def test_the_agent_says_goodbye(agent: AgentProcess, server: ServerSide) -> None:
    until(lambda: server.online["pi-1"] and server.online["pi-1"][-1].online, "the announcement")
    assert agent.stop() == 0
    until(lambda: not server.online["pi-1"][-1].online, "the goodbye")
    assert not (agent.state / "http.json").exists()


@pytest.mark.fault
def test_the_broker_speaks_for_an_agent_that_is_killed(agent: AgentProcess, server: ServerSide) -> None:
    until(lambda: server.online["pi-1"], "the announcement")
    boot = server.online["pi-1"][-1].boot_id
    agent.kill()
    until(lambda: server.online["pi-1"][-1] == Online(online=False, boot_id=boot), "the will")


def test_a_late_will_of_an_older_boot_is_answered(agent: AgentProcess, server: ServerSide) -> None:
    until(lambda: server.online["pi-1"], "the announcement")
    old = server.online["pi-1"][-1].boot_id
    agent.stop()
    agent.start()
    new = until(lambda: next((o.boot_id for o in server.online["pi-1"] if o.boot_id != old), ""), "the new boot")
    server.publish(topics.online("pi-1"), encode(Online(online=False, boot_id=old)), retain=True)
    until(lambda: server.online["pi-1"][-1] == Online(online=True, boot_id=new), "the agent to speak up")
    assert agent.status()["conflict"] == ""


def test_nothing_is_written_under_home(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    assert len(agent.predict(ROWS)["labels"]) == 3
    assert list(agent.home.rglob("*")) == []


def test_an_agent_that_serves_is_small(agent: AgentProcess, server: ServerSide) -> None:
    deploy(agent, server, "one", seq=1)
    for _ in range(50):
        agent.predict(ROWS[:1])
    assert agent.status()["rss_bytes"] <= 75 << 20


# ---- federated rounds
