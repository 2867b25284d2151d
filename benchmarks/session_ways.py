"""What the options of a session change for one row: the knobs that could close the gap to other runtimes.

    PYTHONPATH=. python benchmarks/session_ways.py --work FOLDER [--models a,b] [--rounds 60]

FOLDER is the one of compile_peers.py after it has run. Every way calls the same graph through one io_binding bound
once, except the two that show what the call itself costs; all take turns in one process on one core. Writes
results/session_ways.json and .md next to this file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

import edgeml_runtime  # noqa: F401 first: it sets what onnxruntime reads when it is imported
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session

ort.set_default_logger_severity(3)  # it warns of an entry that is set twice, as one way does
RESULTS = Path(__file__).parent / "results"
MODELS = {
    "digits-mlp": ("fp32",),
    "digits-cnn": ("fp32", "int8-static-u8s8"),
    "resnet8": ("fp32", "int8-static-u8s8"),
    "mobilenetv1-96": ("fp32", "int8-static-u8s8"),
    "mobilenetv2-96": ("fp32", "int8-static-u8s8"),
}
BASE = "edgeml's Session.predict"
LEVELS = ort.GraphOptimizationLevel
Change = Callable[[Any], Any]


def entry(key: str, value: str) -> Change:
    """Return what sets a configuration entry."""
    return lambda options: options.add_session_config_entry(key, value)


def attribute(name: str, value: Any) -> Change:
    """Return what sets an attribute of the options."""
    return lambda options: setattr(options, name, value)


CHANGES: dict[str, Change] = {
    "bound once, no checks": lambda options: None,
    "spinning left on": entry("session.intra_op.allow_spinning", "1"),
    "prepacking off": entry("session.disable_prepacking", "1"),
    "EXTENDED, no NCHWc": attribute("graph_optimization_level", LEVELS.ORT_ENABLE_EXTENDED),
    "no graph optimisation": attribute("graph_optimization_level", LEVELS.ORT_DISABLE_ALL),
    "arena off": attribute("enable_cpu_mem_arena", False),
    "memory pattern off": attribute("enable_mem_pattern", False),
    "batch fixed to 1": lambda options: options.add_free_dimension_override_by_name("rows", 1),
    "denormals to zero": entry("session.set_denormal_as_zero", "1"),
    "QDQ left as it is": entry("session.disable_quant_qdq", "1"),
}


def session_of(path: str | bytes, change: Change, **more: str) -> Any:
    """Return a session of one thread with one thing changed."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in more.items():
        setattr(options, key, value)
    change(options)
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def bound(session: Any, row: np.ndarray) -> Callable[[], Any]:
    """Return a call that reads and writes fixed buffers."""
    node, binding = session.get_inputs()[0], session.io_binding()
    answers = session.run(None, {node.name: row})
    binding.bind_input(node.name, "cpu", 0, np.float32, row.shape, row.ctypes.data)
    for output, array in zip(session.get_outputs(), answers, strict=True):
        binding.bind_output(output.name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
    keep = (binding, row, answers)
    inner, raw = session._sess, binding._iobinding
    return lambda keep=keep: inner.run_with_iobinding(raw, None)  # type: ignore[misc]


def empty(row: np.ndarray) -> bytes:
    """Return a graph that hands on its input: what is left is the price of a call."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, row.shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "empty", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def ways(path: Path, row: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Return every way to call the graph at `path` for `row`."""
    plain, own = session_of(str(path), CHANGES["bound once, no checks"]), Session(path)
    name = plain.get_inputs()[0].name
    found: dict[str, Callable[[], Any]] = {
        BASE: lambda: own.predict(row),
        "one Identity node, bound once": bound(session_of(empty(row), CHANGES["bound once, no checks"]), row),
        "InferenceSession.run": lambda: plain.run(None, {name: row}),
    }
    for title, change in CHANGES.items():
        found[title] = bound(session_of(str(path), change), row)
    for title, level, suffix in (
        ("optimised offline at EXTENDED", LEVELS.ORT_ENABLE_EXTENDED, ".onnx"),
        ("ORT format at ALL", LEVELS.ORT_ENABLE_ALL, ".ort"),
    ):
        made = str(path.with_name(f"ways-{path.stem}{suffix}"))
        session_of(str(path), attribute("graph_optimization_level", level), optimized_model_filepath=made)
        found[title] = bound(session_of(made, CHANGES["bound once, no checks"]), row)
    return found


def compare(calls: Mapping[str, Callable[[], Any]], rounds: int, *, slice_s: float = 0.004) -> dict[str, list[float]]:
    """Return the median microseconds of every way, round by round."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    clock = time.perf_counter_ns
    for turn in range(-3, rounds):
        for name in order.sample(list(calls), len(calls)):
            ends: list[int] = []
            call, until = calls[name], clock() + int(slice_s * 1e9)
            call()
            before = clock()
            while before < until or len(ends) < 3:
                call()
                after = clock()
                ends.append(after - before)
                before = after
            if turn >= 0:
                times[name].append(statistics.median(ends) / 1e3)
    return times


def main() -> None:
    """Measure each model and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--models", type=lambda text: text.split(","), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    options = parser.parse_args()
    os.sched_setaffinity(0, {options.core})
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model in options.models:
        with np.load(options.work / model / "test.npz") as file:
            row = np.ascontiguousarray(file["x"][:1])
        for recipe in MODELS[model]:
            times = compare(ways(options.work / model / f"edgeml-{recipe}.onnx", row), options.rounds)
            base = times[BASE]
            found[f"{model} {recipe}"] = {
                name: {
                    "p50_us": round(statistics.median(series), 2),
                    "ratio": round(statistics.median(a / b for a, b in zip(series, base, strict=True)), 3),
                }
                for name, series in times.items()
            }
            print(f"{model} {recipe}: {found[f'{model} {recipe}']}", flush=True)
    result = {"base": BASE, "rounds": options.rounds, "models": found, "environment": environment()}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "session_ways.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "session_ways.md").write_text(table(found), encoding="utf-8")


def table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Return a row per way and a column per model, each a ratio to `BASE`, whose microseconds come first."""
    names = list(found)
    lines = ["| way, one row | " + " | ".join(names) + " |", "|---|" + "---:|" * len(names)]
    lines.append(f"| {BASE}, us | " + " | ".join(f"{found[n][BASE]['p50_us']:.2f}" for n in names) + " |")
    for way in next(iter(found.values())):
        if way != BASE:
            lines.append(f"| {way} | " + " | ".join(f"{found[n][way]['ratio']:.2f}" for n in names) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
