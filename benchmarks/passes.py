"""What each graph pass gains on the models it is for: operators, bytes and time before and after.

    PYTHONPATH=. python benchmarks/passes.py [--rounds 20]

onnxruntime's own optimizations are on in both, so a pass that it does anyway shows no gain in time. One thread, rounds
in random order, medians. Writes results/passes.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
from sklearn import ensemble, linear_model
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgeml import convert, graph
from edgeml.convert.sklearn import convert as from_sklearn
from edgeml.graph import passes
from edgeml.graph.proto import walk
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session

RESULTS = Path(__file__).parent / "results"
BATCHES = (1, 1000)
TURN_S = {1: 0.01, 1000: 0.05}
X, Y = load_digits(return_X_y=True)
X = X.astype(np.float32)


def of_sklearn(estimator: Any) -> Callable[[], bytes]:
    """Return what converts the estimator, fitted on the digits."""
    return lambda: from_sklearn(estimator.fit(X, Y), {"numeric": 64}, source="digits").data


def of_keras(*layers: Callable[[], Any], shape: tuple[int, ...]) -> Callable[[], bytes]:
    """Return what converts a Sequential model of the layers."""
    return lambda: convert.from_keras(keras.Sequential([keras.Input(shape), *(make() for make in layers)])).data


def normalization() -> Any:
    """Return a layer adapted to the digits."""
    layer = keras.layers.Normalization()
    layer.adapt(X)
    return layer


MODELS: dict[str, Callable[[], bytes]] = {
    "scaler, logistic regression": of_sklearn(
        make_pipeline(StandardScaler(), linear_model.LogisticRegression(max_iter=300))
    ),
    "scaler, ridge": of_sklearn(make_pipeline(StandardScaler(), linear_model.Ridge())),
    "random forest, 100": of_sklearn(ensemble.RandomForestClassifier(100, random_state=0)),
    "extra trees, 100": of_sklearn(ensemble.ExtraTreesClassifier(100, random_state=0)),
    "gradient boosting, 50": of_sklearn(ensemble.GradientBoostingClassifier(n_estimators=50, random_state=0)),
    "isolation forest, 100": of_sklearn(ensemble.IsolationForest(n_estimators=100, random_state=0)),
    "Normalization, dense": of_keras(
        normalization, lambda: keras.layers.Dense(16, "relu"), lambda: keras.layers.Dense(10), shape=(64,)
    ),
    "dense, dropout": of_keras(
        lambda: keras.layers.Dense(16), lambda: keras.layers.Dropout(0.5), lambda: keras.layers.Dense(10), shape=(64,)
    ),
    "GRU": of_keras(lambda: keras.layers.GRU(32), lambda: keras.layers.Dense(10), shape=(8, 8)),
    "SimpleRNN": of_keras(lambda: keras.layers.SimpleRNN(32), lambda: keras.layers.Dense(10), shape=(8, 8)),
}


def before_and_after(make: Callable[[], bytes]) -> tuple[bytes, dict[str, bytes]]:
    """Return the graph without passes, and as each pass that has something to do, and all of them, leave it."""
    table = dict(passes.PASSES)
    passes.PASSES.clear()
    try:
        plain = make()
    finally:
        passes.PASSES.update(table)
    found = {}
    for name in (*passes.PASSES, "all"):
        proto = graph.load(plain)
        if passes.optimize(proto, None if name == "all" else [name]):
            found[name] = proto.SerializeToString()
    return plain, found


def timed(graphs: dict[str, bytes], rounds: int) -> dict[str, dict[int, float]]:
    """Return the median microseconds by graph and batch."""
    sessions = {name: Session(data) for name, data in graphs.items()}
    taken: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in BATCHES} for name in graphs}
    for _ in range(rounds):
        for name in random.sample(list(graphs), len(graphs)):
            session = sessions[name]
            spec = session.inputs[0]
            for batch in BATCHES:
                feeds = {spec.name: np.resize(X, (batch, *(size for size in spec.shape[1:])))}
                session.run(feeds)
                start, calls = time.perf_counter(), 0
                while time.perf_counter() - start < TURN_S[batch]:
                    session.run(feeds)
                    calls += 1
                taken[name][batch].append((time.perf_counter() - start) / calls * 1e6)
    return {name: {batch: statistics.median(values) for batch, values in by.items()} for name, by in taken.items()}


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    rounds = parser.parse_args().rounds
    lines = ["| model | pass | operators | bytes | us, 1 row | us, 1000 rows |", "|---|---|---:|---:|---:|---:|"]
    results = []
    for name, make in MODELS.items():
        plain, found = before_and_after(make)
        graphs = {"none": plain, **found}
        us = timed(graphs, rounds)
        for done, data in graphs.items():
            operators = len(walk(onnx.load_from_string(data).graph))
            results.append({"model": name, "pass": done, "operators": operators, "bytes": len(data), "us": us[done]})
            shares = [f"{us[done][b]:.1f} ({us[done][b] / us['none'][b]:.2f})" for b in BATCHES]
            lines.append(f"| {name} | {done} | {operators} | {len(data):,} | {' | '.join(shares)} |")
            print(lines[-1], flush=True)
    head = f"In brackets: of the time without passes. One thread, {rounds} interleaved rounds."
    (RESULTS / "passes.md").write_text("\n".join([head, "", *lines, ""]), encoding="utf-8")
    (RESULTS / "passes.json").write_text(json.dumps({"environment": environment(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
