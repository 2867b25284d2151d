"""Ensembles, neighbours and linear models beside every way to run them: one row and a thousand, one thread, one run.

    export EDGEML_PEERS_PYTHON=...    # an environment with treelite tl2cgen scikit-learn numpy; absent: without them
    PYTHONPATH=. python benchmarks/ensembles.py --work FOLDER [--models rf100,knn] [--rounds 20]

Peers: scikit-learn (LightGBM, XGBoost) itself, the graph as skl2onnx writes it, edgeml, treelite, C code by tl2cgen.
Compiled files stay in FOLDER. Writes results/ensembles.json and .md; a part of the models updates only theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import joblib
import lightgbm
import numpy as np
import xgboost
from sklearn import ensemble, linear_model, neighbors, svm
from sklearn.datasets import load_digits

from benchmarks.compile_peers import Worker, run
from edgeml.convert import read_model
from edgeml_runtime.measure import environment

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 1000)
SECONDS = {1: 0.02, 1000: 0.1}  # of one turn
BEST_OF_PEERS = 1.2  # what a thousand rows may take of the fastest peer's time
SEED: dict[str, Any] = {"random_state": 0}
MODELS: dict[str, Callable[[], Any]] = {
    "rf100": lambda: ensemble.RandomForestClassifier(100, **SEED),
    "et100": lambda: ensemble.ExtraTreesClassifier(100, **SEED),
    "gb50": lambda: ensemble.GradientBoostingClassifier(n_estimators=50, **SEED),
    "hgb50": lambda: ensemble.HistGradientBoostingClassifier(max_iter=50, **SEED),
    "rfr100": lambda: ensemble.RandomForestRegressor(100, **SEED),
    "gbr100": lambda: ensemble.GradientBoostingRegressor(n_estimators=100, **SEED),
    "hgbr100": lambda: ensemble.HistGradientBoostingRegressor(max_iter=100, **SEED),
    "iforest100": lambda: ensemble.IsolationForest(n_estimators=100, **SEED),
    "bagging20": lambda: ensemble.BaggingClassifier(n_estimators=20, **SEED),
    "adaboost50": lambda: ensemble.AdaBoostClassifier(n_estimators=50, **SEED),
    "voting": lambda: ensemble.VotingClassifier(
        [("rf", ensemble.RandomForestClassifier(30, **SEED)), ("et", ensemble.ExtraTreesClassifier(30, **SEED))],
        voting="soft",
        flatten_transform=False,
    ),
    "lightgbm50": lambda: lightgbm.LGBMClassifier(n_estimators=50, verbose=-1, **SEED),
    "xgboost50": lambda: xgboost.XGBClassifier(n_estimators=50, **SEED),
    "knn": lambda: neighbors.KNeighborsClassifier(),
    "knn-weighted": lambda: neighbors.KNeighborsClassifier(weights="distance"),
    "knnr": lambda: neighbors.KNeighborsRegressor(),
    "svc": lambda: svm.SVC(),
    "logreg": lambda: linear_model.LogisticRegression(max_iter=500),
}
COMPILED = {"rf100", "et100", "gb50", "hgb50", "rfr100", "gbr100", "hgbr100", "iforest100", "lightgbm50", "xgboost50"}
PEERS = ("scikit-learn", "stock graph", "edgeml", "treelite", "tl2cgen")


def prepare(name: str, folder: Path) -> None:
    """Fit the model on the digits and write it with a thousand rows to ask it about."""
    folder.mkdir(parents=True, exist_ok=True)
    rows, target = load_digits(return_X_y=True)
    rows = rows.astype(np.float32)
    model = MODELS[name]()
    regression = name.removesuffix("100").endswith("r") or name == "knnr"
    model.fit(rows[:1200], (target + rows[:, 20] / 16)[:1200] if regression else target[:1200])
    joblib.dump(model, folder / "source.joblib")
    if name.startswith("lightgbm"):
        model.booster_.save_model(folder / "source.txt")
    if name.startswith("xgboost"):
        model.get_booster().save_model(folder / "source.json")
    asked = rows[np.random.default_rng(0).integers(0, len(rows), max(BATCHES))]
    np.savez(folder / "calibration.npz", x=asked)
    (folder / "info.json").write_text(json.dumps({"kind": "sklearn", "classes": 10}), encoding="utf-8")


def compiled(name: str, folder: Path, python: str | None) -> dict[str, tuple[str, str]]:
    """Return engine and file of every peer that has one, made where it is not there yet."""
    if not (folder / "source.joblib").exists():
        prepare(name, folder)
    found = {"scikit-learn": ("scikit_learn", str(folder / "source.joblib"))}
    stock = folder / "stock.onnx"
    if not stock.exists() and name not in ("lightgbm50", "xgboost50"):
        run(sys.executable, "benchmarks.peers.stock_sklearn", str(folder))
    if stock.exists():
        found["stock graph"] = ("onnxruntime", str(stock))
    source = next(folder / f"source.{s}" for s in ("txt", "json", "joblib") if (folder / f"source.{s}").exists())
    (folder / "edgeml.onnx").write_bytes(read_model(source, trust=True).data)
    found["edgeml"] = ("edgeml", str(folder / "edgeml.onnx"))
    if python and name in COMPILED:
        cache = folder / "trees.json"
        if not cache.exists():
            cache.write_text(
                run(python, "benchmarks.peers.trees", str(folder), "treelite", "tl2cgen")[-1], encoding="utf-8"
            )
        for file in json.loads(cache.read_text(encoding="utf-8"))["files"]:
            if file["peer"] in PEERS and not file["why"]:
                found[file["peer"]] = (file["engine"], file["path"])
    return found


def timed(files: dict[str, tuple[str, str]], workers: dict[str, Worker], rounds: int) -> dict[str, dict[int, float]]:
    """Return the median microseconds of each peer by batch, all taking turns."""
    live: dict[str, Worker] = {}
    folder = Path(files["edgeml"][1]).parent
    for peer, (engine, path) in files.items():
        live[peer] = workers["peers" if peer in ("treelite", "tl2cgen") else "own"]
        for batch in BATCHES:
            rows = str(folder / "calibration.npz")
            how = "edgeml_rows" if peer == "edgeml" and batch > 1 else engine
            reply = live[peer].ask(op="load", id=f"{peer}/{batch}", engine=how, path=path, rows=rows, batch=batch)
            if "error" in reply:
                raise SystemExit(f"{peer}: {reply['error']}")
    taken: dict[str, dict[int, list[float]]] = {peer: {batch: [] for batch in BATCHES} for peer in files}
    for _ in range(rounds):
        for peer in random.sample(list(files), len(files)):
            for batch in BATCHES:
                reply = live[peer].ask(op="time", id=f"{peer}/{batch}", seconds=SECONDS[batch])
                taken[peer][batch].append(reply["p50"])
    for worker in workers.values():
        worker.ask(op="drop")
    return {peer: {batch: statistics.median(v) for batch, v in by.items()} for peer, by in taken.items()}


def verdict(found: dict[str, dict[str, float]]) -> str:
    """Return what of the goal is missed: never slower than scikit-learn or the stock graph, ahead of the compilers."""
    misses = []
    for batch in map(str, BATCHES):
        ours = found["edgeml"][batch]
        rivals = {peer: by[batch] for peer, by in found.items() if peer != "edgeml"}
        for peer, theirs in rivals.items():
            allowed = BEST_OF_PEERS if batch != "1" and peer in ("treelite", "tl2cgen") else 1.0
            if ours > allowed * theirs * 1.03:  # three hundredths are noise
                misses.append(f"{ours / theirs:.2f} of {peer} at {batch}")
    return "holds" if not misses else "misses: " + ", ".join(misses)


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Return the results in Markdown, microseconds per call."""
    lines = [
        f"Microseconds of a call with {' and with '.join(map(str, BATCHES))} rows, one thread, medians of interleaved "
        "rounds. The goal: never slower than scikit-learn or the stock graph, ahead of treelite and tl2cgen for one "
        f"row, within {BEST_OF_PEERS} times the faster of them for a thousand (3 % count as noise).",
        "",
        f"| model | {' | '.join(PEERS)} | goal |",
        f"|---|{'---:|' * len(PEERS)}---|",
    ]
    for name, found in results.items():
        cells = [" / ".join(f"{found[p][str(b)]:,.1f}" for b in BATCHES) if p in found else "-" for p in PEERS]
        lines.append(f"| {name} | {' | '.join(cells)} | {verdict(found)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compile what is not there, time all, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    python = os.environ.get("EDGEML_PEERS_PYTHON")
    path = RESULTS / "ensembles.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    workers = {"own": Worker(sys.executable)} | ({"peers": Worker(python)} if python else {})
    for name in options.models.split(","):
        folder = options.work.resolve() / name
        found = timed(compiled(name, folder, python), workers, options.rounds)
        results[name] = {peer: {str(batch): us for batch, us in by.items()} for peer, by in found.items()}
        print(table({name: results[name]}).splitlines()[-1], flush=True)
    ordered = {name: results[name] for name in MODELS if name in results}
    path.write_text(json.dumps({"environment": environment(), "results": ordered}, indent=1), encoding="utf-8")
    (RESULTS / "ensembles.md").write_text(table(ordered), encoding="utf-8")
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
