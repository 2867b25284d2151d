"""Real data, divided as it was collected: federated beside centralized training on the same rows.

    PYTHONPATH=. python benchmarks/federated_fields.py [--only NAME]     needs EDGEML_DATA, see docs/benchmarks.md

WISDM by user (activity, 36 phones), C-MAPSS FD001 by engine (remaining useful life, 100 engines), MNIST-10k by shards
of two digits (100 devices). A fifth of every device's rows is for the test. All ways have the same model and loss. Each
takes, of its rates and decays, those that are best on 15 % of the rows to learn from, and then learns from all of them;
where one rate stands, a wider search on the same rows left it, or, for one step of FedAvg, .3 diverged.
Centralized makes so many passes that its score there stood still.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import itertools
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.kept import Kept, run_parts
from benchmarks.simulated import network, pooled, regressor
from edgeml.artifacts import Rows
from edgeml.errors import UserError
from edgeml.federated import CohortOptions, Plan, ServerStep
from edgeml.federated.partition import partition
from edgeml.simulation import Fleet, simulate

DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
CAP = 125.0  # cycles: an engine's remaining life counts no further
UNITS = {"accuracy": "points", "rmse": "%"}
POINT, SHARE = 0.01, 0.03  # how near to centralized is the goal: accuracy, RMSE
CENTRALIZED = "centralized"


@dataclass(frozen=True)
class Way:
    """One way to learn, and what is tried of it: learning rates, and their decay from round to round."""

    plan: Plan
    rates: tuple[float, ...]
    decays: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Field:
    """One data set on its devices, and the ways it is learned, centralized first."""

    load: Callable[[], Fleet]
    ways: Mapping[str, Way]


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


def wisdm() -> Fleet:
    frame = pd.read_csv(DATA / "wisdm_v1_features/wisdm_transformed.csv.gz", na_values="?")
    features = frame.drop(columns=["class", "user", "UNIQUE_ID"]).select_dtypes("number")
    x = features.to_numpy(np.float64)
    x = x[:, ~np.isnan(x).all(axis=0)]
    y = pd.factorize(frame["class"])[0].astype(np.int64)
    shares, test = _parted(x, y, frame["user"].to_numpy())
    return Fleet(model=network((x.shape[1], 64, 6), seed=0), shares=shares, valid=test)


def cmapss() -> Fleet:
    frame = pd.read_csv(DATA / "cmapss_fd001/train_FD001.txt.gz", sep=r"\s+", header=None)
    table = frame.to_numpy(np.float64)
    unit, cycle = table[:, 0], table[:, 1]
    last = frame.groupby(0)[1].transform("max").to_numpy(np.float64)
    y = (np.minimum(last - cycle, CAP) / CAP).astype(np.float32).reshape(-1, 1)
    x = table[:, 1:]
    shares, test = _parted(x, y, unit)
    model = regressor((x.shape[1], 32, 1), seed=0)
    return Fleet(model=model, shares=shares, valid=test, kind="regression", loss="mse", metric="rmse")


def mnist() -> Fleet:
    with gzip.open(DATA / "mnist_10k/t10k-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 784)
    with gzip.open(DATA / "mnist_10k/t10k-labels-idx1-ubyte.gz") as file:
        y = np.frombuffer(file.read(), np.uint8, offset=8).astype(np.int64)
    x = (images / 255).astype(np.float32)
    order = np.random.default_rng(0).permutation(len(y))
    test, train = order[:2000], order[2000:]
    parts = partition("shards:2", y[train], devices=100, seed=0)
    shares = [Rows({"x": x[train[part]]}, y[train[part]]) for part in parts]
    return Fleet(model=network((784, 64, 10), seed=0), shares=shares, valid=Rows({"x": x[test]}, y[test]))


def _alike(plan: Plan) -> dict[str, Way]:
    """Return ways that differ in nothing but the strategy."""
    names = ("fedavg", "scaffold", "fedadam")
    return {name: Way(dataclasses.replace(plan, strategy=name), (0.03, 0.1, 0.3)) for name in names}


ACTIVITY = Plan(rounds=150, batch_size=16, min_rows=1)
ENGINES = Plan(rounds=150, batch_size=32, min_rows=1)
ONE_STEP = Plan(rounds=600, batch_size=512, min_rows=1)  # no engine has as many rows
IMAGES = Plan(rounds=150, batch_size=10, min_rows=1, cohort=CohortOptions(target=20, over=0.0))
FIELDS = {
    "WISDM by user": Field(
        wisdm,
        {
            CENTRALIZED: Way(ACTIVITY, (0.01, 0.03, 0.1), (1.0, 0.98)),
            **_alike(ACTIVITY),
            "fedavg, more rounds": Way(dataclasses.replace(ACTIVITY, rounds=600), (0.3,)),
            "fedavgm, more rounds": Way(dataclasses.replace(ACTIVITY, rounds=300, strategy="fedavgm"), (0.3,)),
            "scaffold, 5 epochs": Way(
                dataclasses.replace(ACTIVITY, local_epochs=5, strategy="scaffold"), (0.1, 0.3), (1.0, 0.99)
            ),
        },
    ),
    "C-MAPSS FD001 by engine": Field(
        cmapss,
        {
            CENTRALIZED: Way(ENGINES, (0.03, 0.1), (1.0, 0.98)),
            **_alike(ENGINES),
            "fedavg, one step": Way(ONE_STEP, (0.1,)),
            "fedavgm, one step": Way(dataclasses.replace(ONE_STEP, rounds=900, strategy="fedavgm"), (0.3,)),
            "fedadam, one step": Way(dataclasses.replace(ONE_STEP, strategy="fedadam"), (0.3,)),
            "scaffold, 5 epochs": Way(
                dataclasses.replace(ENGINES, rounds=400, local_epochs=5, batch_size=16, strategy="scaffold"), (0.03,)
            ),
        },
    ),
    "MNIST-10k, two digits a device": Field(
        mnist,
        {
            CENTRALIZED: Way(dataclasses.replace(IMAGES, rounds=30), (0.03, 0.1, 0.3), (1.0, 0.9)),
            **_alike(IMAGES),
            "fedavg, more rounds": Way(dataclasses.replace(IMAGES, rounds=600), (0.3,)),
            "scaffold, momentum on the server": Way(
                dataclasses.replace(
                    IMAGES, rounds=300, strategy="scaffold", server=ServerStep(kind="momentum", rate=0.3)
                ),
                (0.1,),
            ),
        },
    ),
}


def measure(field: str, name: str) -> dict[str, Any]:
    """Return the test metric of one way with its best rate and decay, and what each reached on rows held out."""
    fleet, way = FIELDS[field].load(), FIELDS[field].ways[name]
    told, tried = _cut(fleet, 0.85), list[tuple[float, float, float]]()
    settings = list(itertools.product(way.rates, way.decays))
    for rate, decay in settings if len(settings) > 1 else ():
        with contextlib.suppress(UserError):  # it diverged
            tried.append((_run(told, way.plan, name, rate=rate, decay=decay), rate, decay))
    rate, decay = (min if fleet.metric == "rmse" else max)(tried)[1:] if tried else settings[0]
    reached = _run(fleet, way.plan, name, rate=rate, decay=decay)
    return {
        "metric": fleet.metric,
        fleet.metric: reached,
        "rate": rate,
        "decay": decay,
        "rounds": way.plan.rounds,
        "epochs": way.plan.local_epochs,
        "batch_size": way.plan.batch_size,
        "devices": len(fleet.shares),
        "rows": sum(map(len, fleet.shares)),
        "test_rows": len(fleet.valid),
        "tried": tried,
    }


def _run(fleet: Fleet, plan: Plan, name: str, *, rate: float, decay: float) -> float:
    """Return the test metric, the mean of the last three rounds: passes over all rows, if `name` is centralized."""
    plan = dataclasses.replace(plan, learning_rate=rate, decay=decay)
    if name == CENTRALIZED:
        fleet = dataclasses.replace(fleet, shares=[pooled(fleet.shares)])
        plan = dataclasses.replace(plan, min_devices=1, cohort=CohortOptions())
    return float(np.mean([told.metric for told in simulate(fleet, plan).rounds[-3:]]))


def _cut(fleet: Fleet, share: float) -> Fleet:
    """Return the fleet that learns from a part of every device's rows and is judged on the rest."""
    cuts = [max(1, round(share * len(rows))) for rows in fleet.shares]
    orders = [np.random.default_rng(i).permutation(len(rows)) for i, rows in enumerate(fleet.shares)]
    three = list(zip(fleet.shares, orders, cuts, strict=True))
    valid = pooled([rows.take(order[cut:]) for rows, order, cut in three])
    return dataclasses.replace(fleet, shares=[rows.take(order[:cut]) for rows, order, cut in three], valid=valid)


def table(kept: Kept) -> str:
    """Return what was measured, one line a way, each beside the centralized one of its data."""
    lines = [
        "| data | way | rounds | epochs a round, batch | rate, decay | test | gap to centralized | within the goal |",
        "|---|---|---:|---|---|---:|---:|---|",
    ]
    for part, told in kept.items():
        field, _, name = part.partition(": ")
        whole = kept.get(f"{field}: {CENTRALIZED}")
        if field not in FIELDS or whole is None:
            continue
        metric = told["metric"]
        score, central = told[metric], whole[metric]
        gap, goal = (score / central - 1, SHARE) if metric == "rmse" else (central - score, POINT)
        size = f"{field}, {told['devices']} devices, {told['rows']:,} rows" if name == CENTRALIZED else ""
        verdict = (f"{100 * gap:+.1f} {UNITS[metric]}", "yes" if gap <= goal else "no")
        cells = ("", "") if name == CENTRALIZED else verdict
        lines.append(
            f"| {size} | {name} | {told['rounds']} | {told['epochs']}, {told['batch_size']} "
            f"| {told['rate']:g}, {told['decay']:g} | {score:.4f} | {' | '.join(cells)} |"
        )
    return "\n".join([*lines, "", *_words(kept)]) + "\n"


def _words(kept: Kept) -> list[str]:
    rows = {part.partition(": ")[0]: told["test_rows"] for part, told in kept.items() if CENTRALIZED in part}
    return [
        f"Accuracy, or RMSE in units of {CAP:g} cycles, mean of the last three rounds. The goal: at most 1 point, or "
        "3 %, behind centralized.",
        f"Test rows: {', '.join(f'{name} {count:,}' for name, count in rows.items())}.",
    ]


PARTS = {
    f"{field}: {name}": functools.partial(measure, field, name) for field, one in FIELDS.items() for name in one.ways
}

if __name__ == "__main__":
    run_parts("federated_fields", PARTS, table=table, about=__doc__)
