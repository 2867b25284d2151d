"""The server and real agent processes: a release is shipped, served and learned from, over both brokers."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.registry import Registry
from edgeml.transport import Broker, start_broker
from edgeml_runtime.session import Session
from tests.server.agents import Agent, a_release
from tests.server.stand_ins import Server, a_model, rows_of, until

pytestmark = [pytest.mark.broker, pytest.mark.journey]
NAMES = ("pi-a", "pi-b", "pi-c")


@pytest.fixture
def agents(registry: Registry, server: Server, broker: Broker, tmp_path: Path) -> Iterator[list[Agent]]:
    """Return three running agents that the registry knows."""
    registry.add_release(a_release(), summary={}, run_dir="")
    started: list[Agent] = []
    try:
        for name in NAMES:
            started.append(Agent(name, broker, key=registry.public_key_hex(), folder=tmp_path / "agents"))
        until(lambda: [device.id for device in registry.devices() if device.reported] == list(NAMES), "three agents")
        yield started
    finally:
        for agent in started:
            agent.stop()


def wait(record: Callable[[], Any], what: str) -> Any:
    until(lambda: record().is_over, what)
    return record()


def test_real_agents_run_what_is_shipped_and_learn_what_is_asked(
    registry: Registry, server: Server, agents: list[Agent]
) -> None:
    rollout_id = registry.request_rollout("toy", None, "all", deadline_s=60)
    shipped = wait(lambda: registry.rollout(rollout_id), "the rollout")
    assert shipped.state == "SUCCEEDED", shipped.detail

    rows = rows_of(5, 20)["numeric"]
    answer = agents[0].post("/predict", {"rows": rows.tolist()})
    expected = Session(a_model().data).run({"numeric": rows})["label"]
    assert answer["labels"] == ["abc"[index] for index in expected]

    for seed, agent in enumerate(agents):
        agent.label(rows_of(seed))
    options = {"rounds": 3, "min_devices": 3, "learning_rate": 0.1, "deadline_s": 30}
    federation_id = registry.request_federation("toy", options)
    learned = wait(lambda: registry.federation(federation_id), "the federation")
    assert learned.state == "SUCCEEDED", learned.detail
    assert [done.participants for done in learned.rounds] == [NAMES] * 3
    assert [done.rows + done.held_out for done in learned.rounds] == [180] * 3
    held_out = {done.held_out for done in learned.rounds}
    assert len(held_out) == 1 and 20 < held_out.pop() < 55, "about a fifth, the same rows every time"
    assert learned.rounds[-1].loss < learned.outcome["before"]["loss"]
    assert np.isfinite([done.seconds for done in learned.rounds]).all()

    until(
        lambda: any(d.telemetry.total and d.telemetry.total.predictions >= 20 for d in registry.devices()), "telemetry"
    )
    assert all(device.malformed == 0 for device in registry.devices())


@pytest.mark.fault
def test_rounds_go_on_after_the_broker_was_killed_and_started_again(
    registry: Registry, server: Server, agents: list[Agent], broker: Broker
) -> None:
    rollout_id = registry.request_rollout("toy", None, "all", deadline_s=60)
    assert wait(lambda: registry.rollout(rollout_id), "the rollout").state == "SUCCEEDED"
    for seed, agent in enumerate(agents):
        agent.label(rows_of(seed, 400))
    options = {"rounds": 12, "min_devices": 3, "local_epochs": 3, "deadline_s": 40}
    federation_id = registry.request_federation("toy", options)
    until(lambda: len(registry.federation(federation_id).rounds) >= 2, "two rounds")
    os.kill(broker.pid, signal.SIGKILL)
    broker.wait()
    with start_broker(broker.port, kind=broker.kind):
        learned = wait(lambda: registry.federation(federation_id), "the federation")
    assert learned.state == "SUCCEEDED", learned.detail
    assert [done.participants for done in learned.rounds] == [NAMES] * 12
