"""Variants with fewer parts: pruned forests and vocabularies, narrower and distilled networks, beside the whole model.

    PYTHONPATH=. python benchmarks/smaller.py [--rounds 15]

Digits: 1,257 rows to train and calibrate, 540 held out; product reviews of EDGEML_DATA: 700 and 300. One thread, one
row, rounds in random order, medians. Writes results/smaller.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import ensemble
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline

from edgeml.artifacts import Rows, Variant
from edgeml.convert.sklearn import convert
from edgeml.quantize import Options, quantize
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
PATTERN = "[a-zA-Z0-9_]{2,}"
RECIPES = ["forest-pruned", "vocabulary-pruned", "pruned", "distilled"]
TURN_S = 0.02


@dataclass(frozen=True)
class Task:
    """Rows to learn from and rows held out, by the name of the input that takes them."""

    feed: str
    rows: np.ndarray
    target: np.ndarray
    held: np.ndarray
    truth: np.ndarray


def digits() -> Task:
    """Return scikit-learn's digits in 0..1."""
    rows, target = load_digits(return_X_y=True)
    train, held, y, truth = train_test_split(rows / 16, target, test_size=0.3, random_state=0, stratify=target)
    return Task("numeric", train.astype(np.float32), y, held.astype(np.float32), truth)


def reviews() -> Task:
    """Return sentences about products and whether they are good."""
    lines = next(iter(sorted((DATA / "sentences_amazon").glob("*.txt")))).read_text(encoding="utf-8").splitlines()
    pairs = [line.rsplit("\t", 1) for line in lines if "\t" in line]
    order = np.random.default_rng(0).permutation(len(pairs))
    texts = np.array([pairs[i][0] for i in order], dtype=object)
    good = np.array([int(pairs[i][1]) for i in order])
    return Task("categorical", texts[:700], good[:700], texts[700:], good[700:])


def models() -> dict[str, tuple[Any, Task]]:
    """Return the estimators by name, each with its task."""
    of_digits, of_reviews, seed = digits(), reviews(), {"random_state": 0}
    found: dict[str, tuple[Any, Task]] = {
        "random forest, 100": (ensemble.RandomForestClassifier(100, random_state=0), of_digits),
        "extra trees, 100": (ensemble.ExtraTreesClassifier(100, random_state=0), of_digits),
        "gradient boosting, 50": (ensemble.GradientBoostingClassifier(n_estimators=50, random_state=0), of_digits),
        "histogram boosting, 50": (ensemble.HistGradientBoostingClassifier(max_iter=50, **seed), of_digits),
        "network 64-128-64-10": (MLPClassifier((128, 64), max_iter=200, random_state=0), of_digits),
        "network 64-512-512-10": (MLPClassifier((512, 512), max_iter=60, random_state=0), of_digits),
    }
    for vectorizer in (TfidfVectorizer, CountVectorizer):
        pipeline = make_pipeline(vectorizer(token_pattern=PATTERN), LogisticRegression())
        found[f"{vectorizer.__name__}, logistic"] = (pipeline, of_reviews)
    return found


def timed(graphs: dict[str, bytes], feeds: dict[str, np.ndarray], rounds: int) -> dict[str, float]:
    """Return the median microseconds of a call by graph."""
    sessions = {name: Session(data) for name, data in graphs.items()}
    taken: dict[str, list[float]] = {name: [] for name in graphs}
    for _ in range(rounds):
        for name in random.sample(list(graphs), len(graphs)):
            start, calls = time.perf_counter(), 0
            while time.perf_counter() - start < TURN_S:
                sessions[name].run(feeds)
                calls += 1
            taken[name].append((time.perf_counter() - start) / calls * 1e6)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    lines = ["| model | variant | bytes | accuracy held out | us, one row |", "|---|---|---:|---:|---:|"]
    results = []
    for name, (estimator, task) in models().items():
        given = task.rows if task.feed == "numeric" else task.rows.reshape(-1, 1)
        held = task.held if task.feed == "numeric" else task.held.reshape(-1, 1)
        model = convert(estimator.fit(task.rows, task.target), {task.feed: given.shape[1]}, source=name)
        options = Options(metric="accuracy", task="classification", max_drop=0.01)
        made = quantize(model, Rows({task.feed: given}, task.target), RECIPES, options=options)
        graphs = {item.recipe: item.model.data for item in made if isinstance(item, Variant)}
        us = timed(graphs, {task.feed: held[:1]}, rounds)
        for recipe, data in graphs.items():
            accuracy = float((Session(data).run({task.feed: held})["label"] == task.truth).mean())
            row = {"model": name, "variant": recipe, "bytes": len(data), "accuracy": accuracy, "us": us[recipe]}
            results.append(row)
            share = us[recipe] / us["fp32"]
            lines.append(f"| {name} | {recipe} | {len(data):,} | {accuracy:.4f} | {us[recipe]:.1f} ({share:.2f}) |")
            print(lines[-1], flush=True)
    head = f"The bound is 0.01 of accuracy, asked of the calibration rows. In brackets: of fp32. {rounds} rounds."
    (RESULTS / "smaller.md").write_text("\n".join([head, "", *lines, ""]), encoding="utf-8")
    (RESULTS / "smaller.json").write_text(json.dumps({"environment": environment(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
