"""MovieLens-100k with one user on every device: what is recommended, and how ratings are foretold, beside pooled rows.

    PYTHONPATH=. python benchmarks/federated_movielens.py [--only PART]     needs EDGEML_DATA, see docs/benchmarks.md

`ratings`: rating = mean + item's bias + user's bias + item's factors . user's factors. FedPer shares what belongs to
items; a user's bias and factors are the last layer and stay on the device (arXiv 1901.09888 has the same division).
Centralized learns all of it with the same loss from the same rows, fold 1 of the data's authors (u1.test). Both take
rate and rounds from 15 % of each user's ratings. `items`: co-occurrence, an exact sum; each user's last rating is left
out and looked for among ten recommendations.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from benchmarks.kept import Kept, run_parts
from edgeml import tasks
from edgeml.artifacts import OnnxModel, Rows
from edgeml.errors import UserError
from edgeml.federated import Plan, ServerStep
from edgeml.simulation import Fleet, simulate
from edgeml.tasks.statistics import Cooccurrence
from edgeml_runtime.session import Session

DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "movielens_100k"
USERS, ITEMS, TOP = 943, 1682, 10
USER, ITEM, RATING, TIME = range(4)  # columns of a ratings array; users and items from 0
WEIGHTS: tuple[Literal["count", "cosine", "ease"], ...] = ("count", "cosine", "ease")
FEDERATED = ((8, 0.01, 30), (8, 0.01, 40))  # of a wider search on the same ratings
FEDPER = Plan(strategy="fedper", batch_size=10, min_rows=1, server=ServerStep(rate=USERS))  # the sum of their changes
POOLED = Plan(batch_size=64, min_rows=1, min_devices=1)


def ratings(name: str) -> np.ndarray:
    """Return the ratings of a file, int64 (ratings, 4)."""
    with gzip.open(DATA / name) as file:
        found = np.loadtxt(file, dtype=np.int64)
    found[:, : ITEM + 1] -= 1
    return found


def fold() -> tuple[np.ndarray, np.ndarray]:
    """Return the ratings to learn from and those of the test."""
    whole, test = ratings("u.data.gz"), ratings("u1.test.gz")
    return whole[~np.isin(_pair(whole), _pair(test))], test


def _pair(of: np.ndarray) -> np.ndarray:
    return np.asarray(of[:, USER] * ITEMS + of[:, ITEM])


def set_aside(of: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the ratings without a share of every user's, and that share."""
    aside = np.zeros(len(of), bool)
    for user in range(USERS):
        rows = np.random.default_rng(user).permutation(np.flatnonzero(of[:, USER] == user))
        aside[rows[: round(share * len(rows))]] = True
    return of[~aside], of[aside]


def a_model(factors: int, *, users: bool) -> OnnxModel:
    """Return the model of a rating: with all users' factors, or with those of one, as the last layer."""
    rng = np.random.default_rng(0)
    held = {"bias": np.zeros((ITEMS, 1)), "items": 0.1 * rng.normal(size=(ITEMS, factors))}
    nodes = [helper.make_node("Gather", [name, "item"], [f"{name}/row"]) for name in held]
    if users:
        held |= {"user_bias": np.zeros((USERS, 1)), "users": 0.1 * rng.normal(size=(USERS, factors))}
        nodes += [helper.make_node("Gather", [name, "user"], [f"{name}/row"]) for name in ("user_bias", "users")]
        nodes += [
            helper.make_node("Mul", ["items/row", "users/row"], ["both"]),
            helper.make_node("ReduceSum", ["both", "axis"], ["product"]),
            helper.make_node("Add", ["product", "user_bias/row"], ["mine"]),
        ]
    else:
        held |= {"user": 0.1 * rng.normal(size=(factors, 1)), "user_bias": np.zeros(1)}
        nodes += [helper.make_node("Gemm", ["items/row", "user", "user_bias"], ["mine"])]
    nodes += [helper.make_node("Add", ["mine", "bias/row"], ["prediction"])]
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in held.items()]
    constants += [numpy_helper.from_array(np.array([1]), "axis")] * users
    names = ("item", "user") if users else ("item",)
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["rows"]) for name in names]
    output = helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["rows", 1])
    graph = helper.make_graph(nodes, "rating", inputs, [output], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return OnnxModel(made.SerializeToString(), source="")


def mean_rating(learn: np.ndarray) -> float:
    return float(learn[:, RATING].mean())


def rows_of(of: np.ndarray, mean: float, *, users: bool) -> Rows:
    """Return ratings as rows of a model, `mean` subtracted."""
    target = (of[:, RATING] - mean).astype(np.float32).reshape(-1, 1)
    return Rows({"item": of[:, ITEM], **({"user": of[:, USER]} if users else {})}, target)


def by_means(learn: np.ndarray, test: np.ndarray) -> float:
    """Return the RMSE of mean + item's mean deviation + user's mean deviation from that, each drawn to 0 by 5 rows."""
    rest, told = learn[:, RATING] - mean_rating(learn), np.full(len(test), mean_rating(learn))
    for column, size in ((ITEM, ITEMS), (USER, USERS)):
        total = np.bincount(learn[:, column], rest, size)
        off = total / (np.bincount(learn[:, column], minlength=size) + 5)
        rest, told = rest - off[learn[:, column]], told + off[test[:, column]]
    return float(np.sqrt(np.mean((told - test[:, RATING]) ** 2)))


def centralized(learn: np.ndarray, test: np.ndarray, *, factors: int, rate: float, rounds: int) -> float:
    """Return the RMSE after `rounds` passes over all rows."""
    mean = mean_rating(learn)
    fleet = Fleet(
        model=a_model(factors, users=True),
        shares=[rows_of(learn, mean, users=True)],
        valid=rows_of(test, mean, users=True),
        kind="regression",
        loss="mse",
        metric="rmse",
    )
    done = simulate(fleet, dataclasses.replace(POOLED, rounds=rounds, learning_rate=rate))
    return done.rounds[-1].metric


def federated(learn: np.ndarray, test: np.ndarray, *, factors: int, rate: float, rounds: int) -> float:
    """Return the RMSE over all users' test ratings, each foretold by the user's own device."""
    mean = mean_rating(learn)
    shares = [rows_of(learn[learn[:, USER] == user], mean, users=False) for user in range(USERS)]
    fleet = Fleet(
        model=a_model(factors, users=False),
        shares=shares,
        valid=shares[0],  # nobody's model: the server has none of a user
        held_out=[rows_of(test[test[:, USER] == user], mean, users=False) for user in range(USERS)],
        kind="regression",
        loss="mse",
        metric="rmse",
    )
    done = simulate(fleet, dataclasses.replace(FEDPER, rounds=rounds, learning_rate=rate))
    squares = [one.rows * one.own**2 for one in done.judged]
    return float(np.sqrt(sum(squares) / sum(one.rows for one in done.judged)))


def chosen(learner: Callable[..., float], grid: Sequence[tuple[int, float, int]]) -> dict[str, Any]:
    """Return the test RMSE with the factors, rate and rounds of `grid` that are best on 15 % of the first."""
    learn, test = fold()
    told, tried = set_aside(learn, 0.15), list[tuple[float, int, float, int]]()
    for factors, rate, rounds in grid:
        with contextlib.suppress(UserError):  # it diverged
            tried.append((learner(*told, factors=factors, rate=rate, rounds=rounds), factors, rate, rounds))
            print(*tried[-1], flush=True)
    _, factors, rate, rounds = min(tried)
    rmse = learner(learn, test, factors=factors, rate=rate, rounds=rounds)
    return {"rmse": rmse, "factors": factors, "rate": rate, "rounds": rounds, "tried": tried}


def rating_means() -> dict[str, Any]:
    learn, test = fold()
    return {"rmse": by_means(learn, test), "learned_from": len(learn), "test": len(test)}


def rating_centralized() -> dict[str, Any]:
    return chosen(centralized, [*itertools.product((1, 2, 4), (0.1, 0.3), (10, 30, 60))])


def rating_federated() -> dict[str, Any]:
    return chosen(federated, FEDERATED)


def item_weights() -> dict[str, Any]:
    """Return the hit rate of each weighting, learned by sums over the users' devices and from the pooled rows."""
    whole = ratings("u.data.gz")
    last = np.array(
        [rows[rows[:, TIME].argmax()] for user in range(USERS) if len(rows := whole[whole[:, USER] == user])]
    )
    seen = np.zeros((USERS, ITEMS), np.float32)
    seen[whole[:, USER], whole[:, ITEM]] = 1
    seen[last[:, USER], last[:, ITEM]] = 0
    task = tasks.study(Cooccurrence(), features=ITEMS).task()
    session = Session(task.data)
    total = {name: np.zeros(shape) for name, (_, shape) in task.outputs.items()}
    for history in seen:
        for name, value in session.run({"x": history[None], **task.parameters}).items():
            total[name] += value
    counts = seen.T.astype(np.float64) @ seen
    found: dict[str, Any] = {
        "bytes_up": sum(np.asarray(value).nbytes for value in total.values()),
        "popularity": hit_rate(np.tile(np.diag(counts), (USERS, 1)), seen, last),
    }
    for weights in WEIGHTS:
        kind = Cooccurrence(weights)
        model = tasks.study(kind, features=ITEMS).take(total).result()
        pooled = kind.of(counts)
        found[weights] = {
            "fleet": hit_rate(model.predict(seen), seen, last),
            "pooled": hit_rate(seen @ pooled, seen, last),
            "difference": float(np.abs(model.coef_.T - pooled).max() / np.abs(pooled).max()),
        }
    return found


def hit_rate(scores: np.ndarray, seen: np.ndarray, last: np.ndarray) -> float:
    """Return for how many users the item left out is among the ten best that they have not seen."""
    open_to = np.where(seen > 0, -np.inf, scores)
    best = np.argsort(-open_to, axis=1, kind="stable")[:, :TOP]
    return float(np.mean((best == last[:, [ITEM]]).any(axis=1)))


def table(kept: Kept) -> str:
    """Return what was measured of ratings and of items."""
    lines = ["| ratings, 80,000 to learn from, 20,000 foretold | factors | rate | rounds | RMSE | to centralized |"]
    lines += ["|---|---:|---:|---:|---:|---:|"]
    central = kept.get("ratings: centralized", {}).get("rmse")
    for part in (part for part in PARTS if part.startswith("ratings") and part in kept):
        told = kept[part]
        gap = f"{100 * (told['rmse'] / central - 1):+.1f} %" if central and "centralized" not in part else ""
        cells = [f"{told[name]:g}" if name in told else "" for name in ("factors", "rate", "rounds")]
        lines.append(f"| {part.partition(': ')[2]} | {' | '.join(cells)} | {told['rmse']:.4f} | {gap} |")
    if told := kept.get("items"):
        lines += [
            "",
            f"| items, hits among {TOP} | fleet | pooled | largest difference of weights |",
            "|---|---:|---:|---:|",
        ]
        lines += [f"| the most popular | | {told['popularity']:.4f} | |"]
        for name in WEIGHTS:
            one = told[name]
            lines.append(f"| {name} | {one['fleet']:.4f} | {one['pooled']:.4f} | {one['difference']:.1e} |")
        lines += [
            "",
            f"One round; a device sends {told['bytes_up'] / 1e6:.1f} MB, the counts of all pairs of {ITEMS:,} items.",
        ]
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "ratings: means of items and users": rating_means,
    "ratings: centralized": rating_centralized,
    "ratings: FedPer, one user a device": rating_federated,
    "items": item_weights,
}

if __name__ == "__main__":
    run_parts("federated_movielens", PARTS, table=table, about=__doc__)
