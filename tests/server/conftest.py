"""A server and devices on a real broker."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeml.registry import Registry
from edgeml.transport import Broker, start_broker
from edgeml_runtime.wire.messages import Running
from tests.brokers import KINDS
from tests.server.stand_ins import Device, InMemoryRetrain, Server, rows_of, until


@pytest.fixture(params=KINDS)
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Return a running broker."""
    with start_broker(kind=request.param) as running:
        yield running


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "registry")


@pytest.fixture
def retrain() -> InMemoryRetrain:
    return InMemoryRetrain()


@pytest.fixture
def start_server(registry: Registry, broker: Broker, retrain: InMemoryRetrain) -> Iterator[Callable[[], Server]]:
    """Return a function that starts a server; every one is stopped at the end."""
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server(registry, broker, retrain))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


@pytest.fixture
def server(start_server: Callable[[], Server]) -> Server:
    return start_server()


@pytest.fixture
def device(registry: Registry, broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Device]]:
    """Return a function that starts a device and waits until the registry knows it."""
    devices: list[Device] = []

    def start(name: str, board: str = "", *, seed: int | None = None, known: bool = True) -> Device:
        made = Device(broker, registry, tmp_path / "devices", name=name, board=board)
        devices.append(made)
        if seed is not None:
            made.rows = rows_of(seed)
            made.running = Running(model="toy", release="ab12ab12ab12", variant="fp32", graph="0" * 64)
            made.report()
        if known:
            until(lambda: any(record.id == name for record in registry.devices()), f"{name} to be known")
        return made

    yield start
    for made in devices:
        made.stop()
