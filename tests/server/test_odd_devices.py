"""Real agents whose rows are odd: one, one class only, with gaps."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.registry import FederationRecord, Registry
from edgeml.transport import Broker, start_broker
from tests.server.agents import Agent, a_release
from tests.server.stand_ins import InMemoryRetrain, Server, rows_of, until

pytestmark = [pytest.mark.broker, pytest.mark.journey, pytest.mark.fault]


def of_one_class() -> dict[str, np.ndarray]:
    rows = rows_of(2, 300)
    mine = rows["target"] == 1
    return {name: array[mine] for name, array in rows.items()}


def with_gaps() -> dict[str, np.ndarray]:
    rows = rows_of(3)
    rows["numeric"][5, 2] = np.nan
    return rows


DEVICES = {"even": rows_of(0), "gaps": with_gaps(), "one": rows_of(1, 1), "single": of_one_class()}


@pytest.fixture(scope="module")
def field(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, dict[str, Agent]]]:
    folder = tmp_path_factory.mktemp("odd")
    registry = Registry.open(folder / "registry")
    registry.add_release(a_release(), summary={}, run_dir="")
    with start_broker() as broker:
        server = Server(registry, broker, retrain := InMemoryRetrain())
        retrain.asks = True
        agents = {name: an_agent(name, broker, registry, folder / "agents") for name in DEVICES}
        try:
            until(lambda: sum(d.reported is not None for d in registry.devices()) == len(DEVICES), "the agents")
            rollout = registry.request_rollout("toy", None, "all", deadline_s=60, canary=len(DEVICES))
            until(lambda: registry.rollout(rollout).is_over, "the rollout")
            for name, rows in DEVICES.items():
                agents[name].label(rows)
            counts = {name: len(rows["target"]) for name, rows in DEVICES.items()}
            until(lambda: {d.id: d.reported.samples for d in registry.devices() if d.reported} == counts, "the rows")
            yield registry, agents
        finally:
            for agent in agents.values():
                agent.stop()
            server.stop()
            registry.close()


def an_agent(name: str, broker: Broker, registry: Registry, folder: Path) -> Agent:
    return Agent(name, broker, key=registry.public_key_hex(), folder=folder)


def federated(registry: Registry, **options: Any) -> FederationRecord:
    given = {"rounds": 2, "min_devices": 2, "learning_rate": 0.1, "deadline_s": 20, **options}
    federation_id = registry.request_federation("toy", given)
    until(lambda: registry.federation(federation_id).is_over, "the federation")
    return registry.federation(federation_id)


def test_who_has_too_few_rows_is_not_asked_and_who_has_odd_ones_takes_part_or_says_why(
    field: tuple[Registry, dict[str, Agent]],
) -> None:
    record = federated(field[0])
    assert record.state == "SUCCEEDED", record.detail
    for done in record.rounds:
        assert "even" in done.participants and "single" in done.participants, "one class is enough for a step"
        assert "one" not in {*done.participants, *done.refused, *done.silent}, "it was not asked"
        assert re.search("1 of the (4|5)[0-9] rows have missing or infinite numbers", done.refused["gaps"])
    asked = record.outcome["fleet"]["evaluation"]
    assert asked["why"] == "" and {"even", "single"} <= set(asked["devices"])


def test_sums_take_odd_devices_too(field: tuple[Registry, dict[str, Agent]]) -> None:
    record = federated(field[0], family="GaussianNB")
    assert record.state == "SUCCEEDED", record.detail
    assert {"even", "single", "gaps"} <= set(record.rounds[-1].participants), "a row with a gap is left out of a sum"
