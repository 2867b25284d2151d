"""What `Session` adds to a bare `InferenceSession.run`, on a model small enough that it shows.

    python benchmarks/session_overhead.py [--rounds 400] [--calls 200]

An MLP 64-64-10, one row, one thread. Every round times all ways in a new random order, so that a
busy machine slows all of them alike; the ratios are of per-round times. Writes
results/session_overhead.json and .md next to this file.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import edgeml_runtime  # noqa: F401 first: it sets what onnxruntime reads when it is imported
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session

RESULTS = Path(__file__).parent / "results"
BARE = "InferenceSession.run"
GOAL = 1.2  # predict over bare run, at most


def an_mlp(features: int = 64, hidden: int = 64, classes: int = 10) -> bytes:
    """Return a classifier as edgeml ships it: label and probabilities for any number of rows."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (features, hidden), "b1": (hidden,), "w2": (hidden, classes), "b2": (classes,)}
    weights = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}
    nodes = [
        helper.make_node("Gemm", ["numeric", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", features])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["rows"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", classes]),
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(model.SerializeToString())


def the_ways(data: bytes) -> dict[str, Callable[[], Any]]:
    """Return the calls to compare; all answer the same row."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    bare, session = onnxruntime.InferenceSession(data, options), Session(data)
    row = np.random.default_rng(1).normal(size=(1, 64)).astype(np.float32)
    feeds = {"numeric": row}
    expected, got = bare.run(None, feeds)[1], session.predict(row)["probabilities"]
    if not np.array_equal(expected, got):
        raise SystemExit("the two ways disagree: nothing to compare")
    return {
        BARE: lambda: bare.run(None, feeds),
        "Session.predict": lambda: session.predict(row),
        "Session.run": lambda: session.run(feeds),
    }


def compare(ways: dict[str, Callable[[], Any]], *, rounds: int, calls: int) -> dict[str, list[float]]:
    """Return the microseconds per call of every way, round by round."""
    rng, names = random.Random(0), list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in rng.sample(names, len(names)):
            call = ways[name]
            start = time.perf_counter_ns()
            for _ in range(calls):
                call()
            times[name].append((time.perf_counter_ns() - start) / calls / 1e3)
    return times


def summary(times: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Return the median, the fastest round and the ratio to the bare run of every way."""
    bare = times[BARE]
    return {
        name: {
            "median_us": round(statistics.median(series), 3),
            "min_us": round(min(series), 3),
            "ratio": round(statistics.median(a / b for a, b in zip(series, bare, strict=True)), 3),
        }
        for name, series in times.items()
    }


def table(rows: dict[str, dict[str, float]]) -> str:
    """Return the summary as a Markdown table."""
    lines = ["| call, MLP 64-64-10, one row | median us | fastest us | ratio |", "|---|---:|---:|---:|"]
    lines += [f"| `{n}` | {r['median_us']:.2f} | {r['min_us']:.2f} | {r['ratio']:.2f} |" for n, r in rows.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare, print the table, write it, and fail when the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--calls", type=int, default=200)
    options = parser.parse_args()
    ways = the_ways(an_mlp())
    compare(ways, rounds=20, calls=options.calls)  # warm-up
    rows = summary(compare(ways, rounds=options.rounds, calls=options.calls))
    result = {"goal": GOAL, "ways": rows} | vars(options) | {"environment": environment()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "session_overhead.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "session_overhead.md").write_text(table(rows), encoding="utf-8")
    print(table(rows), end="")
    if rows["Session.predict"]["ratio"] > GOAL:
        raise SystemExit(f"predict takes {rows['Session.predict']['ratio']} of a bare run, the goal is {GOAL}")


if __name__ == "__main__":
    main()
