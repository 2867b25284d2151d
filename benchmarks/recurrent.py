"""Recurrent layers: Keras, the graph that tf2onnx writes, and edgeml's, in one run.

    PYTHONPATH=. python benchmarks/recurrent.py [--rounds 30]

One thread, 40 steps of 8 numbers, 32 units, rounds in random order, medians. Writes results/recurrent.json and .md.
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

os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from edgeml import convert
from edgeml.graph.proto import walk
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session

RESULTS = Path(__file__).parent / "results"
STEPS, WIDTH, UNITS = 40, 8, 32
BATCHES = (1, 32)
INNER = 20  # calls per round
LAYERS: dict[str, Callable[[], Any]] = {
    "GRU": lambda: keras.layers.GRU(UNITS),
    "GRU, reset before": lambda: keras.layers.GRU(UNITS, reset_after=False),
    "bidirectional GRU": lambda: keras.layers.Bidirectional(keras.layers.GRU(UNITS)),
    "SimpleRNN": lambda: keras.layers.SimpleRNN(UNITS),
    "LSTM": lambda: keras.layers.LSTM(UNITS),
    "LSTM, recurrent dropout": lambda: keras.layers.LSTM(UNITS, recurrent_dropout=0.2),
    "LSTM, hard sigmoid": lambda: keras.layers.LSTM(UNITS, recurrent_activation="hard_sigmoid"),
}


def stock(model: Any) -> bytes:
    """Return what tf2onnx writes."""
    spec = [tf.TensorSpec([None, STEPS, WIDTH], tf.float32, name="x")]
    function = tf.function(lambda x: model(x, training=False), input_signature=spec)
    proto, _ = tf2onnx.convert.from_function(function, input_signature=spec, opset=18)
    return bytes(proto.SerializeToString())


def ways(model: Any, rows: np.ndarray) -> tuple[dict[str, Callable[[], Any]], dict[str, str]]:
    """Return how each peer is called on `rows`, and the operators of its recurrence."""
    graphs = {"tf2onnx": stock(model), "edgeml": convert.from_keras(model).data}
    called = tf.function(lambda x: model(x, training=False))
    tensor = tf.constant(rows)
    calls: dict[str, Callable[[], Any]] = {"Keras": lambda: called(tensor).numpy()}
    for name, data in graphs.items():
        session = Session(data)
        feeds = {session.inputs[0].name: rows}
        calls[name] = lambda session=session, feeds=feeds: session.run(feeds)  # type: ignore[misc]
    kinds = ("Loop", "GRU", "RNN", "LSTM")
    operators = {
        name: " + ".join(n.op_type for n in walk(onnx.load_from_string(data).graph) if n.op_type in kinds)
        for name, data in graphs.items()
    }
    return calls, operators


def timed(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return the median milliseconds of a call, rounds interleaved in random order."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name in random.sample(list(calls), len(calls)):
            start = time.perf_counter()
            for _ in range(INNER):
                calls[name]()
            taken[name].append((time.perf_counter() - start) / INNER * 1e3)
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    """Print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    lines = [
        "| layer | rows | Keras ms | tf2onnx ms | edgeml ms | of tf2onnx | operators |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    results = []
    for name, make in LAYERS.items():
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((STEPS, WIDTH)), make(), keras.layers.Dense(4)])
        for batch in BATCHES:
            rows = np.random.default_rng(0).normal(size=(batch, STEPS, WIDTH)).astype(np.float32)
            calls, operators = ways(model, rows)
            far = float(np.abs(calls["Keras"]() - next(iter(calls["edgeml"]().values()))).max())
            found = timed(calls, rounds)
            share = found["edgeml"] / found["tf2onnx"]
            results.append(
                {"layer": name, "rows": batch, "ms": found, "operators": operators, "largest_difference": far}
            )
            cells = " | ".join(f"{found[peer]:.4f}" for peer in ("Keras", "tf2onnx", "edgeml"))
            lines.append(
                f"| {name} | {batch} | {cells} | {share:.2f} | {operators['tf2onnx']} -> {operators['edgeml']} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join([f"{STEPS} steps of {WIDTH} numbers, {UNITS} units, one thread, {rounds} rounds.", "", *lines, ""])
    (RESULTS / "recurrent.md").write_text(text)
    (RESULTS / "recurrent.json").write_text(json.dumps({"environment": environment(), "results": results}, indent=1))


if __name__ == "__main__":
    main()
