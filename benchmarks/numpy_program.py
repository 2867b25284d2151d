"""Numpy programs beside the graphs they were made from: one row and 256, on this machine, in turns.

    python benchmarks/numpy_program.py

Writes results/numpy_program.json and .md.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier

from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.convert.sklearn import convert
from edgeml.quantize import quantize
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import NUMERIC, PLAIN

RESULTS = Path(__file__).parent / "results"
TURNS, SECONDS = 7, 0.15
MODELS = {
    "logistic regression": LogisticRegression(max_iter=300),
    "MLP 64-64-10": MLPClassifier((64,), max_iter=60, random_state=0),
    "forest of 50 trees": RandomForestClassifier(50, random_state=0),
}

HEAD = """Digits, one thread; medians of interleaved turns, of one call. Ratio: numpy program over onnxruntime.

| model | rows a call | onnxruntime us | numpy program us | ratio | bytes: graph, program |
|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Row:
    """One model at one number of rows: microseconds a call, bytes."""

    model: str
    rows: int
    graph_us: float
    program_us: float
    graph_bytes: int
    program_bytes: int

    def line(self) -> str:
        sizes = f"{self.graph_bytes:,}, {self.program_bytes:,}"
        ratio = self.program_us / self.graph_us
        return f"| {self.model} | {self.rows} | {self.graph_us:.1f} | {self.program_us:.1f} | {ratio:.2f} | {sizes} |"


def main() -> None:
    rows, target = load_digits(return_X_y=True)
    found = []
    for name, estimator in MODELS.items():
        model = convert(estimator.fit(rows, target), {NUMERIC: rows.shape[1]}, source=name)
        program = _program(model)
        graph, plain = Session(model.data), Session(program)
        for count in (1, 256):
            feeds = {NUMERIC: np.resize(rows, (count, rows.shape[1])).astype(np.float32)}
            one, other = _in_turns(functools.partial(graph.run, feeds), functools.partial(plain.run, feeds))
            found.append(Row(name, count, one, other, len(model.data), len(program)))
    lines = [HEAD, *(row.line() for row in found)]
    print("\n".join(lines))
    document = {"environment": environment(), "results": [asdict(row) for row in found]}
    (RESULTS / "numpy_program.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "numpy_program.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _program(model: OnnxModel) -> bytes:
    made = next(one for one in quantize(model, Rows({}), [PLAIN]) if one.recipe == PLAIN)
    if not isinstance(made, Variant):
        raise SystemExit(made.reason)
    return made.model.data


def _in_turns(one: Callable[[], object], other: Callable[[], object]) -> tuple[float, float]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(TURNS):
        for found, call in zip(times, (one, other), strict=True):
            found.append(_microseconds(call))
    return statistics.median(times[0]), statistics.median(times[1])


def _microseconds(call: Callable[[], object]) -> float:
    call()
    samples, until = [], time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        call()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples) * 1e6


if __name__ == "__main__":
    main()
