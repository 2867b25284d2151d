"""edgeml beside every other way to the same model: size, accuracy, latency and the time to compile, in one run.

    PYTHONPATH=. python benchmarks/compile_peers.py [--work FOLDER] [--models a,b] [--peers ORT,LiteRT] [--rounds 40]

Each model is trained once (benchmarks/models.py) and compiled by each peer in a process of its own; the files stay in
`--work`, so a second run only measures (`--again edgeml` compiles that peer afresh). All are timed on one core with
one thread, batch 1, on the same rows, by workers in two environments that take turns: every round calls each peer for
some milliseconds in a new random order. p50 and p90 are medians over the rounds, ratios of the rounds' own medians.
Peers live in environments of their own, named by option or variable; one that is not there is listed as absent:

    python -m venv PEERS && PEERS/bin/pip install numpy scikit-learn onnx onnxruntime ai-edge-litert openvino \\
        treelite tl2cgen m2cgen                                                         EDGEML_PEERS_PYTHON
    python -m venv NNCF && NNCF/bin/pip install nncf openvino onnx onnxruntime          EDGEML_NNCF_PYTHON
    python -m venv OLIVE && OLIVE/bin/pip install olive-ai onnxruntime requests         EDGEML_OLIVE_PYTHON

Writes results/compile_peers.json and .md next to this file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.verdict import ORT_BASED, judge, tables
from edgeml_runtime.measure import environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
VARIABLES = {"peers": "EDGEML_PEERS_PYTHON", "nncf": "EDGEML_NNCF_PYTHON", "olive": "EDGEML_OLIVE_PYTHON"}
NETS = ["digits-mlp", "digits-mlp-1m", "digits-cnn", "digits-dscnn", "lstm", "gru", "resnet8"]
NETS += ["mobilenetv1-96", "mobilenetv2-96", "mobilenetv2-224"]
TREES = ["rf100", "gb50", "hgb50", "iforest100", "mixed"]
COMPILE_S = 1200  # that one compiler may take
PEERS_ENGINES = {"litert", "openvino", "treelite", "tl2cgen", "m2cgen"}  # timed in the peers' environment


@dataclass(frozen=True)
class Compiler:
    """One script of benchmarks/peers: where it runs, for which models, and the peers it makes."""

    script: str
    place: str  # "own" or a key of VARIABLES
    kind: str  # "keras", "sklearn" or "" for both
    peers: tuple[str, ...]


COMPILERS = [
    Compiler("stock_keras", "own", "keras", ("onnxruntime fp32",)),
    Compiler("stock_sklearn", "own", "sklearn", ("onnxruntime fp32",)),
    Compiler("ort_quantize", "own", "keras", ("ORT static", "ORT dynamic")),
    Compiler("olive_cli", "olive", "keras", ("Olive quantize", "Olive auto-opt")),
    Compiler("nncf_quantize", "nncf", "keras", ("NNCF accuracy control", "OpenVINO int8")),
    Compiler("openvino_convert", "peers", "keras", ("OpenVINO fp32",)),
    Compiler("litert_convert", "own", "keras", ("LiteRT fp32", "LiteRT int8")),
    Compiler("trees", "peers", "sklearn", ("treelite", "tl2cgen", "m2cgen")),
    Compiler("own", "own", "", ("edgeml fp32",)),
]
NEEDS_STOCK = {"ort_quantize", "olive_cli", "nncf_quantize", "openvino_convert"}
BARE = "edgeml by InferenceSession.run"


class Worker:
    """A process of benchmarks/peers/worker.py in one environment."""

    def __init__(self, python: str) -> None:
        command = [python, "-m", "benchmarks.peers.worker"]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env=environment_of(),
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Return the worker's answer; {"error": ..} when it died."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply: dict[str, Any] = json.loads(line) if line else {"error": "the worker died"}
        return reply

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)


def environment_of() -> dict[str, str]:
    """Return this process's environment with the project on the path and one thread for all."""
    paths = f"{ROOT}{os.pathsep}{ROOT / 'runtime'}"
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run(python: str, module: str, *arguments: str) -> list[str]:
    """Return the lines a module printed; raise SystemExit with its last words when it failed."""
    command = [python, "-m", module, *arguments]
    done = subprocess.run(
        command, cwd=ROOT, env=environment_of(), capture_output=True, text=True, timeout=COMPILE_S, check=False
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip() or "no word").splitlines()[-1][:300])
    return done.stdout.splitlines()


def compiled(folder: Path, places: dict[str, str], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what every peer makes of the model in `folder`, from the cache where it is there."""
    kind = json.loads((folder / "info.json").read_text(encoding="utf-8"))["kind"]
    found: list[dict[str, Any]] = []
    for compiler in COMPILERS:
        if compiler.kind not in ("", kind) or not wanted(compiler.peers, options.peers):
            continue
        cache = folder / f"{compiler.script}.json"
        if cache.is_file() and compiler.script not in options.again:
            found += json.loads(cache.read_text(encoding="utf-8"))
            continue
        print(f"  compile: {compiler.script}", flush=True)
        files = _compile(compiler, folder, places)
        if compiler.place in places:
            cache.write_text(json.dumps(files, indent=1), encoding="utf-8")
        found += files
    stock = next((f["seconds"] for f in found if f["peer"] == "onnxruntime fp32"), 0.0)
    makes_more = {peer for c in COMPILERS if c.script in NEEDS_STOCK for peer in c.peers}
    return [f | {"compile_s": f["seconds"] + (stock if f["peer"] in makes_more else 0.0)} for f in found]


def _compile(compiler: Compiler, folder: Path, places: dict[str, str]) -> list[dict[str, Any]]:
    why = f"absent: no environment, set {VARIABLES.get(compiler.place)}"
    if compiler.place in places:
        try:
            lines = run(places[compiler.place], f"benchmarks.peers.{compiler.script}", str(folder))
            files: list[dict[str, Any]] = json.loads(lines[-1])["files"]
            return files
        except (RuntimeError, subprocess.TimeoutExpired, IndexError, ValueError) as error:
            why = f"{type(error).__name__}: {str(error)[:300]}"
    return [{"peer": peer, "engine": "", "path": "", "seconds": 0.0, "why": why} for peer in compiler.peers]


def wanted(peers: Iterable[str], chosen: list[str]) -> bool:
    """Return whether one of `peers` starts with a name that was chosen; the stock graph always is needed."""
    return not chosen or any(p.startswith(tuple(chosen)) or p == "onnxruntime fp32" for p in peers)


def scikit_learn(folder: Path) -> list[dict[str, Any]]:
    """Return the estimator itself as a peer, where the model is one."""
    path = folder / "source.joblib"
    file = {"peer": "scikit-learn", "engine": "scikit_learn", "path": str(path), "why": "", "compile_s": 0.0}
    return [file] if path.is_file() else []


def size(path: Path) -> int:
    """Return the bytes that ship: the file, and the weights beside it."""
    beside = [path.with_suffix(".bin"), path.with_name(path.name + ".data")]
    return sum(p.stat().st_size for p in [path, *beside] if p.is_file())


def measured(folder: Path, files: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return a row per file with bytes, accuracy and latency, timed in turns."""
    target = np.load(folder / "target.npy")
    rows, live = [], {}
    for number, file in enumerate(files):
        row = {k: file.get(k, "") for k in ("peer", "why", "compile_s", "all_seconds")}
        rows.append(row)
        worker = options.workers.get("peers" if file["engine"] in PEERS_ENGINES else "own")
        if row["why"] or worker is None:
            row["why"] = row["why"] or "absent: no environment"
            continue
        request = {"id": str(number), "engine": file["engine"], "path": file["path"]}
        reply = worker.ask(op="load", rows=str(folder / "test.npz"), **request)
        answer = reply if "error" in reply else worker.ask(op="labels", id=str(number))
        if "error" in answer:
            row["why"] = answer["error"]
            continue
        row["bytes"], row["accuracy"] = size(Path(file["path"])), float(np.mean(np.array(answer["labels"]) == target))
        live[number] = worker
    times = in_turns(live, options)
    for number, series in times.items():
        p50s, p90s = zip(*series, strict=True)
        rows[number] |= {"p50_us": statistics.median(p50s), "p90_us": statistics.median(p90s), "rounds_us": list(p50s)}
    for worker in options.workers.values():
        worker.ask(op="drop")
    return rows


def in_turns(live: dict[int, Worker], options: argparse.Namespace) -> dict[int, list[tuple[float, float]]]:
    """Return p50 and p90 of every round of every model."""
    order = random.Random(0)
    times: dict[int, list[tuple[float, float]]] = {number: [] for number in live}
    for turn in range(-2, options.rounds):  # two rounds warm up
        for number in order.sample(list(live), len(live)):
            reply = live[number].ask(op="time", id=str(number), seconds=options.slice)
            if turn >= 0:
                times[number].append((reply["p50"], reply["p90"]))
    return times


def with_bare_runs(files: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the files with edgeml's graphs once more, called as the peers' graphs are."""
    own = [f for f in files if f["peer"].startswith("edgeml ") and not f["why"]]
    bare = [f | {"peer": f["peer"].replace("edgeml ", "edgeml, bare run: "), "engine": "onnxruntime"} for f in own]
    return files + bare


def main() -> None:
    """Train, compile, measure, judge and write."""
    options = arguments()
    os.sched_setaffinity(0, {options.core})  # children inherit it
    places = {"own": sys.executable}
    for name in VARIABLES:
        path = getattr(options, f"{name}_python")
        if path and Path(path).is_file():
            places[name] = path
    before, results = environment(), {}
    for name in options.models:
        print(f"== {name}", flush=True)
        folder = options.work / name
        if not (folder / "info.json").is_file():
            needed = ["mobilenetv2-96", name] if name == "mobilenetv2-224" else [name]
            for model in needed:
                if not (options.work / model / "info.json").is_file():
                    run(sys.executable, "benchmarks.models", model, str(options.work / model))
        files = compiled(folder, places, options) + scikit_learn(folder)
        if options.compile_only:
            continue
        options.workers = {n: Worker(places[n]) for n in ("own", "peers") if n in places}
        rows = measured(folder, with_bare_runs(files), options)
        for worker in options.workers.values():
            worker.close()
        info = json.loads((folder / "info.json").read_text(encoding="utf-8"))
        results[name] = judge(rows, info["accuracy"])
        print(f"  {results[name]['verdict']}", flush=True)
        write({"models": results, "rounds": options.rounds, "ort_based": ORT_BASED}, (before, environment()))


def write(result: dict[str, Any], machine: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Write the JSON and the tables."""
    load = [facts["load_average"] for facts in machine]
    result |= {"load_average": load, "environment": machine[1]}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "compile_peers.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "compile_peers.md").write_text(tables(result), encoding="utf-8")


def arguments() -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = NETS + TREES
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgeml-compile-peers")
    parser.add_argument("--models", type=lambda text: text.split(","), default=names)
    parser.add_argument("--peers", type=lambda text: text.split(","), default=[], help="beginnings of names")
    parser.add_argument("--again", type=lambda text: text.split(","), default=[], help="scripts to compile afresh: own")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--slice", type=float, default=0.012, help="seconds a peer is called for in one round")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--compile-only", action="store_true")
    for name, variable in VARIABLES.items():
        parser.add_argument(f"--{name}-python", default=os.environ.get(variable, ""))
    options = parser.parse_args()
    if unknown := set(options.models) - set(names):
        parser.error(f"no model {', '.join(sorted(unknown))}: there is {', '.join(names)}")
    options.work.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
