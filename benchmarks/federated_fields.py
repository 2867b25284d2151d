"""Real data, divided as it was collected: federated beside the same steps on all rows at once.

    PYTHONPATH=. python benchmarks/federated_fields.py [--only NAME]     needs EDGEML_DATA, see docs/benchmarks.md

WISDM by user (activity, 36 phones), C-MAPSS FD001 by engine (remaining useful life, 100 engines), MNIST-10k by shards
of two digits (100 devices). A fifth of every device's rows is for the test. Centralized is the same model, loss and
number of passes over all rows, its rate the best of three; so is the federated rate, told by rows held out of training.
Kept in results/ part by part.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import gzip
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.simulated import network, pooled, regressor
from edgeml.artifacts import Rows
from edgeml.errors import UserError
from edgeml.federated import CohortOptions, Plan
from edgeml.federated.partition import partition
from edgeml.simulation import Fleet, simulate
from edgeml_runtime.measure import environment

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
CAP = 125.0  # cycles: an engine's remaining life counts no further
POINT, SHARE = 0.01, 0.03  # how near to centralized is the goal: accuracy, RMSE


@dataclass(frozen=True)
class Field:
    """One data set on its devices, and how it is learned."""

    fleet: Fleet
    plan: Plan
    rates: tuple[float, ...]
    strategies: tuple[str, ...] = ("fedavg", "scaffold", "fedadam")


def _numeric(x: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Return columns with their holes filled and scaled by the rows `fit`; constants become 0."""
    mean, spread = np.nanmean(x[fit], axis=0), np.nanstd(x[fit], axis=0)
    filled = np.where(np.isnan(x), mean, x)
    scaled: np.ndarray = np.clip((filled - mean) / np.where(spread > 1e-6, spread, 1), -5, 5).astype(np.float32)
    return scaled


def _parted(x: np.ndarray, y: np.ndarray, groups: np.ndarray) -> tuple[list[Rows], Rows]:
    """Return the rows of each group, a fifth of them left to the test."""
    rng, learn, test = np.random.default_rng(0), [], []
    for group in np.unique(groups):
        rows = rng.permutation(np.flatnonzero(groups == group))
        cut = max(1, round(0.8 * len(rows)))
        learn.append(np.sort(rows[:cut]))
        test.append(rows[cut:])
    held = np.concatenate(test)
    x = _numeric(x, np.concatenate(learn))
    return [Rows({"x": x[rows]}, y[rows]) for rows in learn], Rows({"x": x[held]}, y[held])


def wisdm() -> Field:
    frame = pd.read_csv(DATA / "wisdm_v1_features/wisdm_transformed.csv.gz", na_values="?")
    features = frame.drop(columns=["class", "user", "UNIQUE_ID"]).select_dtypes("number")
    x = features.to_numpy(np.float64)
    x = x[:, ~np.isnan(x).all(axis=0)]
    y = pd.factorize(frame["class"])[0].astype(np.int64)
    shares, test = _parted(x, y, frame["user"].to_numpy())
    fleet = Fleet(model=network((x.shape[1], 64, 6), seed=0), shares=shares, valid=test)
    plan = Plan(rounds=150, local_epochs=1, batch_size=16, min_rows=1)
    return Field(fleet, plan, (0.03, 0.1, 0.3))


def cmapss() -> Field:
    frame = pd.read_csv(DATA / "cmapss_fd001/train_FD001.txt.gz", sep=r"\s+", header=None)
    table = frame.to_numpy(np.float64)
    unit, cycle = table[:, 0], table[:, 1]
    last = frame.groupby(0)[1].transform("max").to_numpy(np.float64)
    y = (np.minimum(last - cycle, CAP) / CAP).astype(np.float32).reshape(-1, 1)
    x = table[:, 1:]
    shares, test = _parted(x, y, unit)
    fleet = Fleet(
        model=regressor((x.shape[1], 32, 1), seed=0),
        shares=shares,
        valid=test,
        kind="regression",
        loss="mse",
        metric="rmse",
    )
    plan = Plan(rounds=150, local_epochs=1, batch_size=32, min_rows=1)
    return Field(fleet, plan, (0.03, 0.1, 0.3))


def mnist() -> Field:
    with gzip.open(DATA / "mnist_10k/t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(DATA / "mnist_10k/t10k-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    x = (images / 255).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    test, train = order[:2000], order[2000:]
    parts = partition("shards:2", y[train], devices=100, seed=0)
    shares = [Rows({"x": x[train[part]]}, y[train[part]]) for part in parts]
    fleet = Fleet(model=network((784, 64, 10), seed=0), shares=shares, valid=Rows({"x": x[test]}, y[test]))
    plan = Plan(rounds=150, local_epochs=1, batch_size=10, min_rows=1, cohort=CohortOptions(target=20, over=0.0))
    return Field(fleet, plan, (0.03, 0.1, 0.3))


FIELDS: dict[str, Callable[[], Field]] = {
    "WISDM by user": wisdm,
    "C-MAPSS FD001 by engine": cmapss,
    "MNIST-10k, two digits a device": mnist,
}


def measure(field: Field) -> dict[str, Any]:
    """Return the test metric of centralized training and of every strategy, each with its best rate."""
    fleet, found = field.fleet, dict[str, Any]()
    down = fleet.metric == "rmse"
    told = _cut(fleet, 0.85)
    asked = (field.plan.cohort.target or len(fleet.shares)) / len(fleet.shares)
    for name in ("centralized", *field.strategies):
        began, tried = time.perf_counter(), dict[float, float]()
        for rate in field.rates:
            with contextlib.suppress(UserError):  # it diverged
                tried[rate] = _run(told, field.plan, name, rate, passes=asked)
        best = (min if down else max)(tried, key=lambda rate: tried[rate])
        reached = _run(fleet, field.plan, name, best, passes=asked)
        found[name] = {"rate": best, fleet.metric: reached, "seconds": round(time.perf_counter() - began, 1)}
        print(name, found[name], flush=True)
    return {"metric": fleet.metric, "devices": len(fleet.shares), "rows": sum(map(len, fleet.shares)), "ways": found}


def _run(fleet: Fleet, plan: Plan, name: str, rate: float, *, passes: float) -> float:
    """Return the final test metric; `centralized` makes as many passes over all rows as the fleet makes in the mean."""
    if name == "centralized":
        rounds = max(1, round(plan.rounds * passes))
        alone = dataclasses.replace(fleet, shares=[pooled(fleet.shares)])
        whole = dataclasses.replace(plan, rounds=rounds, min_devices=1, cohort=CohortOptions(), learning_rate=rate)
        return simulate(alone, whole).rounds[-1].metric
    done = simulate(fleet, dataclasses.replace(plan, strategy=name, learning_rate=rate))
    return float(np.mean([told.metric for told in done.rounds[-3:]]))


def _cut(fleet: Fleet, share: float) -> Fleet:
    """Return the fleet that learns from a part of every device's rows and is judged on the rest."""
    cuts = [max(1, round(share * len(rows))) for rows in fleet.shares]
    orders = [np.random.default_rng(i).permutation(len(rows)) for i, rows in enumerate(fleet.shares)]
    three = list(zip(fleet.shares, orders, cuts, strict=True))
    valid = pooled([rows.take(order[cut:]) for rows, order, cut in three])
    return dataclasses.replace(fleet, shares=[rows.take(order[:cut]) for rows, order, cut in three], valid=valid)


def table(kept: dict[str, Any]) -> str:
    ways = ("centralized", "fedavg", "scaffold", "fedadam")
    lines = [
        f"| | devices | rows | {' | '.join(ways)} | within the goal |",
        "|---|---:|---:|" + "---:|" * len(ways) + "---|",
    ]
    for name, told in kept.items():
        if name == "environment":
            continue
        metric, found = told["metric"], told["ways"]
        central = found["centralized"][metric]
        gaps = {way: found[way][metric] - central for way in ways[1:]}
        near = [w for w, gap in gaps.items() if (gap <= SHARE * central if metric == "rmse" else gap >= -POINT)]
        cells = [f"{found[way][metric]:.4f}" for way in ways]
        where = ", ".join(near) or "none"
        lines.append(f"| {name}, {metric} | {told['devices']} | {told['rows']:,} | {' | '.join(cells)} | {where} |")
    lines += [
        "",
        "The goal: at most 1 point of accuracy, or 3 % of RMSE, from centralized. Mean of the last three rounds.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=FIELDS)
    only = parser.parse_args().only
    path = RESULTS / "federated_fields.json"
    kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if only and path.exists() else {}
    chosen: Sequence[str] = [only] if only else list(FIELDS)
    for name in chosen:
        kept[name] = measure(FIELDS[name]())
        kept["environment"] = environment()
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        path.with_suffix(".md").write_text(table(kept), encoding="utf-8")
    print(table(kept))


if __name__ == "__main__":
    main()
