"""Secure aggregation, noise and compression over both brokers, with devices that vanish in every phase."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeml import graph
from edgeml.registry import FederationRecord, Registry
from tests.server.in_the_open import fedavg, noise_of
from tests.server.stand_ins import Device, InMemoryRetrain, Server, a_bundle, a_model, rows_of, until

pytestmark = pytest.mark.broker
NAMES = ("a", "b", "c", "d")
ROWS = {name: 60 + 20 * number for number, name in enumerate(NAMES)}
OPTIONS = {"rounds": 1, "min_devices": 2, "learning_rate": 0.1, "deadline_s": 20}
MASKS = {"share": 0.6, "phase_s": 10.0}


@pytest.fixture
def cohort(registry: Registry, server: Server, device: Callable[..., Device]) -> list[Device]:
    registry.add_release(a_bundle(a_model().data), summary={}, run_dir="")
    made = [device(name, seed=number) for number, name in enumerate(NAMES)]
    for number, one in enumerate(made):
        one.rows = rows_of(number, ROWS[one.name])
        one.report()
    until(lambda: {d.id: d.reported.samples for d in registry.devices() if d.reported} == ROWS, "the samples")
    return made


def federate(registry: Registry, **options: Any) -> FederationRecord:
    federation_id = registry.request_federation("toy", {**OPTIONS, **options})
    until(lambda: registry.federation(federation_id).is_over, "the federation")
    return registry.federation(federation_id)


def check_released(retrain: InMemoryRetrain, cohort: list[Device], names: tuple[str, ...]) -> None:
    """Hold the released model to FedAvg of `names`, computed here in the open."""
    expected = fedavg([one.rows for one in cohort if one.name in names])
    released = graph.initializers(retrain.released[-1])
    for key, value in expected.items():
        np.testing.assert_allclose(released[key], value, atol=2e-6)


def test_the_masked_mean_is_fedavg(registry: Registry, cohort: list[Device], retrain: InMemoryRetrain) -> None:
    asked: list[str] = []
    cohort[0].on_ask = asked.append
    record = federate(registry, secure=MASKS)
    assert record.state == "SUCCEEDED", record.detail
    assert asked == ["shares", "mask", "agree", "unmask"]
    assert record.rounds[0].participants == NAMES and record.rounds[0].rejected == {}
    assert all(one.losses == {} for one in cohort), "losses say something of one device"
    check_released(retrain, cohort, NAMES)


@pytest.mark.fault
@pytest.mark.parametrize("phase", ["shares", "mask", "agree", "unmask"])
def test_a_device_that_vanishes_in_any_phase_takes_nothing_from_the_others(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain, phase: str
) -> None:
    def vanish(asked: str) -> None:
        if asked == phase:
            cohort[3].vanish()

    cohort[3].on_ask = vanish
    record = federate(registry, secure=MASKS)
    assert record.state == "SUCCEEDED", record.detail
    there = NAMES[:3] if phase in ("shares", "mask") else NAMES
    assert record.rounds[0].participants == there
    check_released(retrain, cohort, there)


@pytest.mark.fault
def test_too_few_that_stay_teach_the_server_nothing(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain
) -> None:
    for one in cohort[2:]:
        one.on_ask = lambda asked, one=one: one.vanish() if asked == "mask" else None  # type: ignore[misc]
    record = federate(registry, secure={**MASKS, "phase_s": 0.5}, max_abandoned=1)
    assert record.state == "FAILED" and record.rounds[0].state == "abandoned"
    assert "phase masked, quorum missed" in record.rounds[0].why and not retrain.released


def test_noise_of_the_server_on_a_masked_sum_is_accounted_for(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain
) -> None:
    privacy = {"where": "server", "noise": 0.5, "clip_norm": 1.0}
    record = federate(registry, secure=MASKS, privacy=privacy, rounds=2)
    assert record.state == "SUCCEEDED", record.detail
    first, second = (done.epsilon for done in record.rounds)
    assert first is not None and second is not None and 0 < first < second
    assert federate(registry, secure=MASKS, privacy=privacy).state == "SUCCEEDED"
    found = noise_of(retrain.released[-1], [one.rows for one in cohort], clip_norm=1.0)
    assert 0.6 < found / (0.5 * 1.0 / len(NAMES)) < 1.4, "83 values: the standard deviation of a fair sample"


def test_noise_of_the_devices_counts_also_in_an_abandoned_round(registry: Registry, cohort: list[Device]) -> None:
    cohort[0].refuses = cohort[1].refuses = cohort[2].refuses = "no"
    record = federate(registry, privacy={"where": "device"}, max_abandoned=1)
    assert record.rounds[0].state == "abandoned" and (record.rounds[0].epsilon or 0) > 1


def test_compressed_updates_are_fewer_bytes_and_nearly_the_same_model(
    registry: Registry, cohort: list[Device], retrain: InMemoryRetrain
) -> None:
    plain, small = federate(registry), federate(registry, compress="int8")
    assert small.state == "SUCCEEDED", small.detail
    assert small.rounds[0].bytes_up < 0.5 * plain.rounds[0].bytes_up
    first, second = (graph.initializers(model) for model in retrain.released)
    largest = max(np.abs(first[key]).max() for key in first)
    assert 0 < max(np.abs(first[key] - second[key]).max() for key in first) < 0.01 * largest


def test_settings_that_exclude_each_other_end_the_federation_with_the_way_out(
    registry: Registry, cohort: list[Device]
) -> None:
    record = federate(registry, secure=MASKS, compress="int8")
    assert record.state == "FAILED" and "secure aggregation and compression exclude each other" in record.detail
