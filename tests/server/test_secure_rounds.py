"""Secure aggregation between real agents and a server over a real broker: some are killed, in every phase."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml import graph
from edgeml.federated import Privacy
from edgeml.registry import FederationRecord, Registry
from edgeml.transport import start_broker
from edgeml_runtime.wire import secure
from edgeml_runtime.wire.plain import to_plain
from tests.server.agents import Agent, a_release
from tests.server.in_the_open import fedavg, learned, noise_of
from tests.server.stand_ins import InMemoryRetrain, Server, rows_of, until

pytestmark = [pytest.mark.broker, pytest.mark.journey, pytest.mark.slow]
NAMES = ("pi-a", "pi-b", "pi-c", "pi-d")
VICTIM = "pi-d"
ROWS = {name: 60 + 20 * number for number, name in enumerate(NAMES)}
OPTIONS = {"rounds": 1, "min_devices": 2, "learning_rate": 0.1, "deadline_s": 30}
MASKS = {"bound": 4.0, "bits": 32, "share": 0.6, "phase_s": 20.0}


class Field:
    """A broker, a server in this process and four agents with rows of their own."""

    def __init__(self, folder: Path) -> None:
        self.registry = Registry.open(folder / "registry")
        self.registry.add_release(a_release(), summary={}, run_dir="")
        self.broker, self.retrain = start_broker(), InMemoryRetrain()
        self.server = Server(self.registry, self.broker, self.retrain)
        key = self.registry.public_key_hex()
        self.agents = {name: Agent(name, self.broker, key=key, folder=folder / "agents") for name in NAMES}
        self.asked: Callable[[secure.Ask], None] = lambda ask: None
        self.asks: list[secure.Ask] = []
        self._publish = self.server.transport.publish
        self.server.transport.publish = self._watch  # type: ignore[method-assign]

    def _watch(self, topic: str, payload: bytes, **options: Any) -> None:
        """Publish; before an ask goes out, the test has its say."""
        if topic.endswith("/ask"):
            ask = secure.decode_ask(payload, (self.registry.public_key_hex(),))
            self.asks.append(ask)
            self.asked(ask)
        self._publish(topic, payload, **options)

    def everybody_is_there(self) -> None:
        def rows() -> dict[str, int]:
            return {d.id: d.reported.samples for d in self.registry.devices() if d.online and d.reported}

        until(lambda: rows() == ROWS, "four agents with their rows")

    def federate(self, **options: Any) -> FederationRecord:
        self.asks.clear()
        federation_id = self.registry.request_federation("toy", {**OPTIONS, "secure": MASKS, **options})
        until(lambda: self.registry.federation(federation_id).is_over, "the federation")
        return self.registry.federation(federation_id)

    def close(self) -> None:
        for agent in self.agents.values():
            agent.process.kill()
            agent.process.wait()
        self.server.stop()
        self.broker.stop()
        self.registry.close()


@pytest.fixture(scope="module")
def shared_field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Field]:
    made = Field(tmp_path_factory.mktemp("masked"))
    try:
        until(lambda: [d.id for d in made.registry.devices() if d.reported] == list(NAMES), "four agents")
        rollout = made.registry.request_rollout("toy", None, "all", deadline_s=60)
        until(lambda: made.registry.rollout(rollout).is_over, "the rollout")
        for seed, (name, count) in enumerate(ROWS.items()):
            made.agents[name].label(rows_of(seed, count))
        yield made
    finally:
        made.close()


@pytest.fixture
def field(shared_field: Field) -> Iterator[Field]:
    """Return the field with all agents at work."""
    agent = shared_field.agents[VICTIM]
    if agent.process.poll() is not None:
        agent.start()
    shared_field.everybody_is_there()
    yield shared_field
    shared_field.asked = lambda ask: None
    if agent.process.poll() is None:
        agent.process.send_signal(signal.SIGCONT)


def rows_learned(names: tuple[str, ...] = NAMES) -> list[dict[str, np.ndarray]]:
    """Return what the agents learn from."""
    return [learned(rows_of(NAMES.index(name), ROWS[name])) for name in names]


def check_released(field: Field, names: tuple[str, ...]) -> None:
    released = graph.initializers(field.retrain.released[-1])
    for key, expected in fedavg(rows_learned(names)).items():
        np.testing.assert_allclose(released[key], expected, atol=2e-6)


def test_the_masked_mean_of_real_agents_is_fedavg(field: Field) -> None:
    record = field.federate(rounds=2)
    assert record.state == "SUCCEEDED", record.detail
    assert [done.participants for done in record.rounds] == [NAMES] * 2
    phases = [phase for phase in ("shares", "mask", "agree", "unmask") for _ in NAMES]
    assert [ask.phase for ask in field.asks] == phases * 2
    field.federate()
    check_released(field, NAMES)
    assert all(device.malformed == 0 for device in field.registry.devices())


@pytest.mark.fault
@pytest.mark.parametrize("phase", ["shares", "mask", "agree", "unmask"])
def test_an_agent_killed_in_any_phase_takes_nothing_from_the_others(field: Field, phase: str) -> None:
    """Killed before its masked update left, its masks are recovered; after, its update is in the sum."""

    def kill(ask: secure.Ask) -> None:
        process = field.agents[VICTIM].process
        if ask.phase == phase and process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()

    field.asked = kill
    record = field.federate()
    assert record.state == "SUCCEEDED", record.detail
    there = NAMES[:3] if phase in ("shares", "mask") else NAMES
    assert record.rounds[0].participants == there
    check_released(field, there)


@pytest.mark.fault
def test_a_silent_agent_is_not_waited_for_longer_than_its_phase(field: Field) -> None:
    def stop(ask: secure.Ask) -> None:
        if ask.phase == "mask":
            field.agents[VICTIM].process.send_signal(signal.SIGSTOP)

    field.asked = stop
    record = field.federate(secure={**MASKS, "phase_s": 2.0})
    assert record.state == "SUCCEEDED", record.detail
    assert record.rounds[0].participants == NAMES[:3] and record.rounds[0].seconds > 2
    check_released(field, NAMES[:3])


def test_noise_of_the_server_on_a_masked_sum_is_accounted_for(field: Field) -> None:
    privacy = to_plain(Privacy(where="server", clip_norm=1.0, noise=0.5))
    record = field.federate(privacy=privacy)
    assert record.state == "SUCCEEDED", record.detail
    assert record.rounds[0].epsilon is not None and record.rounds[0].epsilon > 0
    found = noise_of(field.retrain.released[-1], rows_learned(), clip_norm=1.0)
    assert 0.6 < found / (0.5 * 1.0 / len(NAMES)) < 1.4, "83 values: the standard deviation of a fair sample"
