"""Published shapes of federated learning that can be made offline: do our strategies behave as their papers say?

    PYTHONPATH=. python benchmarks/federated_shapes.py [--only PART]

Three tables, all simulated: FedProx's Synthetic(1,1) with 90 % stragglers (arXiv 1812.06127, figure 1); six strategies
on the digits, even and skewed, over five seeds, beside the same steps on all rows at once; a quarter of the devices
lying. Every part is kept in results/federated_shapes.json as soon as it is done, so that it can be run in parts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.kept import run_parts
from benchmarks.simulated import digits_fleet, network, pooled, synthetic
from edgeml.federated import Believe, CohortOptions, Plan, least_updates, strategy
from edgeml.simulation import Conditions, Fleet, simulate
from edgeml.simulation.fleet import scores

SEEDS = range(5)
SPLITS = ("iid", "shards:2", "dirichlet:0.1")
STRATEGIES = ("fedavg", "fedavgm", "fedprox", "scaffold", "fednova", "fedadam")
SYNTHETIC = {  # name -> strategy, mu, whether partial work counts
    "FedAvg, stragglers dropped": ("fedavg", None, False),
    "partial work, mu 0": ("fedprox", 0.0, True),
    "partial work, mu 1": ("fedprox", 1.0, True),
}
ATTACKS, POOLED = ("none", "garbage", "flip", "scale"), "all rows at once"
ROBUST = ("fedavg", "median", "trimmed_mean", "krum", "multi_krum", "bulyan")
DEVICES, LIARS = 24, 6


def synthetic_table() -> dict[str, Any]:
    """K = 10 of 30 devices a round, E = 20, B = 10, rate .01, 100 rounds; three draws of the data."""
    found: dict[str, Any] = {name: [] for name in SYNTHETIC}
    for seed in range(3):
        shares = synthetic(1, 1, devices=30, seed=seed, most=3000)
        cut = [max(1, int(0.9 * len(rows))) for rows in shares]
        train = [rows.take(slice(0, n)) for rows, n in zip(shares, cut, strict=True)]
        test = pooled([rows.take(slice(n, None)) for rows, n in zip(shares, cut, strict=True)])
        fleet = Fleet(model=network((60, 10), seed=0, scale=0.0), shares=train, valid=test)
        for name, (chosen, mu, partial) in SYNTHETIC.items():
            plan = Plan(
                rounds=100,
                strategy=chosen,
                mu=mu,
                learning_rate=0.01,
                seed=seed,
                local_epochs=20,
                batch_size=10,
                min_devices=1,
                min_rows=1,
                cohort=CohortOptions(target=10, over=0.0),
            )
            done = simulate(fleet, plan, Conditions(stragglers=0.9, partial=partial))
            whole = scores(dataclasses.replace(fleet, valid=pooled(train)), done.parameters)
            curve = [round(told.loss, 4) for told in done.rounds]
            line = {"train_loss": whole["loss"], "test_accuracy": done.rounds[-1].metric, "test_loss": curve}
            found[name].append(line)
            print(seed, name, f"{whole['loss']:.3f} {done.rounds[-1].metric:.3f}", flush=True)
    return found


def skewed_table(spec: str) -> dict[str, Any]:
    """10 devices, 30 rounds, E = 5, B = 16, rate .1, no momentum; the accuracy of every round."""
    found: dict[str, Any] = {}
    for seed in SEEDS:
        fleet = digits_fleet(spec, devices=10, seed=seed)
        plan = Plan(rounds=30, learning_rate=0.1, local_epochs=5, seed=seed, min_rows=1)
        for name in STRATEGIES:
            done = simulate(fleet, dataclasses.replace(plan, strategy=name))
            found.setdefault(name, []).append([told.metric for told in done.rounds])
        alone = dataclasses.replace(fleet, shares=[pooled(fleet.shares)])
        whole = simulate(alone, dataclasses.replace(plan, min_devices=1))
        found.setdefault(POOLED, []).append([told.metric for told in whole.rounds])
        print(spec, seed, {name: round(runs[-1][-1], 4) for name, runs in found.items()}, flush=True)
    return found


def liars_table() -> dict[str, Any]:
    """24 devices with even rows, a quarter of which lies; 20 rounds, E = 2. Bulyan is told of 5: it needs 4 b + 3."""
    found: dict[str, Any] = {}
    for attack in ATTACKS:
        for name in ROBUST:
            for seed in range(3):
                believe = Believe(byzantine=5 if name == "bulyan" else LIARS)
                plan = Plan(
                    rounds=20,
                    strategy=name,
                    learning_rate=0.1,
                    local_epochs=2,
                    seed=seed,
                    min_devices=max(2, least_updates(strategy(name).rule, believe)),
                    min_rows=1,
                    believe=believe,
                )
                liars = Conditions(byzantine=LIARS / DEVICES, attack=attack) if attack != "none" else Conditions()
                done = simulate(digits_fleet("iid", devices=DEVICES, seed=seed), plan, liars)
                found.setdefault(f"{attack} {name}", []).append(done.rounds[-1].metric)
        print(attack, {name: round(float(np.mean(found[f"{attack} {name}"])), 3) for name in ROBUST}, flush=True)
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "synthetic": synthetic_table,
    **{spec: functools.partial(skewed_table, spec) for spec in SPLITS},
    "liars": liars_table,
}


def mean_and_spread(values: list[float], digits: int = 3) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"


def table(kept: dict[str, Any]) -> str:
    """Return the tables of all parts in `kept`."""
    lines: list[str] = []
    if told := kept.get("synthetic"):
        lines += [
            "Synthetic(1,1), 90 % stragglers: 10 of 30 devices a round, E 20, B 10, rate .01, after 100 rounds; three"
        ]
        lines += ["draws, at most 3,000 rows a device.", "", "| | train loss | test accuracy |", "|---|---:|---:|"]
        for name, runs in told.items():
            loss = mean_and_spread([run["train_loss"] for run in runs])
            lines.append(f"| {name} | {loss} | {mean_and_spread([run['test_accuracy'] for run in runs])} |")
    if done := [spec for spec in SPLITS if spec in kept]:
        lines += [
            "",
            "Digits, MLP 64-64-10, 10 devices, 30 rounds, E 5, B 16, rate .1, no momentum: accuracy on 450 rows",
        ]
        lines += [
            "after the last round, mean ± standard deviation of five seeds, and the mean first round at .95 (or how"
        ]
        lines += ["many seeds came there).", "", f"| | {' | '.join(done)} |", "|---|" + "---:|" * len(done)]
        for name in (*STRATEGIES, POOLED):
            lines.append(f"| {name} | {' | '.join(_skewed_cell(kept[spec][name]) for spec in done)} |")
    if told := kept.get("liars"):
        lines += [
            "",
            "Digits, 24 devices with even rows, 6 of them lying in every round, 20 rounds, E 2, rate .1: accuracy,",
        ]
        lines += ["three seeds. Bulyan needs 27 devices against 6; it is told of 5.", ""]
        lines += [f"| | {' | '.join(ATTACKS)} |", "|---|" + "---:|" * len(ATTACKS)]
        for name in ROBUST:
            cells = [mean_and_spread(told[f"{attack} {name}"]) for attack in ATTACKS]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines).strip() + "\n"


def _skewed_cell(runs: list[list[float]]) -> str:
    first = [next((i + 1 for i, value in enumerate(run) if value >= 0.95), None) for run in runs]
    there = [value for value in first if value is not None]
    when = f"{np.mean(there):.0f}" if len(there) == len(runs) else f"{len(there)} of {len(runs)}"
    return f"{mean_and_spread([run[-1] for run in runs])} / {when}"


if __name__ == "__main__":
    run_parts("federated_shapes", PARTS, table=table, about=__doc__)
