"""How good calibrated predictions are, beside FLOPs times a factor and the nearest reference net.

    PYTHONPATH=. python benchmarks/networks.py FOLDER          once: the networks that are judged by
    PYTHONPATH=. python benchmarks/predict.py --nets FOLDER     EDGEML_ORT_OLD_PYTHON names an older runtime's python

Each way to run on this host is a device of its own, with other costs for the same nets: one and two threads, fp32 and
int8, no graph optimization, an older onnxruntime. A device is calibrated with micro-models and five reference nets;
the networks it is judged by are of families that none of these knows. Errors are of the median of a timing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.bench.calibrate import Calibration, Device, Here, calibrate
from edgeml.bench.calibrate.work import Work, work_of
from edgeml.bench.predict.fit import Forecast, Kernels
from edgeml_runtime.measure import OperatorTime, Plan, Timing
from edgeml_runtime.wire.manifest import Settings

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PLAN = Plan(min_s=0.6, min_count=10, max_s=4.0)
GOAL_MAPE, GOAL_WITHIN_15 = 0.08, 0.90


@dataclass(frozen=True)
class Case:
    """One device: a way to run, the networks' form, and the environment variable of its python, "" for this one."""

    name: str
    settings: Settings
    int8: bool = False
    python: str = ""


CASES = (
    Case("1 thread, fp32", Settings()),
    Case("1 thread, int8", Settings(), int8=True),
    Case("2 threads, fp32", Settings(threads=2)),
    Case("2 threads, int8", Settings(threads=2), int8=True),
    Case("graph level off, fp32", Settings(graph_level="disabled")),
    Case("onnxruntime 1.19, fp32", Settings(), python="EDGEML_ORT_OLD_PYTHON"),
    Case("onnxruntime 1.19, int8", Settings(), int8=True, python="EDGEML_ORT_OLD_PYTHON"),
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
        return [OperatorTime(**node | {"shapes": tuple((k, tuple(s)) for k, s in node["shapes"])}) for node in found]

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
class Row:
    """One network on one device: milliseconds."""

    network: str
    measured: float
    valid: bool
    forecast: Forecast
    flops: float
    nearest: float
    macs: float


def judge(device: Device, case: Case, nets: Path) -> tuple[Calibration, float, list[Row]]:
    """Return the calibration of `device`, the seconds it took, and a row for every network."""
    begun = time.monotonic()
    calibration = calibrate(device, name=case.name, settings=case.settings)
    seconds, kernels = time.monotonic() - begun, Kernels(calibration)
    known = [(r.ms, sum(w.macs for w in r.nodes)) for r in calibration.references if (" int8" in r.name) == case.int8]
    rows = []
    for path in sorted(nets.glob("*.onnx")):
        if path.name.endswith(".int8.onnx") != case.int8 or not path.stat().st_size:
            continue
        inputs = graph.random_rows(OnnxModel(path.read_bytes(), source="benchmark"), 1)
        timing = device.time(path.read_bytes(), inputs, PLAN)
        nodes = [work_of(node) for node in device.nodes(path.read_bytes(), inputs, 1)]
        rows.append(_row(path.name.split(".onnx")[0].removesuffix(".int8"), timing, nodes, kernels, known))
        print(f"    {rows[-1].network}: {timing.p50_ms:.3f} ms, predicted {rows[-1].forecast.ms:.3f}", flush=True)
    return calibration, seconds, rows


def _row(name: str, timing: Timing, nodes: list[Work], kernels: Kernels, known: list[tuple[float, float]]) -> Row:
    macs = sum(work.macs for work in nodes)
    factor = math.exp(np.median([math.log(ms / count) for ms, count in known]))
    near = min(known, key=lambda one: abs(math.log(one[1] / max(macs, 1.0))))
    return Row(
        name, timing.p50_ms, timing.valid, kernels.forecast(nodes), macs * factor, near[0] / near[1] * macs, macs
    )


def summary(rows: Sequence[Row]) -> dict[str, float]:
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
    return found | {"networks": len(rows), "invalid": sum(not row.valid for row in rows)}


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
    parser.add_argument("--only", help="a part of a device's name")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for case in CASES:
        python = os.environ.get(case.python, "") if case.python else ""
        if (options.only and options.only not in case.name) or (case.python and not python):
            continue
        print(case.name, flush=True)
        device = Process(python, case.settings) if python else Here(case.settings)
        calibration, seconds, rows = judge(device, case, options.nets)
        if isinstance(device, Process):
            device.close()
        found[case.name] = {
            "summary": summary(rows),
            "calibration_s": seconds,
            "onnxruntime": calibration.environment["onnxruntime"],
            "rows": [asdict(row) for row in rows],
        }
        print(json.dumps(found[case.name]["summary"]), flush=True)
    lines = table(found)
    print("\n".join(lines))
    if not options.only:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "predict.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        (RESULTS / "predict.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
