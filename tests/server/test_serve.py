"""The server as a process of its own: it starts, is found, refuses a second one, and leaves in order."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgeml.errors import ServerUnavailable, UserError
from edgeml.registry import Registry
from edgeml.server import parse_address, serve
from edgeml.transport import Broker, start_broker
from tests.server.stand_ins import InMemoryRetrain, until

SERVE = """
import sys
from pathlib import Path
from edgeml.registry import Registry
from edgeml.server import serve
serve(Registry.open(Path(sys.argv[1])), sys.argv[2], retrain=None, log=lambda line: print(line, flush=True))
"""


@pytest.fixture
def broker() -> Iterator[Broker]:
    with start_broker() as running:
        yield running


@pytest.fixture
def start(registry: Registry, broker: Broker) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Return a function that starts a server process and waits for its heartbeat."""
    started: list[subprocess.Popen[str]] = []

    def process() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SERVE, str(registry.root), f"{broker.host}:{broker.port}"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        until(lambda: alive(registry) == started[-1].pid, "the heartbeat")
        return started[-1]

    yield process
    for one in started:
        one.kill()
        one.wait()


def alive(registry: Registry) -> int:
    try:
        return registry.server_alive().pid
    except ServerUnavailable:
        return 0


@pytest.mark.broker
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order_and_takes_its_heartbeat_back(
    registry: Registry, start: Callable[[], subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = start()
    process.send_signal(number)
    assert process.wait(20) == 0
    assert process.stdout is not None
    assert process.stdout.read().startswith(f"serving {registry.root} on the broker at 127.0.0.1:")
    assert alive(registry) == 0


@pytest.mark.broker
def test_a_second_server_on_one_registry_is_refused_with_the_pid_of_the_first(
    registry: Registry, broker: Broker, start: Callable[[], subprocess.Popen[str]]
) -> None:
    first = start()
    with pytest.raises(ServerUnavailable, match=f"pid {first.pid} already serves the registry"):
        serve(registry, f"{broker.host}:{broker.port}", retrain=InMemoryRetrain(), log=print)


@pytest.mark.broker
@pytest.mark.fault
def test_a_killed_server_does_not_keep_the_next_one_out(
    registry: Registry, start: Callable[[], subprocess.Popen[str]]
) -> None:
    first = start()
    first.kill()
    first.wait()
    second = start()
    assert alive(registry) == second.pid


@pytest.mark.parametrize("address", ["", ":1883", "host:", "host:port", "host:70000"])
def test_an_address_that_is_none_is_refused(address: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no broker address: write HOST:PORT"):
        parse_address(address)
