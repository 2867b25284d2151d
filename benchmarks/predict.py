"""How good calibrated predictions are, beside FLOPs times a factor and the nearest reference net.

    PYTHONPATH=. python benchmarks/networks.py NETS                    once: the networks that are judged by
    PYTHONPATH=. python benchmarks/predict.py --nets NETS --work WORK   EDGEML_ORT_OLD_PYTHON: an older one's python

Each way to run on this host is a device of its own, with other costs for the same nets: one and two threads, fp32 and
int8, no graph optimization, an older onnxruntime. A device is calibrated with micro-models and five reference nets;
the networks it is judged by are of families that none of these knows. Errors are of the median of a timing. What is
finished is kept in WORK and in results/predict.json, device by device.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.bench.calibrate import Calibration, Device, Here, calibrate, operator_time
from edgeml.bench.calibrate.journal import Journal, Row, digest_of
from edgeml.bench.calibrate.run import Scope, whole_ms
from edgeml.bench.calibrate.work import Work, works_of
from edgeml.bench.predict.fit import Forecast, Kernels
from edgeml_runtime.measure import OperatorTime, Plan, Timing
from edgeml_runtime.wire.manifest import Settings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
ROUNDS = 3  # minutes apart, each over all networks in a new order; the lowest median counts, as in the calibration
PLAN = Plan(warmup_s=0.1, min_s=0.4, min_count=10, max_s=2.0)


@dataclass(frozen=True)
class Case:
    """One device: a way to run, and the environment variable of its python, "" for this one."""

    name: str
    settings: Settings
    forms: tuple[str, ...] = ("fp32", "int8")
    python: str = ""


CASES = (
    Case("1 thread", Settings()),
    Case("2 threads", Settings(threads=2)),
    Case("graph level off", Settings(graph_level="disabled"), forms=("fp32",)),
    Case("onnxruntime 1.19", Settings(), python="EDGEML_ORT_OLD_PYTHON"),
)


class Process:
    """A device in a process of its own, with another python."""

    def __init__(self, python: str, settings: Settings) -> None:
        self._settings = settings
        self._folder = tempfile.TemporaryDirectory()
        environment = os.environ | {"PYTHONPATH": str(ROOT / "runtime")}
        command = [python, str(Path(__file__).parent / "device_worker.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def environment(self) -> dict[str, Any]:
        found: dict[str, Any] = self._ask(ask="environment")
        return found

    def nodes(self, model: bytes, inputs: Mapping[str, np.ndarray], runs: int) -> Sequence[OperatorTime]:
        found = self._ask(ask="nodes", runs=runs, **self._files(model, inputs))
        return [operator_time(node) for node in found]

    def time(self, model: bytes, inputs: Mapping[str, np.ndarray], plan: Plan) -> Timing:
        return Timing(**self._ask(ask="time", plan=asdict(plan), **self._files(model, inputs)))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._folder.cleanup()

    def _files(self, model: bytes, inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
        folder = Path(self._folder.name)
        (folder / "model.onnx").write_bytes(model)
        np.savez(folder / "rows.npz", **dict(inputs))  # type: ignore[arg-type]
        return {
            "model": str(folder / "model.onnx"),
            "feeds": str(folder / "rows.npz"),
            "settings": asdict(self._settings),
        }

    def _ask(self, **request: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@dataclass(frozen=True)
class Judged:
    """One network on one device: milliseconds."""

    network: str
    measured: float
    doubt: str
    forecast: Forecast
    flops: float
    nearest: float
    macs: float
    nodes: int


def measure(
    device: Device, case: Case, *, nets: Path, work: Path, rounds: int
) -> tuple[Calibration, dict[str, list[Row]]]:
    """Return the calibration of `device` and what its networks took; what the folder `work` holds is not run again."""
    stem = case.name.replace(" ", "-")
    log = functools.partial(print, end="\r", flush=True)
    calibration = calibrate(
        device,
        name=case.name,
        settings=case.settings,
        journal=work / f"{stem}.calibrating.jsonl",
        scope=Scope(rounds=rounds),
        progress=lambda done, of, what: log(f"  {done}/{of} {what:<40}"),
    )
    (work / f"{stem}.calibration.json").write_text(calibration.to_json(), encoding="utf-8")
    journal = Journal(work / f"{stem}.networks.jsonl", {"settings": asdict(case.settings)})
    paths = [path for path in sorted(nets.glob("*.onnx")) if path.stat().st_size and form_of(path) in case.forms]
    found: dict[str, list[Row]] = {path.name: [] for path in paths}
    for round_ in range(rounds):
        for path in random.Random(round_).sample(paths, len(paths)):
            log(f"  {round_} {path.name:<40}")
            key = f"{round_} {path.name} {digest_of(path.read_bytes())}"
            row = journal.get(key)
            if row is None:
                model = path.read_bytes()
                inputs = graph.random_rows(OnnxModel(model, source="benchmark"), 1)
                timing = device.time(model, inputs, PLAN)
                ms = whole_ms(timing, case.settings.threads)
                row = Row(tuple(device.nodes(model, inputs, 3)), ms, timing.why)
                journal.add(key, row)
            found[path.name].append(row)
    return calibration, found


def form_of(path: Path) -> str:
    return "int8" if path.name.endswith(".int8.onnx") else "fp32"


def judge(calibration: Calibration, found: Mapping[str, list[Row]], nets: Path, form: str) -> list[Judged]:
    """Return a row for every network of this form."""
    kernels = Kernels(calibration)
    known = [
        (r.ms, sum(w.macs for w in r.nodes)) for r in calibration.references if (" int8" in r.name) == (form == "int8")
    ]
    judged = []
    for name, rows in found.items():
        if form_of(nets / name) == form:
            best = min(rows, key=lambda row: row.ms or math.inf)
            nodes = works_of(best.nodes, (nets / name).read_bytes())
            judged.append(_judged(name.removesuffix(".onnx").removesuffix(".int8"), best, nodes, kernels, known))
    return judged


def _judged(
    name: str, row: Row, nodes: Sequence[Work], kernels: Kernels, known: Sequence[tuple[float, float]]
) -> Judged:
    macs = sum(work.macs for work in nodes)
    factor = math.exp(np.median([math.log(ms / count) for ms, count in known]))
    near = min(known, key=lambda one: abs(math.log(one[1] / max(macs, 1.0))))
    guesses = (macs * factor, near[0] / near[1] * macs)
    assert row.ms is not None
    return Judged(name, row.ms, row.why, kernels.forecast(nodes), *guesses, macs, len(nodes))


def summary(rows: Sequence[Judged]) -> dict[str, float]:
    """Return the errors of every predictor over `rows`, as shares."""
    measured = np.array([row.measured for row in rows])
    found: dict[str, float] = {}
    for name, guess in {
        "calibrated": [row.forecast.ms for row in rows],
        "flops": [row.flops for row in rows],
        "nearest": [row.nearest for row in rows],
    }.items():
        apart = np.abs(np.array(guess) / measured - 1)
        found |= {f"{name}_mape": float(apart.mean()), f"{name}_within_15": float((apart <= 0.15).mean())}
        found[f"{name}_median"] = float(np.median(apart))
    found["interval_coverage"] = float(np.mean([r.forecast.low <= r.measured <= r.forecast.high for r in rows]))
    return found | {"networks": len(rows), "doubted": sum(bool(row.doubt) for row in rows)}


def table(found: Mapping[str, Any]) -> list[str]:
    """Return the devices, then the networks of each, as Markdown."""
    lines = [
        "| device | networks | calibrated: mean error | median | within 15 % | in its 90 % interval | "
        "FLOPs x factor | nearest net |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in found.items():
        s = one["summary"]
        lines.append(
            f"| {name} | {s['networks']} | **{s['calibrated_mape']:.1%}** | {s['calibrated_median']:.1%} | "
            f"{s['calibrated_within_15']:.0%} | {s['interval_coverage']:.0%} | {s['flops_mape']:.0%} | "
            f"{s['nearest_mape']:.0%} |"
        )
    lines += ["", "| network | " + " | ".join(found) + " |", "|---|" + "---:|" * len(found)]
    names = sorted({row["network"] for one in found.values() for row in one["rows"]})
    for name in names:
        cells = []
        for one in found.values():
            row = next((row for row in one["rows"] if row["network"] == name), None)
            cells.append(
                "" if row is None else f"{row['measured']:.2f} ms, {row['forecast']['ms'] / row['measured']:.2f}"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, "", "Each cell: the measured median, and the prediction as a multiple of it."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nets", type=Path, required=True, help="the folder that benchmarks/networks.py wrote")
    parser.add_argument("--work", type=Path, required=True, help="a folder for journals: stop it, and it goes on")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of kernels and networks; the fastest counts")
    parser.add_argument("--only", default="", help="a part of a device's name")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    stored = RESULTS / "predict.json"
    found: dict[str, Any] = json.loads(stored.read_text(encoding="utf-8")) if stored.exists() else {}
    for case in CASES:
        python = os.environ.get(case.python, "") if case.python else ""
        if options.only not in case.name or (case.python and not python):
            continue
        print(case.name, flush=True)
        device = Process(python, case.settings) if python else Here(case.settings)
        calibration, rows = measure(device, case, nets=options.nets, work=options.work, rounds=options.rounds)
        if isinstance(device, Process):
            device.close()
        for form in case.forms:
            judged = judge(calibration, rows, options.nets, form)
            runtime = calibration.environment["onnxruntime"]
            told = {"summary": summary(judged), "onnxruntime": runtime, "rows": [asdict(row) for row in judged]}
            found[f"{case.name}, {form}"] = told
            print(f"\n{case.name}, {form}: {json.dumps(told['summary'])}", flush=True)
        stored.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    lines = table(found)
    print("\n".join(lines))
    (RESULTS / "predict.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
