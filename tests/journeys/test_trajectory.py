"""Federated rounds over the wire are the same numbers as federated averaging written in numpy."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.federated_round import GOAL_DIFFERENCE, differences, federate, fp32_graph
from tests.brokers import KINDS

pytestmark = pytest.mark.journey


@pytest.mark.parametrize("broker", KINDS)
def test_three_rounds_over_mqtt_equal_numpy(tmp_path: Path, broker: str) -> None:
    run = federate(tmp_path, rounds=4, kind=broker)
    found = differences(run, fp32_graph(tmp_path / "registry"))
    assert len(found) == 3
    assert max(found) <= GOAL_DIFFERENCE, found
