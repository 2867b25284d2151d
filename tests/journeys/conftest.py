"""A small fleet for journeys: a broker, a coordinator and agents, all real processes, all ended."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from edgeml.demo.agents import Agent, Process, wait_until
from edgeml.registry import Registry
from edgeml.transport.broker import Broker, start_broker
from tests import warm
from tests.brokers import KINDS


@dataclass
class Fleet:
    """What a journey drives. Every process it starts ends with the test."""

    folder: Path
    registry: Registry
    broker: Broker
    stack: contextlib.ExitStack
    agents: dict[str, Agent] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"{self.broker.host}:{self.broker.port}"

    def serve(self) -> Process:
        command = ["-m", "edgeml", "server", "--broker", self.address, "--registry", str(self.registry.root)]
        server = self.stack.enter_context(Process("server", command, self.folder / "server.log"))
        wait_until(self.server_is_up, [server], what="the server")
        return server

    def server_is_up(self) -> bool:
        with contextlib.suppress(Exception):
            self.registry.server_alive()
            return True
        return False

    def join(self, device: str, board: str = "raspberry-pi-4") -> Agent:
        key = self.registry.public_key_hex()
        agent = Agent(device, board, folder=self.folder / "agents", broker=self.address, key=key)
        self.agents[device] = self.stack.enter_context(agent)
        self.until(lambda: device in self.online(), what=f"{device} to come online")
        return agent

    def online(self) -> set[str]:
        return {device.id for device in self.registry.devices() if device.online}

    def until(self, ready: Callable[[], bool], *, what: str) -> None:
        wait_until(ready, list(self.agents.values()), what=what)

    def edgeml(self, *words: object) -> subprocess.CompletedProcess[str]:
        command, environment = list(map(str, words)), {**os.environ, "EDGEML_REGISTRY": str(self.registry.root)}
        return subprocess.CompletedProcess(command, *warm.run(command, env=environment, cwd=self.folder))

    def running(self, device: str) -> Any:
        found = next(record for record in self.registry.devices() if record.id == device)
        return found.reported.running if found.reported else None


@pytest.fixture
def beginning() -> Path | None:
    """The folder of a registry that the fleet begins with, if any."""
    return None


@pytest.fixture(params=KINDS)
def fleet(request: pytest.FixtureRequest, tmp_path: Path, beginning: Path | None) -> Iterator[Fleet]:
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(start_broker(kind=request.param))
        if beginning:
            shutil.copytree(beginning, tmp_path / "registry")
        registry = Registry.open(tmp_path / "registry")
        stack.callback(registry.close)
        yield Fleet(tmp_path, registry, broker, stack)
