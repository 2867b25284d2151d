"""edgeml's measurements beside those of its peers: do they agree on a quiet machine, who says that a busy one is busy?

    PYTHONPATH=.:runtime python benchmarks/measure_peers.py [--rounds 3] [--repeats 20] [--seconds 1] [--work FOLDER]

Three networks with random weights: a digits MLP, a small convolutional one, MobileNetV2 at 96. Every peer runs in a
process of its own, one thread, one row a query, in turns with ours, in random order. `ours` is `Session.run`, which is
what the peers of the same runtime call; `ours, bound` is the hot path. onnxruntime_perf_test is not in the wheel: a
plain loop like it stands for it. Peers live in environments of their own; one that is not there is listed as absent:

    python -m venv PEERS && PEERS/bin/pip install numpy onnxruntime ai-edge-litert openvino     EDGEML_PEERS_PYTHON
    python -m venv OLIVE && OLIVE/bin/pip install olive-ai onnxruntime requests                  EDGEML_OLIVE_PYTHON

Then `repeats` runs of ours: how many medians lie in the first run's 95 % interval. Then the same under artificial
load, three busy processes per core, started and ended here. Writes results/measure_peers.json and .md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from edgeml import convert
from edgeml_runtime.measure import Plan, environment, measure
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import Settings

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NETS = ("digits-mlp", "small-cnn", "mobilenetv2-96")
SAME_RUNTIME = ("plain loop", "Olive evaluator")
ALL = ("ours", "ours, bound", *SAME_RUNTIME, "OpenVINO benchmark_app", "LiteRT loop")
PEER_S = 180


@dataclass(frozen=True)
class Net:
    name: str
    onnx: Path
    tflite: Path
    input: str
    shape: tuple[int, ...]

    def feeds(self) -> dict[str, np.ndarray]:
        return {self.input: np.random.default_rng(0).random(self.shape, np.float32)}


def make(name: str, work: Path) -> Net:
    """Return the network `name`, built by Keras and converted once into `work`."""
    onnx, tflite = work / f"{name}.onnx", work / f"{name}.tflite"
    if not (onnx.exists() and tflite.exists()):
        import keras
        import tensorflow

        layers, shape = keras.layers, {"digits-mlp": (64,), "small-cnn": (28, 28, 1)}.get(name, (96, 96, 3))
        if name == "digits-mlp":
            parts = [layers.Dense(256, "relu"), layers.Dense(128, "relu"), layers.Dense(10, "softmax")]
            net = keras.Sequential([keras.Input(shape), *parts])
        elif name == "small-cnn":
            parts = [layers.Conv2D(n, 3, 2, "same", activation="relu") for n in (16, 32, 64)]
            net = keras.Sequential([keras.Input(shape), *parts, layers.Flatten(), layers.Dense(10, "softmax")])
        else:
            net = keras.applications.MobileNetV2((*shape[:2], 3), weights=None, classes=10)
        net.save(work / f"{name}.keras")
        onnx.write_bytes(convert.read_model(work / f"{name}.keras").data)
        tflite.write_bytes(tensorflow.lite.TFLiteConverter.from_keras_model(net).convert())
    (spec,) = Session(onnx).inputs
    return Net(name, onnx, tflite, spec.name, (1, *spec.shape[1:]))


def ours(net: Net, seconds: float, *, bound: bool = False) -> dict[str, Any]:
    """Return our measurement, through the hot path or through plain runs as the peers do."""
    session = Session(net.onnx, Settings(io_binding=bound))
    timing = measure(session if bound else _Plain(net.onnx), net.feeds(), Plan(min_s=seconds, max_s=10 * seconds))
    kept = ("p50_ms", "p90_ms", "ci95_ms", "n", "valid", "why")
    return {name: getattr(timing, name) for name in kept}


class _Plain(Session):
    """`predict` as a plain `run`."""

    def predict(self, row: np.ndarray) -> dict[str, np.ndarray]:
        return self.run({self.inputs[0].name: row})


def peer(name: str, net: Net, seconds: float) -> dict[str, Any] | None:
    """Return what a peer measured, None where it is not installed."""
    peers, olive = (os.environ.get(f"EDGEML_{place}_PYTHON") for place in ("PEERS", "OLIVE"))
    python = {"plain loop": sys.executable, "Olive evaluator": olive}.get(name, peers)
    if not python:
        return None
    runs = str(max(50, min(2000, int(seconds * 1e3 / 0.5))))
    shape = ",".join(map(str, net.shape))
    words = {
        "plain loop": [HERE / "peers/ort_loop.py", net.onnx, seconds],
        "Olive evaluator": [HERE / "peers/olive_evaluate.py", net.onnx, net.input, json.dumps(net.shape), runs],
        "LiteRT loop": [HERE / "peers/litert_loop.py", net.tflite, seconds],
        "OpenVINO benchmark_app": [
            *(Path(python).with_name("benchmark_app"), "-m", net.onnx, "-hint", "none", "-nthreads", 1, "-api", "sync"),
            *("-nireq", 1, "-t", max(1, round(seconds)), "-shape", f"[{shape}]", "-infer_precision", "f32"),
        ],
    }[name]
    command = [python, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PEER_S, check=False)
    if name == "OpenVINO benchmark_app" and (found := re.search(r"Median:\s+([\d.]+) (us|ms)", done.stdout)):
        return {"p50_ms": float(found[1]) / (1e3 if found[2] == "us" else 1.0)}
    if done.returncode:
        raise SystemExit(f"{name}: {(done.stderr or done.stdout).strip()[-400:]}")
    told: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return told


def in_turns(net: Net, *, rounds: int, seconds: float) -> dict[str, list[dict[str, Any]]]:
    """Return what every one measured, round by round, in a new random order each."""
    ways: dict[str, Callable[[], dict[str, Any] | None]] = {
        "ours": lambda: ours(net, seconds),
        "ours, bound": lambda: ours(net, seconds, bound=True),
    }
    ways |= {name: lambda name=name: peer(name, net, seconds) for name in ALL[2:]}  # type: ignore[misc]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in random.Random(number).sample(list(ways), len(ways)):
            if told := ways[name]():
                found[name].append(told)
    return found


def covered(net: Net, repeats: int, seconds: float) -> dict[str, Any]:
    """Return how many of the medians of `repeats` runs lie in the first run's interval."""
    runs = [ours(net, seconds, bound=True) for _ in range(repeats + 1)]
    (low, high), medians = runs[0]["ci95_ms"], [run["p50_ms"] for run in runs[1:]]
    inside = sum(low <= median <= high for median in medians)
    overlapping = sum(run["ci95_ms"][0] <= high and low <= run["ci95_ms"][1] for run in runs[1:])
    return {
        "ci95_ms": [low, high],
        "medians_ms": medians,
        "inside": inside,
        "overlapping": overlapping,
        "valid": sum(run["valid"] for run in runs),
        "of": repeats,
    }


@contextmanager
def load() -> Iterator[None]:
    """Keep every core busy three times over while it lasts."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def p50(runs: list[dict[str, Any]]) -> float:
    return float(statistics.median(run["p50_ms"] for run in runs))


def table(document: dict[str, Any]) -> str:
    """Return the Markdown of what was found."""
    head = [f"| | {' | '.join(document['quiet'])} |", "|---|" + "---:|" * len(document["quiet"])]
    lines = [
        "# Measurements beside those of peers",
        "",
        "Medians of rounds, ms; in brackets from least to largest.",
        "",
    ]
    lines += head
    for name in ALL:
        cells = []
        for found in document["quiet"].values():
            values = [run["p50_ms"] for run in found[name]]
            cells.append(f"{p50(found[name]):.4g} ({min(values):.4g} to {max(values):.4g})" if values else "absent")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "Against ours (`Session.run`), same runtime:", "", *head]
    for name in SAME_RUNTIME:
        ratios = [f"{p50(f[name]) / p50(f['ours']):.3f}" if f[name] else "absent" for f in document["quiet"].values()]
        lines.append(f"| {name} | {' | '.join(ratios)} |")
    lines += [
        "",
        "Repeats of ours (bound):",
        "",
        "| | first interval | medians in it | intervals that meet it | valid runs |",
    ]
    lines.append("|---|---|---:|---:|---:|")
    for name, one in document["repeats"].items():
        low, high = one["ci95_ms"]
        lines.append(
            f"| {name} | {low:.4g} to {high:.4g} ms | {one['inside']} of {one['of']} | {one['overlapping']} of "
            f"{one['of']} | {one['valid']} of {one['of'] + 1} |"
        )
    lines += [
        "",
        "Under load, three busy processes per core:",
        "",
        "| | says p50, ms | of its quiet p50 | says of it |",
    ]
    lines.append("|---|---:|---:|---|")
    name, loaded = document["loaded"]["net"], document["loaded"]["found"]
    for who, runs in loaded.items():
        if runs:
            said = (
                ("INVALID: " + runs[0]["why"] if not runs[0]["valid"] else "valid") if "valid" in runs[0] else "nothing"
            )
            ratio = p50(runs) / p50(document["quiet"][name][who])
            lines.append(f"| {who} | {p50(runs):.4g} | {ratio:.2f} | {said} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgeml-measure-peers")
    parser.add_argument("--prepare", action="store_true", help="Only make the networks.")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    nets = [make(name, options.work) for name in NETS]
    if options.prepare:
        return
    document: dict[str, Any] = {"environment": environment(), "seconds": options.seconds}
    document["quiet"] = {n.name: in_turns(n, rounds=options.rounds, seconds=options.seconds) for n in nets}
    document["repeats"] = {net.name: covered(net, options.repeats, options.seconds) for net in nets}
    with load():
        document["loaded"] = {"net": nets[1].name, "found": in_turns(nets[1], rounds=1, seconds=options.seconds)}
    document["environment_after"] = environment()
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "measure_peers.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "measure_peers.md").write_text(table(document), encoding="utf-8")
    print(table(document))


if __name__ == "__main__":
    main()
