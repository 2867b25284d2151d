"""A real agent process, a real broker and a small server side: deployments, serving, rounds, and faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.agent_kit import (
    AgentProcess,
    Mosquitto,
    ServerSide,
    a_release,
    broker_in,
    needs_mosquitto,
    server_at,
    until,
)

pytestmark = [pytest.mark.broker, needs_mosquitto]
ROWS = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with broker_in(tmp_path) as running:
        yield running


@pytest.fixture
def server(broker: Mosquitto) -> Iterator[ServerSide]:
    with server_at(broker.port) as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto) -> Iterator[AgentProcess]:
    with AgentProcess(tmp_path, broker.port) as process:
        yield process.start()


def test_a_release_is_pulled_proven_and_served(agent: AgentProcess, server: ServerSide) -> None:
    server.assign("pi-1", a_release("one"), job="j1", seq=1)
    ended = server.until_ended("pi-1", "j1")
    assert (ended.state, ended.reason) == ("SUCCEEDED", ""), ended
    assert agent.status()["running"]["release"] == "one"
    assert len(agent.predict(ROWS)["labels"]) == 3
