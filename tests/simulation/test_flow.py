"""Asynchronous rounds over virtual devices: the server's own buffer, on a clock that runs by itself."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from edgeml.errors import UserError
from edgeml.federated import BufferOptions, Masks, Plan
from edgeml.simulation import Conditions, Fleet, Simulated, simulate
from edgeml.simulation.flow import ROW_S, WAY_S
from tests.simulation.test_simulation import a_fleet

DEVICES = 10


def an_even_fleet() -> Fleet:
    fleet = a_fleet(DEVICES, "iid")
    least = min(len(share) for share in fleet.shares)
    return dataclasses.replace(fleet, shares=[share.take(slice(least)) for share in fleet.shares])


def flow(
    conditions: Conditions | None = None, *, size: int = 4, fleet: Fleet | None = None, **changes: Any
) -> Simulated:
    given = {"rounds": 6, "min_devices": 2, "min_rows": 1, "learning_rate": 0.05, "momentum": 0.9, "mode": "async"}
    plan = Plan(**given | changes)
    return simulate(fleet or a_fleet(DEVICES, "iid"), plan, conditions or Conditions(), buffer=BufferOptions(size=size))


def test_equal_devices_and_a_buffer_for_all_of_them_are_fedavg() -> None:
    fleet, even = an_even_fleet(), Conditions(speeds=0.0)
    found, rounds = flow(even, size=DEVICES, fleet=fleet), flow(even, fleet=fleet, mode="sync")
    assert all(done.staleness == dict.fromkeys(done.participants, 0) for done in found.rounds)
    for name, value in rounds.parameters.items():
        np.testing.assert_allclose(found.parameters[name], value, atol=1e-6)
    (count,) = set(found.rows.values())
    took = WAY_S + ROW_S * count
    assert [done.clock_s for done in found.rounds] == pytest.approx([took * n for n in range(1, 7)])


def test_slow_devices_answer_late_and_nobody_waits_for_them() -> None:
    found, waited = flow(Conditions(speeds=1.0), rounds=15), flow(Conditions(speeds=1.0), size=DEVICES, rounds=15)
    assert all(len(done.participants) == 4 and done.why == "buffer full" for done in found.rounds)
    ages = [age for done in found.rounds for age in done.staleness.values()]
    assert max(ages) >= 3 and min(ages) == 0
    assert found.rounds[-1].loss < 0.5 * found.before["loss"] and found.rounds[-1].metric > 0.8
    clocks = [done.clock_s or 0.0 for done in found.rounds]
    assert clocks == sorted(clocks) and 3 * clocks[-1] < (waited.rounds[-1].clock_s or 0.0)


@pytest.mark.slow
def test_neither_processes_nor_runs_change_a_bit() -> None:
    first, again, spread = flow(), flow(), flow(Conditions(workers=2))
    for other in (again, spread):
        assert [one.staleness for one in other.rounds] == [one.staleness for one in first.rounds]
        for name, value in first.parameters.items():
            np.testing.assert_array_equal(other.parameters[name], value)
    assert not np.array_equal(flow(seed=1).parameters["w1"], first.parameters["w1"])


def test_the_silent_cost_a_deadline_on_the_clock_and_no_time_here() -> None:
    found = flow(Conditions(silent=0.5), size=8, deadline_s=60.0, rounds=3)
    assert {done.why for done in found.rounds} == {"deadline, quorum reached"}
    assert [done.clock_s for done in found.rounds] == pytest.approx([60.0, 120.0, 180.0])


def test_a_fleet_that_says_nothing_is_given_up() -> None:
    found = flow(Conditions(silent=1.0), rounds=5)
    assert [done.state for done in found.rounds] == ["abandoned"] * 3 and not found.rounds[0].participants


def test_liars_and_broken_numbers_are_counted_and_not_taken() -> None:
    found = flow(Conditions(byzantine=0.2, attack="nan"), size=4)
    took_part = {name for done in found.rounds for name in done.participants}
    assert not took_part & found.liars and any(done.rejected for done in found.rounds)


@pytest.mark.parametrize("name", ["fedper", "ditto"])
def test_devices_keep_their_own_models_between_steps(name: str) -> None:
    found = flow(Conditions(held_out=0.3), fleet=a_fleet(DEVICES, "shards:2"), strategy=name, rounds=20, momentum=0.0)
    own, shared = found.personal
    assert own > shared


def test_what_cannot_be_asynchronous_is_said_before_anything_is_trained() -> None:
    with pytest.raises(UserError, match="asynchronous rounds"):
        flow(strategy="scaffold", momentum=0.0)
    with pytest.raises(UserError, match=r"secure aggregation and .* exclude each other: .*synchronous"):
        flow(secure=Masks())
    with pytest.raises(UserError, match="0 of 10 devices have 10000 rows"):
        flow(min_rows=10_000)
