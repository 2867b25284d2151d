"""Training: our compiled graphs beside numpy, scikit-learn, torch and Keras, in one run.

    PYTHONPATH=.:runtime python benchmarks/training_step.py [--turns 60] [--seconds 8] [--part all|digits|nets|table]
    PYTHONPATH=.:runtime python benchmarks/training_step.py --part nets --only lstm    # the other rows stay

The digits MLP 64-64-10 beside numpy and scikit-learn, step by step and whole epochs; then one step of five networks
(benchmarks/training_nets.py) beside torch and Keras. Every turn times each contender once, in changing order, in one
process and one thread, so that whatever else the machine does hits all alike; the tables show medians, of processor
time for the networks. torch lives in
an environment of its own, and is listed as not measured where there is none:

    TORCH/bin/pip install torch==2.13.0 onnxruntime==1.32.0 numpy safetensors     EDGEML_TORCH_PYTHON=TORCH/bin/python

Writes benchmarks/results/training_step.{json,md}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeml_runtime.session import VERSION, Session  # first: it sets what onnxruntime and numpy read once

import numpy as np  # isort: skip
import sklearn
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from benchmarks.training_nets import NETS, build
from edgeml.autodiff import SGD, training_step
from edgeml.tasks import permutation, training

HERE = Path(__file__).parent
RESULTS = HERE / "results"
EAGER = "torch eager"
BATCH, LR, MOMENTUM, EPOCHS = 32, 0.05, 0.9, 5
Weights = dict[str, np.ndarray]


def a_network(weights: Weights) -> bytes:
    """Return the MLP as it is deployed: Gemm, Relu, Gemm, Softmax."""
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["a"]),
        helper.make_node("Gemm", ["a", "w2", "b2"], ["z"]),
        helper.make_node("Softmax", ["z"], ["probabilities"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 64])
    y = helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["rows", 10])
    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "mlp", [x], [y], constants)
    opsets = [helper.make_opsetid("", 21)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())


def numpy_step(x: np.ndarray, y: np.ndarray, w: Weights, v: Weights) -> None:
    """Change `w` and `v` by one step of SGD with momentum, float32, written for speed."""
    h = x @ w["w1"] + w["b1"]
    a = np.maximum(h, 0)
    z = a @ w["w2"] + w["b2"]
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    p[np.arange(len(y)), y] -= 1
    p /= np.float32(len(y))
    dh = (p @ w["w2"].T) * (h > 0)
    slopes = {"w1": x.T @ dh, "b1": dh.sum(axis=0), "w2": a.T @ p, "b2": p.sum(axis=0)}
    for name, slope in slopes.items():
        v[name] *= np.float32(MOMENTUM)
        v[name] += slope
        w[name] -= np.float32(LR) * v[name]


def numpy_epochs(x: np.ndarray, y: np.ndarray, weights: Weights, *, epochs: int) -> Weights:
    w = {name: value.copy() for name, value in weights.items()}
    v = {name: np.zeros_like(value) for name, value in weights.items()}
    for epoch in range(epochs):
        order = permutation(len(x), 0, epoch)
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            numpy_step(x[rows], y[rows], w, v)
    return w


def a_peer(x: np.ndarray, y: np.ndarray) -> MLPClassifier:
    same = {"solver": "sgd", "alpha": 0.0, "momentum": MOMENTUM, "nesterovs_momentum": False}
    peer = MLPClassifier((64,), batch_size=BATCH, learning_rate_init=LR, **same)
    return peer.partial_fit(x, y, classes=np.arange(10))


def medians(contenders: Mapping[str, Callable[[], Any]], *, turns: int) -> dict[str, float]:
    """Return the median microseconds of each contender, timed in turns."""
    names = list(contenders)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns + 3):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.perf_counter()
            contenders[name]()
            if turn >= 3:  # the first turns warm up
                taken[name].append((time.perf_counter() - start) * 1e6)
    return {name: float(np.median(times)) for name, times in taken.items()}


def measure(turns: int) -> dict[str, Any]:
    """Return every figure of the table, and that all of them compute the same thing."""
    x, y = load_digits(return_X_y=True)
    x, y = (x[:1347] / 16).astype(np.float32), y[:1347].astype(np.int64)
    rng = np.random.default_rng(0)
    shapes = {"w1": (64, 64), "b1": (64,), "w2": (64, 10), "b2": (10,)}
    weights = {name: (0.1 * rng.normal(size=shape)).astype(np.float32) for name, shape in shapes.items()}
    started = time.perf_counter()
    graph = training_step(a_network(weights), optimizer=SGD(momentum=MOMENTUM))
    task = training(graph, epochs=EPOCHS, batch_size=BATCH)
    compiled = time.perf_counter()
    step, local = Session(graph.data), Session(task.data)
    loaded = time.perf_counter()
    lr, xb, yb = np.array(LR, np.float32), x[:BATCH], y[:BATCH]
    one = {**graph.parameters, **graph.state, "x": xb, "target": yb, "lr": lr}
    whole = {**task.parameters, "x": x, "target": y, "lr": lr, "seed": np.array(0, np.int64)}
    w, v = {n: value.copy() for n, value in weights.items()}, {n: np.zeros_like(value) for n, value in weights.items()}
    peer = a_peer(x, y)
    steps = medians(
        {
            "edgeml": lambda: step.run(one),
            "numpy": lambda: numpy_step(xb, yb, w, v),
            "scikit-learn": lambda: peer.partial_fit(xb, yb),
        },
        turns=20 * turns,
    )
    epochs = medians(
        {
            "edgeml": lambda: local.run(whole),
            "numpy": lambda: numpy_epochs(x, y, weights, epochs=EPOCHS),
            "scikit-learn": lambda: [peer.partial_fit(x, y) for _ in range(EPOCHS)],
        },
        turns=turns,
    )
    got, wanted = local.run(whole), numpy_epochs(x, y, weights, epochs=EPOCHS)
    return {
        "step_us": steps,
        "epochs_ms": {name: value / 1e3 for name, value in epochs.items()},
        "max_difference_to_numpy": max(float(abs(weights[n] + got[f"delta.{n}"] - wanted[n]).max()) for n in weights),
        "rows": len(x),
        "batch": BATCH,
        "epochs": EPOCHS,
        "compile_ms": (compiled - started) * 1e3,
        "load_ms": (loaded - compiled) * 1e3,
        "step_graph_bytes": len(graph.data),
        "task_graph_bytes": len(task.data),
        "turns": turns,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one thread",
        "versions": {"onnxruntime": VERSION, "numpy": np.__version__, "scikit-learn": sklearn.__version__},
    }


def beside_peers(seconds: float, folder: Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return what each peer's process measured, by peer and network; nothing for a peer that is not there."""
    for net in map(build, names):
        graph = training_step(net.model, optimizer=SGD(MOMENTUM), batch_statistics=net.batch_statistics)
        (folder / f"{net.name}.onnx").write_bytes(graph.data)
        given = {"in.x": net.x, "in.target": net.target}
        kept: dict[str, Any] = {**given, **graph.parameters, **graph.state}
        np.savez(folder / f"{net.name}.npz", **kept)
    pythons = {"torch": os.environ.get("EDGEML_TORCH_PYTHON"), "keras": sys.executable}
    return {peer: told([python, peer, str(seconds), *names], folder) for peer, python in pythons.items() if python}


def told(asked: Sequence[str], folder: Path) -> dict[str, Any]:
    """Return the lines of one peer's process, by network; `asked` are its Python, its name, seconds and networks."""
    python, peer, seconds, *names = asked
    command = [python, str(HERE / f"peers/{peer}_steps.py"), str(folder), seconds, *names]
    env = {**os.environ, "PYTHONPATH": str(HERE.parent / "runtime"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    if done.returncode:
        raise SystemExit(f"{peer}: {done.stderr.strip()[-600:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line.pop("net"): line for line in lines}


def in_order(lines: Mapping[str, Any]) -> dict[str, Any]:
    return {name: lines[name] for name in NETS if name in lines}


def nets_table(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the table of the five networks, ratios to the edgeml of the same process."""
    lines = ["", "## One step of five networks", ""]
    versions = {line["torch"] for line in found.get("torch", {}).values()}
    lines += [
        f"torch {', '.join(sorted(versions)) or 'not measured'}; batches of 32, SGD with momentum; processor time.",
        "",
    ]
    peers = {"torch": (EAGER, f"{EAGER}, fused optimizer", "torch.compile"), "keras": ("Keras",)}
    named = [(peer, label) for peer, labels in peers.items() for label in labels]
    lines += [f"| | edgeml, us | {' | '.join(f'{label}, us (ratio)' for _, label in named)} |"]
    lines += ["|---|---:|" + "---:|" * len(named)]
    for net in next(iter(found.values()), {}):
        first = next(found[peer][net]["us"]["edgeml"][1] for peer in found)
        cells = [_cell(found.get(peer, {}).get(net), label) for peer, label in named]
        lines.append(f"| {net} | {first:.0f} | {' | '.join(cells)} |")
    apart = [line["losses_apart"][EAGER] for line in found.get("torch", {}).values()]
    lines += [
        "",
        "Ratios above 1 are slower than edgeml in the same process. Keras is `train_on_batch`, its own overhead in it.",
    ]
    if apart:
        lines.append(
            f"The first five losses of edgeml and torch, from the same weights, are at most {max(apart):.1e} apart."
        )
    failed = {why for line in found.get("torch", {}).values() for why in line["failed"].values()}
    return [*lines, *(f"Not measured: {why}" for why in sorted(failed))]


def _cell(line: Mapping[str, Any] | None, label: str) -> str:
    if line is None or label not in line["us"]:
        return "not measured"
    return f"{line['us'][label][1]:.0f} ({line['us'][label][1] / line['us']['edgeml'][1]:.2f})"


def table(figures: Mapping[str, Any]) -> str:
    """Return the figures as a page of markdown."""
    steps, epochs = figures["step_us"], figures["epochs_ms"]
    versions = ", ".join(f"{name} {version}" for name, version in figures["versions"].items())
    lines = [
        "# Training",
        "",
        "## The digits MLP 64-64-10",
        "",
        f"Made by `python benchmarks/training_step.py`; {figures['machine']}; {versions}.",
        f"{figures['rows']} rows, batches of {figures['batch']}, SGD with momentum. Medians of interleaved turns.",
        "",
        f"| | one step, us | ratio | {figures['epochs']} epochs, ms | ratio |",
        "|---|---|---|---|---|",
    ]
    for name in steps:
        ratios = f"{steps[name] / steps['edgeml']:.2f}", f"{epochs[name] / epochs['edgeml']:.2f}"
        lines.append(f"| {name} | {steps[name]:.1f} | {ratios[0]} | {epochs[name]:.2f} | {ratios[1]} |")
    lines += [
        "",
        "A ratio above 1 is slower than edgeml. The epochs of edgeml are one `session.run`, shuffling and the loss of",
        "all rows before and after included. A step driven from Python pays for checking and handing over 11 arrays,",
        "which is why devices never train step by step; that of scikit-learn is `partial_fit` on one batch.",
        f"Largest difference to numpy after {figures['epochs']} epochs: {figures['max_difference_to_numpy']:.1e}.",
        f"Compiling took {figures['compile_ms']:.0f} ms, loading both graphs {figures['load_ms']:.0f} ms;",
        f"the step graph has {figures['step_graph_bytes']:,} bytes, the task {figures['task_graph_bytes']:,}.",
        *nets_table(figures.get("nets", {})),
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write both files, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--turns", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=8.0, help="For each network and peer.")
    parser.add_argument("--part", choices=("all", "digits", "nets", "table"), default="all", help="Keep the rest.")
    parser.add_argument("--only", nargs="+", choices=list(NETS), default=list(NETS), help="Keep the other networks.")
    options = parser.parse_args()
    path = RESULTS / "training_step.json"
    figures = json.loads(path.read_text(encoding="utf-8")) if options.part != "all" else {}
    if options.part in ("all", "digits"):
        figures |= measure(options.turns)
    if options.part in ("all", "nets"):
        with tempfile.TemporaryDirectory() as folder:
            found = beside_peers(options.seconds, Path(folder), options.only)
        kept = figures.get("nets", {})
        figures["nets"] = kept | {peer: in_order(kept.get(peer, {}) | lines) for peer, lines in found.items()}
    (RESULTS / "training_step.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "training_step.md").write_text(table(figures), encoding="utf-8")
    print(table(figures))


if __name__ == "__main__":
    main()
