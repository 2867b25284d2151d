"""edgeml's measurements beside those of its peers: do they agree on a quiet machine, who says that a busy one is busy?

    PYTHONPATH=.:runtime python benchmarks/measure_peers.py [--rounds 3] [--repeats 20] [--seconds 1] [--work FOLDER]

Three networks with random weights: a digits MLP, a small convolutional one, MobileNetV2 at 96. Every peer runs in a
process of its own, one thread, one row a query, in turns with ours, in random order. Ours is told three ways: the bare
call (onnxruntime's own `run`, which is what the peers of the same runtime time), `Session.run` with its checks, and the
bound hot path. onnxruntime_perf_test is not in the wheel: a plain loop like it stands for it. Peers live in
environments of their own; one that is not there is listed as absent:

    python -m venv PEERS && PEERS/bin/pip install numpy onnxruntime ai-edge-litert openvino     EDGEML_PEERS_PYTHON
    python -m venv OLIVE && OLIVE/bin/pip install olive-ai onnxruntime requests                  EDGEML_OLIVE_PYTHON

Then `repeats` runs of ours: how many medians lie in the first run's 95 % interval. Then the same under artificial
load, three busy processes per core, started and ended here. Writes results/measure_peers.json and .md.
"""

from __future__ import annotations

import argparse
import functools
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
os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before onnxruntime is imported

import numpy as np
import onnxruntime

from edgeml import convert
from edgeml_runtime.measure import Plan, environment, measure
from edgeml_runtime.session import Session

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NETS = ("digits-mlp", "small-cnn", "mobilenetv2-96")
SAME_RUNTIME = ("plain loop", "Olive evaluator")
OURS = ("ours, bare call", "ours, Session.run", "ours, bound")
ALL = (*OURS, *SAME_RUNTIME, "OpenVINO benchmark_app", "LiteRT loop")
PEER_S = 180
PARTS = ("all", "quiet", "repeats", "loaded", "table")


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


def ours(net: Net, seconds: float, way: str) -> dict[str, Any]:
    """Return our measurement, by one of OURS."""
    kind = {"ours, bare call": _Bare, "ours, Session.run": _Checked, "ours, bound": Session}[way]
    timing = measure(functools.partial(kind, net.onnx), net.feeds(), Plan(min_s=seconds, max_s=10 * seconds))
    kept = ("p50_ms", "p90_ms", "ci95_ms", "n", "valid", "why")
    return {name: getattr(timing, name) for name in kept}


class _Bare(Session):
    """`predict` as the very call that the peers time: no check of ours, no buffer of ours."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        bare, name = onnxruntime.InferenceSession(str(path), options), self.inputs[0].name
        self.predict = lambda row: bare.run(None, {name: row})


class _Checked(Session):
    """`predict` as a plain `Session.run`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        run, name = self.run, self.inputs[0].name
        self.predict = lambda row: run({name: row})


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
        name: functools.partial(ours, net, seconds, name) for name in OURS
    } | {name: functools.partial(peer, name, net, seconds) for name in ALL if name not in OURS}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in random.Random(number).sample(list(ways), len(ways)):
            print(f"{net.name} round {number + 1}: {name}", file=sys.stderr, flush=True)
            if told := ways[name]():
                found[name].append(told)
    return found


def covered(net: Net, repeats: int, seconds: float) -> dict[str, Any]:
    """Return how many medians of `repeats` runs lie in the first one's interval, and in that of any other of them."""
    runs = [ours(net, seconds, "ours, bound") for _ in range(repeats + 1)]
    medians, within = [run["p50_ms"] for run in runs], [run["ci95_ms"] for run in runs]
    inside = [sum(low <= median <= high for median in medians) - 1 for low, high in within]  # its own always is
    low, high = within[0]
    return {
        "ci95_ms": within,
        "medians_ms": medians,
        "inside": inside[0],
        "inside_mean": statistics.mean(inside),
        "overlapping": sum(one[0] <= high and low <= one[1] for one in within[1:]),
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


def cell(runs: list[dict[str, Any]]) -> str:
    values = [run["p50_ms"] for run in runs]
    return f"{p50(runs):.4g} ({min(values):.4g} to {max(values):.4g})" if values else "not measured"


def table(document: dict[str, Any]) -> str:
    """Return the Markdown of what was found, and of what was not measured."""
    quiet = document["quiet"]
    head = [f"| | {' | '.join(quiet)} |", "|---|" + "---:|" * len(quiet)]
    lines = ["# Measurements beside peers", "", "Medians of rounds, ms; in brackets from least to largest.", "", *head]
    lines += [f"| {name} | {' | '.join(cell(found.get(name, [])) for found in quiet.values())} |" for name in ALL]
    lines += ["", "Peers of the same runtime, their median over ours:", "", *head]
    for name in SAME_RUNTIME:
        for way in OURS[:2]:
            pairs = [(found.get(name), found.get(way)) for found in quiet.values()]
            ratios = [f"{p50(one) / p50(other):.3f}" if one and other else "not measured" for one, other in pairs]
            lines.append(f"| {name} / {way} | {' | '.join(ratios)} |")
    return "\n".join([*lines, *_repeats(document), *_loaded(document), *document.get("notes", ())]) + "\n"


def _repeats(document: dict[str, Any]) -> list[str]:
    if "repeats" not in document:
        return ["", "Repeats of one measurement: not measured."]
    lines = ["", "Repeats of ours (bound):", ""]
    head = ("", "first interval", "medians in it", "in that of any run, mean", "intervals that meet it", "valid runs")
    lines += [f"| {' | '.join(head)} |", "|---|---|" + "---:|" * 4]
    for name, one in document["repeats"].items():
        (low, high), of = one["ci95_ms"][0], one["of"]
        counts = f"{one['inside']} of {of} | {one['inside_mean']:.1f} of {of} | {one['overlapping']} of {of}"
        counts += f" | {one['valid']} of {of + 1}"
        lines.append(f"| {name} | {low:.4g} to {high:.4g} ms | {counts} |")
    return lines


def _loaded(document: dict[str, Any]) -> list[str]:
    if "loaded" not in document:
        return ["", "Under load: not measured."]
    name, loaded = document["loaded"]["net"], document["loaded"]["found"]
    lines = ["", f"{name} under load, three busy processes per core:", ""]
    lines += ["| | says p50, ms | of its quiet p50 | says of it |", "|---|---:|---:|---|"]
    for who, runs in loaded.items():
        before = document["quiet"][name].get(who)
        ratio = f"{p50(runs) / p50(before):.2f}" if runs and before else "not measured"
        said = (
            {True: "valid", False: f"INVALID: {runs[0].get('why')}"}.get(runs[0].get("valid"), "nothing")
            if runs
            else ""
        )
        lines.append(f"| {who} | {f'{p50(runs):.4g}' if runs else 'not measured'} | {ratio} | {said} |")
    return [*lines, ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgeml-measure-peers")
    parser.add_argument("--part", choices=PARTS, default="all", help="Measure this, keep the rest.")
    parser.add_argument("--prepare", action="store_true", help="Only make the networks.")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    nets = [make(name, options.work) for name in NETS] if options.part != "table" else []
    if options.prepare:
        return
    path = RESULTS / "measure_peers.json"
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() and options.part != "all" else {}
    document: dict[str, Any] = dict(stored)
    if options.part != "table":  # which only writes the table anew
        document |= {"environment": environment(), "seconds": options.seconds}
    if options.part in ("all", "quiet"):
        document["quiet"] = {n.name: in_turns(n, rounds=options.rounds, seconds=options.seconds) for n in nets}
    if options.part in ("all", "repeats"):
        document["repeats"] = {net.name: covered(net, options.repeats, options.seconds) for net in nets}
    if options.part in ("all", "loaded"):
        with load():
            document["loaded"] = {"net": nets[1].name, "found": in_turns(nets[1], rounds=1, seconds=options.seconds)}
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if "quiet" in document:
        path.with_suffix(".md").write_text(table(document), encoding="utf-8")
        print(table(document))


if __name__ == "__main__":
    main()
