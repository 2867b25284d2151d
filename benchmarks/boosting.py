"""Trees boosted over ten devices beside scikit-learn's histogram boosting on the pooled rows: scores over seeds, cost.

    PYTHONPATH=. python benchmarks/boosting.py [--data digits,wisdm] [--seeds 5]

Devices hold uneven shares of the rows, or their own groups (users, engines). Peers: HistGradientBoosting as it is by
default, and with the same bins, depth and number of trees. Writes results/boosting.json and .md after every trial and
goes on where it was stopped; `--anew` forgets what is there.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.model_selection import GroupShuffleSplit, ShuffleSplit

from edgeml import tasks
from edgeml.artifacts import Task
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session
from edgeml_runtime.wire import tensors

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
DEVICES, BINS, DEPTH, TEST = 10, 63, 5, 0.3
CAP = 125  # of the remaining useful life, as published results have it
WIN, LOSS = "ahead", "behind"


@dataclass(frozen=True)
class Table:
    """Rows to learn from; `groups` (rows,) must not be divided between devices, nor between learning and test."""

    x: np.ndarray
    y: np.ndarray
    classes: tuple[object, ...] = ()
    groups: np.ndarray | None = None


def of_arrays(load: Callable[..., Any], *, regression: bool = False) -> Table:
    """Return one of scikit-learn's own data sets."""
    x, y = load(return_X_y=True)
    classes = () if regression else tuple(range(int(y.max()) + 1))
    return Table(x.astype(np.float32), y.astype(np.float64 if regression else np.int64), classes)


def of_frame(frame: pd.DataFrame, target: str, *, group: str = "") -> Table:
    """Return a table of numbers: texts become codes, what is missing stays so."""
    groups = pd.factorize(frame[group])[0] if group else None
    frame = frame.dropna(subset=[target]).drop(columns=[group] if group else [])
    codes, names = pd.factorize(frame[target], sort=True)
    columns = [
        column if column.dtype.kind in "fiu" else pd.Series(pd.factorize(column)[0]).replace(-1, np.nan)
        for _, column in frame.drop(columns=target).items()
    ]
    x = np.stack([np.asarray(column, np.float32) for column in columns], axis=1)
    return Table(x, codes.astype(np.int64), tuple(map(str, names)), groups)


def penguins() -> Table:
    return of_frame(pd.read_csv(DATA / "penguins/penguins.csv"), "species")


def titanic() -> Table:
    frame = pd.read_csv(DATA / "titanic/titanic.csv")
    return of_frame(frame.drop(columns=["PassengerId", "Name", "Ticket", "Cabin"], errors="ignore"), "Survived")


def bearings() -> Table:
    return of_frame(pd.read_csv(DATA / "cwru_bearing_features/feature_time_48k_2048_load_1.csv"), "fault")


def wisdm() -> Table:
    frame = pd.read_csv(DATA / "wisdm_v1_features/wisdm_transformed.csv.gz", na_values="?")
    return of_frame(frame.drop(columns=["UNIQUE_ID"], errors="ignore"), "class", group="user")


def engines() -> Table:
    """Return every second cycle of C-MAPSS FD001 with its capped remaining life, by engine."""
    rows = np.loadtxt(DATA / "cmapss_fd001/train_FD001.txt.gz")
    last = {unit: rows[rows[:, 0] == unit, 1].max() for unit in np.unique(rows[:, 0])}
    life = np.minimum([last[unit] - cycle for unit, cycle in rows[:, :2]], CAP)
    keep = slice(None, None, 2)
    return Table(rows[keep, 2:].astype(np.float32), life[keep], groups=rows[keep, 0].astype(np.int64))


SETS: dict[str, tuple[Callable[[], Table], int]] = {  # rows, trees
    "breast_cancer": (functools.partial(of_arrays, load_breast_cancer), 50),
    "diabetes": (functools.partial(of_arrays, load_diabetes, regression=True), 50),
    "penguins": (penguins, 20),
    "titanic": (titanic, 50),
    "digits": (functools.partial(of_arrays, load_digits), 20),
    "bearings": (bearings, 20),
    "wisdm by user": (wisdm, 20),
    "engines by unit": (engines, 40),
}


def estimator(table: Table, trees: int) -> Any:
    """Return the unfitted estimator that fleet and pooled rows train."""
    kind = HistGradientBoostingClassifier if table.classes else HistGradientBoostingRegressor
    return kind(max_iter=trees, max_bins=BINS, max_depth=DEPTH, max_leaf_nodes=None, early_stopping=False)


def devices(table: Table, rows: np.ndarray, seed: int) -> list[np.ndarray]:
    """Return the rows of each device: whole groups, or shares that grow with the square of its number."""
    if table.groups is not None:
        names = np.random.default_rng(seed).permutation(np.unique(table.groups[rows]))
        return [rows[np.isin(table.groups[rows], part)] for part in np.array_split(names, DEVICES)]
    share = np.cumsum(np.arange(1, DEVICES + 1) ** 2)
    return np.split(np.random.default_rng(seed).permutation(rows), (share * len(rows) // share[-1])[:-1])


@functools.lru_cache(maxsize=64)
def session(graph: bytes) -> Session:
    return Session(graph)


def answer(task: Task, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Return what a device with these rows sends."""
    return session(task.data).run({"x": x, "target": y, **task.parameters})


def fit(table: Table, shares: Sequence[np.ndarray], what: Any) -> tuple[Any, dict[str, float]]:
    """Return the estimator that the fleet fitted, and what that took."""
    study = tasks.study(what, features=table.x.shape[1], classes=table.classes)
    seconds, up, down, rounds = [0.0] * len(shares), 0, 0, 0
    while not study.done:
        task, answers = study.task(), []
        for i, rows in enumerate(shares):
            begin = time.perf_counter()
            answers.append(answer(task, table.x[rows], table.y[rows]))
            seconds[i] += time.perf_counter() - begin
        up, down = up + len(tensors.pack(answers[0])), down + len(tensors.pack(dict(task.parameters)))
        study = study.take({name: np.sum([a[name] for a in answers], axis=0) for name in task.outputs})
        rounds += 1
    return study.result(), {
        "rounds": rounds,
        "bytes_up": up / rounds,
        "bytes_down": down / rounds,
        "ms_round": 1000 * max(seconds) / rounds,
    }


def trial(table: Table, trees: int, seed: int) -> dict[str, Any]:
    """Return the scores of one division into learning and test rows."""
    split = GroupShuffleSplit if table.groups is not None else ShuffleSplit
    learn, test = next(split(1, test_size=TEST, random_state=seed).split(table.x, groups=table.groups))
    y = np.array(table.classes)[table.y] if table.classes else table.y
    fleet, cost = fit(table, devices(table, learn, seed), estimator(table, trees))
    same = estimator(table, trees).fit(table.x[learn], y[learn])
    default = type(same)(max_iter=trees, early_stopping=False).fit(table.x[learn], y[learn])
    scores = {
        name: float(one.score(table.x[test], y[test]))
        for name, one in (("fleet", fleet), ("same", same), ("default", default))
    }
    return {"seed": seed, **scores, **cost}


def measure(name: str, known: dict[str, Any] | None, seed: int) -> dict[str, Any]:
    """Return what is known of a data set with one trial more."""
    load, trees = SETS[name]
    table = load()
    facts = {"rows": len(table.y), "features": table.x.shape[1], "classes": len(table.classes), "trees": trees}
    trials = [one for one in known["trials"] if one["seed"] != seed] if known and known["trees"] == trees else []
    return {**facts, "trials": sorted([*trials, trial(table, trees, seed)], key=lambda one: one["seed"])}


def noise(found: dict[str, Any], peer: str) -> tuple[float, float, str]:
    """Return the mean difference of the fleet to a peer, its standard error, and the verdict."""
    gaps = [one["fleet"] - one[peer] for one in found["trials"]]
    mean = statistics.mean(gaps)
    error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("inf")
    if len(gaps) < 2:
        return mean, error, "one trial, no verdict"
    verdict = "within noise" if abs(mean) <= max(2 * error, 1e-3) else WIN if mean > 0 else LOSS
    return mean, error, verdict


def table_of(results: dict[str, Any]) -> str:
    """Return the results in Markdown."""
    lines = [
        f"Accuracy, or R2 where there are no classes, on {TEST:.0%} of the rows, means over seeds. {DEVICES} devices "
        "have uneven shares, or whole users or engines, none of whom is in the test rows. The fleet and `same` have "
        f"{BINS} bins and {DEPTH} levels; the fleet's bins come from its own counts. `default` is scikit-learn's with "
        "as many trees. A difference is within noise below two standard errors or a thousandth. Bytes are of a device "
        "and round, uncompressed; ms are of the device with most rows, one thread.",
        "",
        "| data | rows x features, classes | trees | fleet | same | default | fleet - same | fleet - default | rounds "
        "| up | down | ms |",
        "|---|---|---:|---:|---:|---:|---|---|---:|---:|---:|---:|",
    ]
    for name, found in results.items():
        mean = {key: statistics.mean(one[key] for one in found["trials"]) for key in found["trials"][0]}
        gaps = ["{:+.4f} ± {:.4f}, {}".format(*noise(found, peer)) for peer in ("same", "default")]
        lines.append(
            f"| {name} | {found['rows']:,} x {found['features']}, {found['classes'] or '-'} | {found['trees']} "
            f"| {mean['fleet']:.4f} | {mean['same']:.4f} | {mean['default']:.4f} | {' | '.join(gaps)} "
            f"| {mean['rounds']:.0f} | {mean['bytes_up'] / 1024:,.0f} KB | {mean['bytes_down'] / 1024:,.0f} KB "
            f"| {mean['ms_round']:.1f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure what is asked for, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=",".join(SETS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--anew", action="store_true")
    options = parser.parse_args()
    path = RESULTS / "boosting.json"
    known = path.exists() and not options.anew
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if known else {}
    wanted = [(name, seed) for name in options.data.split(",") for seed in range(options.seeds)]
    for name, seed in wanted:
        if name in results and seed in [one["seed"] for one in results[name]["trials"]]:
            continue
        results[name] = measure(name, results.get(name), seed)
        print(table_of({name: results[name]}).splitlines()[-1], flush=True)
        ordered = {known: results[known] for known in SETS if known in results}
        path.write_text(json.dumps({"environment": environment(), "results": ordered}, indent=1), encoding="utf-8")
        (RESULTS / "boosting.md").write_text(table_of(ordered), encoding="utf-8")


if __name__ == "__main__":
    main()
