"""A broker, agents with a policy of their own, and a client that lies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeml.registry import Registry
from edgeml.transport import Broker, start_broker
from tests.server.benches.kit import Agent, Liar
from tests.server.stand_ins import Server, until


@pytest.fixture
def broker() -> Iterator[Broker]:
    with start_broker(kind="mosquitto") as running:
        yield running


@pytest.fixture
def agent(registry: Registry, broker: Broker, server: Server, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Return a function that starts an agent and waits until the server knows it."""
    started: list[Agent] = []

    def start(name: str = "pi-1", **policy: Any) -> Agent:
        made = Agent(name, broker, key=registry.public_key_hex(), folder=tmp_path / "agents", policy=policy)
        started.append(made)
        until(lambda: any(d.id == name and d.online and d.reported for d in registry.devices()), f"{name}")
        return made

    yield start
    for one in started:
        one.kill()


@pytest.fixture
def liar(broker: Broker) -> Iterator[Liar]:
    made = Liar(broker)
    yield made
    made.client.disconnect()
    made.client.loop_stop()
