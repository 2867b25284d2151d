"""Simulated federations: equal to numpy, whatever the number of processes; what goes wrong in fleets."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.artifacts import OnnxModel, Rows
from edgeml.errors import UserError
from edgeml.federated import STRATEGIES, Believe, CohortOptions, Masks, Plan, ServerStep
from edgeml.federated.masks import at_most
from edgeml.federated.partition import partition
from edgeml.simulation import ATTACKS, Conditions, Fleet, Simulated, simulate
from edgeml_runtime.wire.holdout import places
from tests.federated.test_federation import (
    BATCH,
    EPOCHS,
    MOMENTUM,
    PLAN,
    a_network,
    accuracy,
    digits,
    fedavg_in_numpy,
    shares,
)

ROWS, TEST = np.arange(100, 1300), np.arange(1300, 1797)


@functools.cache
def a_fleet(devices: int = 10, spec: str = "dirichlet:0.3") -> Fleet:
    x, y = digits()
    parts = partition(spec, y[ROWS], devices=devices, seed=1)
    return Fleet(
        model=OnnxModel(a_network(), source=""),
        shares=[Rows({"x": x[ROWS][part]}, y[ROWS][part]) for part in parts],
        valid=Rows({"x": x[TEST]}, y[TEST]),
    )


def a_plan(**changes: Any) -> Plan:
    return Plan(**{"rounds": 3, "min_rows": 1, "local_epochs": 2, "momentum": 0.5, "seed": 3, **changes})


def run(conditions: Conditions = Conditions(), *, fleet: Fleet | None = None, **plan: Any) -> Simulated:  # noqa: B008
    return simulate(fleet or a_fleet(), a_plan(**plan), conditions)


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_every_strategy_learns_and_counts_what_it_sends(name: str) -> None:
    told: list[int] = []
    plan = a_plan(strategy=name, rounds=4, min_devices=7, momentum=0.0)
    found = simulate(a_fleet(10, "iid"), plan, on_round=lambda done: told.append(done.round))
    assert told == [1, 2, 3, 4] and all(done.state == "closed" for done in found.rounds)
    assert found.rounds[-1].loss < found.before["loss"]
    size = sum(value.nbytes for value in found.parameters.values())
    sent = 2 * size if name == "scaffold" else size
    for done in found.rounds:
        assert len(done.participants) == done.asked == 10 and done.rows == len(ROWS)
        assert 10 * sent < done.bytes_up < 10 * (sent + 1500)
        assert done.bytes_down > 10 * sent
    assert found.rounds[0].bytes_down > found.rounds[1].bytes_down, "the graph travels once"


def test_the_number_of_processes_changes_nothing() -> None:
    conditions = Conditions(stragglers=0.4, silent=0.2, byzantine=0.1, held_out=0.2)
    alone = run(conditions, strategy="scaffold", momentum=0.0)
    shared = run(dataclasses.replace(conditions, workers=2), strategy="scaffold", momentum=0.0)
    assert all(np.array_equal(value, shared.parameters[name]) for name, value in alone.parameters.items())
    assert alone.judged == shared.judged and alone.liars == shared.liars and len(alone.liars) == 1
    for one, other in zip(alone.rounds, shared.rounds, strict=True):
        assert dataclasses.replace(one, seconds=0.0) == dataclasses.replace(other, seconds=0.0)
        assert len(one.silent) == 2 and one.asked == 10
    other_seed = run(conditions, strategy="scaffold", momentum=0.0, seed=4)
    assert not np.array_equal(alone.parameters["w1"], other_seed.parameters["w1"])


def test_fedavg_over_virtual_devices_is_fedavg_in_numpy() -> None:
    x, y = digits()
    held = [Rows({"x": x[rows]}, y[rows]) for _, rows in sorted(shares().items())]
    fleet = dataclasses.replace(a_fleet(), shares=held)
    plan = dataclasses.replace(PLAN, local_epochs=EPOCHS, batch_size=BATCH, momentum=MOMENTUM)
    found = simulate(fleet, plan)
    for name, expected in fedavg_in_numpy()[-1].items():
        np.testing.assert_allclose(found.parameters[name], expected, atol=1e-5)
    assert found.rounds[-1].metric == accuracy(dict(found.parameters))


def test_virtual_devices_hold_out_the_rows_that_agents_would() -> None:
    fleet = a_fleet()
    found = run(Conditions(held_out=0.2), rounds=1)
    held = [int((places(share.inputs) < 0.2).sum()) for share in fleet.shares]
    assert found.rounds[0].held_out == sum(held) and found.rounds[0].rows == len(ROWS) - sum(held)
    assert [one.rows for one in found.judged] == [count for count in held if count]
    assert run(rounds=1).rounds[0].held_out == 0


def test_masked_rounds_learn_what_open_ones_do_and_tell_what_masks_cost() -> None:
    opened, masked = run(), run(secure=Masks(bound=2.0))
    for name, value in opened.parameters.items():
        np.testing.assert_allclose(masked.parameters[name], value, atol=1e-5)
    size = sum(value.size for value in masked.parameters.values())
    for one, other in zip(opened.rounds, masked.rounds, strict=True):
        assert (other.state, other.participants, other.rejected) == ("closed", one.participants, {})
        up, down = other.bytes_up - one.bytes_up, other.bytes_down - one.bytes_down
        assert one.bytes_masks == 0 and other.bytes_masks == up + down and 4 * 10 * size < other.bytes_up
        assert 10 * 9 * 82 < up < 10 * 9 * 82 * 3 and down > up, "shares of ten for nine; keys go to all"


def test_rows_held_out_are_neither_learned_from_nor_counted_under_masks() -> None:
    opened, masked = run(Conditions(held_out=0.2)), run(Conditions(held_out=0.2), secure=Masks(bound=2.0))
    for name, value in opened.parameters.items():
        np.testing.assert_allclose(masked.parameters[name], value, atol=1e-5)
    for one, other in zip(opened.rounds, masked.rounds, strict=True):
        assert other.rows == one.rows < len(ROWS) and one.held_out == len(ROWS) - one.rows
        assert other.held_out == 0, "masked devices tell no more than their rows"
    assert [one.rows for one in masked.judged] == [one.rows for one in opened.judged]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_devices_that_die_within_a_masked_round_are_drawn_by_the_seed(workers: int) -> None:
    conditions = Conditions(dropouts=0.3, silent=0.1, workers=workers)
    found = run(conditions, secure=Masks(share=0.51), rounds=2)
    again = run(dataclasses.replace(conditions, workers=0), secure=Masks(share=0.51), rounds=2)
    told = [(done.state, done.participants, done.silent) for done in found.rounds]
    assert told == [(done.state, done.participants, done.silent) for done in again.rounds]
    assert all(np.array_equal(value, again.parameters[name]) for name, value in found.parameters.items())
    assert {state for state, _, _ in told} == {"closed"} and min(len(there) for _, there, _ in told) < 9
    lost = run(Conditions(dropouts=0.6), secure=Masks(), rounds=1, max_abandoned=1)
    assert lost.rounds[0].state == "abandoned" and lost.rounds[0].metric == lost.before["metric"]


def test_a_masked_round_takes_as_many_devices_as_fit_one() -> None:
    kept, beyond = at_most(frozenset(f"d{i}" for i in range(300)), draw=(0, 1))
    assert len(kept) == 256 and len(beyond) == 44 and not kept & beyond.keys()
    assert at_most(frozenset(f"d{i}" for i in range(300)), draw=(0, 2))[0] != kept
    found = run(secure=Masks(), cohort=CohortOptions(target=4, over=0.0), rounds=1)
    assert found.rounds[0].asked == len(found.rounds[0].participants) == 4


def test_stragglers_do_less_or_come_too_late() -> None:
    partial, late = (run(Conditions(stragglers=0.8, partial=kept)) for kept in (True, False))
    assert all(len(done.participants) == 10 for done in partial.rounds)
    assert all(len(done.participants) == 2 and len(done.silent) == 8 for done in late.rounds)
    full = run()
    assert not np.array_equal(full.parameters["w1"], partial.parameters["w1"])


def test_a_round_asks_as_many_as_it_shall() -> None:
    found = run(cohort=CohortOptions(target=4, over=0.0))
    asked = {name for done in found.rounds for name in done.participants}
    assert all(len(done.participants) == done.asked == 4 for done in found.rounds) and len(asked) > 4


@pytest.mark.parametrize("attack", sorted(ATTACKS))
def test_liars_break_the_mean_and_not_the_trimmed_one(attack: str) -> None:
    """Two of ten devices attack; broken numbers never come as far as a rule."""
    conditions, fleet = Conditions(byzantine=0.2, attack=attack), a_fleet(10, "iid")
    mean = run(conditions, fleet=fleet, rounds=5)
    robust = {"strategy": "trimmed_mean", "min_devices": 7, "believe": Believe(byzantine=2)}
    held = run(conditions, fleet=fleet, rounds=5, **robust)
    if attack == "nan":
        for done in mean.rounds:
            assert done.rejected == {name: {"nan": 1} for name in mean.liars} and len(done.participants) == 8
            assert done.refused.keys() == mean.liars
        assert not {name for done in mean.rounds for name in done.participants} & mean.liars
    else:
        assert held.rounds[-1].metric > mean.rounds[-1].metric + 0.05
    assert held.rounds[-1].metric > 0.85


@pytest.mark.parametrize("name", ["fedper", "ditto"])
def test_personal_models_do_better_where_labels_differ(name: str) -> None:
    """On rows that every device held out, its own model beats the one that all share."""
    plan = {"strategy": name, "rounds": 8, "momentum": 0.0, "mu": 0.1 if name == "ditto" else None}
    found = run(Conditions(held_out=0.3), fleet=a_fleet(10, "shards:2"), **plan)
    own, shared = found.personal
    assert own > shared + 0.02 and own > 0.85
    average = run(Conditions(held_out=0.3), fleet=a_fleet(10, "shards:2"), rounds=8, momentum=0.0)
    assert average.personal[0] == average.personal[1] < own


def test_devices_are_judged_on_rows_that_are_given() -> None:
    """The rows of a fold that others made; a device without any is judged on none."""
    fleet = a_fleet(10, "shards:2")
    aside = [rows.take(slice(0, 5 if i else 0)) for i, rows in enumerate(fleet.shares)]
    found = run(fleet=dataclasses.replace(fleet, held_out=aside), rounds=2, strategy="fedper", momentum=0.0)
    assert {one.device: one.rows for one in found.judged} == {f"device-{i}": 5 for i in range(1, 10)}
    assert sum(found.rows.values()) == len(ROWS), "they learn from all of their own"
    assert found.personal[0] > found.personal[1]


@pytest.mark.parametrize(("given", "drawn"), [(9, 0.0), (10, 0.2)])
def test_rows_held_out_are_given_for_all_or_drawn(given: int, drawn: float) -> None:
    fleet = dataclasses.replace(a_fleet(), held_out=a_fleet().shares[:given])
    with pytest.raises(UserError, match=f"given for {given} of 10 devices, and {drawn:g} of their rows"):
        run(Conditions(held_out=drawn), fleet=fleet)


@pytest.mark.parametrize(("compress", "share"), [("fp16", 0.55), ("int8", 0.3), ("topk:0.05", 0.16), ("sign", 0.06)])
def test_compressed_updates_take_fewer_bytes_and_still_learn(compress: str, share: float) -> None:
    plain, found = run(), run(compress=compress)
    assert found.rounds[-1].bytes_up < share * plain.rounds[-1].bytes_up
    assert found.rounds[-1].loss < found.before["loss"]


def test_a_liar_that_cannot_compress_its_lie_takes_no_part() -> None:
    found = run(Conditions(byzantine=0.2, attack="nan"), compress="int8")
    assert all(done.refused.keys() == found.liars and len(done.participants) == 8 for done in found.rounds)


def test_a_model_that_diverged_is_said_in_one_sentence() -> None:
    with pytest.raises(UserError, match="diverged; lower the learning rate"):
        run(server=ServerStep(rate=1e38))


def test_a_round_below_its_quorum_is_abandoned_and_the_federation_gives_up() -> None:
    found = run(Conditions(silent=0.9), min_devices=3, max_abandoned=2)
    assert [done.state for done in found.rounds] == ["abandoned", "abandoned"]
    assert found.rounds[-1].metric == found.before["metric"] and len(found.rounds[-1].silent) == 9


def test_devices_without_rows_enough_are_not_asked_and_a_fleet_of_them_is_refused() -> None:
    fleet = a_fleet()
    tiny = dataclasses.replace(fleet, shares=[*fleet.shares[:4], fleet.shares[4].take(slice(0, 1))])
    found = run(fleet=tiny, min_rows=5)
    assert all("device-4" not in done.participants for done in found.rounds)
    with pytest.raises(UserError, match="4 of 5 devices have 5 rows or more, and a round needs 5"):
        run(fleet=tiny, min_rows=5, min_devices=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"silent": 1.5}, "silent 1.5"),
        ({"attack": "bribe"}, "unknown attack 'bribe'; known: garbage"),
        ({"workers": -1}, "-1 workers"),
        ({"held_out": 1.0}, "held out"),
    ],
)
def test_conditions_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Conditions(**options)


def test_ctrl_c_ends_every_process(tmp_path: Path) -> None:
    """The parent is interrupted in the middle of a long run; its workers are gone with it."""
    script = tmp_path / "long.py"
    script.write_text(
        "import os\n"
        "from edgeml.simulation import Conditions, simulate\n"
        "from tests.simulation.test_simulation import a_fleet, a_plan\n"
        "def tell(done):\n"
        "    if done.round == 1:\n"
        "        print(*open(f'/proc/{os.getpid()}/task/{os.getpid()}/children').read().split(), flush=True)\n"
        "if __name__ == '__main__':\n"
        "    simulate(a_fleet(), a_plan(rounds=10**6), Conditions(workers=2), on_round=tell)\n",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
        text=True,
    )
    assert process.stdout is not None
    children = [int(pid) for pid in process.stdout.readline().split()]
    assert len(children) >= 2
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode != 0 and said.rstrip().endswith("KeyboardInterrupt")
    until = time.monotonic() + 10
    while any(Path(f"/proc/{pid}").exists() for pid in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in children)
