"""What processes hold in memory by session option, beside what edgeml.bench.predict.memory says.

    PYTHONPATH=.:runtime python benchmarks/memory.py --nets NETS [--work FILE]      NETS: of benchmarks/networks.py

Every cell is a new process that loads the model, answers 21 times and reads /proc/self. Prices are fitted to relative
errors; those of a model are judged by prices fitted to all others.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from scipy.optimize import nnls

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.bench.calibrate.blocks import Builder
from edgeml.bench.predict.memory import PRICES, amounts, mapped
from edgeml_runtime.measure import cold_start
from edgeml_runtime.wire.manifest import Settings

RESULTS = Path(__file__).parent / "results"
NETS = (
    *("squeezenet-160", "resnet18-128", "unet-96", "vgg-small-64", "mlp-784", "lstm-48", "transformer-64"),
    *("mobilenet-v2-1.0-160", "mobilenet-v3-large-160", "efficientnet-b0-160", "densenet121-96", "resnet50-128"),
    *("nasnet-mobile-128", "tiny-yolo-160", "inception-v3-128"),
    *("squeezenet-160.int8", "resnet18-128.int8", "mobilenet-v2-1.0-160.int8", "resnet50-128.int8", "mlp-784.int8"),
)
DENSE = {"mlp-tiny": (64, 2), "mlp-30mb": (1200, 5), "mlp-100mb": (2240, 5)}  # width, layers
EXTERNAL = "external data"
OPTIONS: dict[str, Settings] = {
    "defaults": Settings(),
    "two threads": Settings(threads=2),
    "no arena": Settings(arena=False),
    "no memory pattern": Settings(mem_pattern=False),
    "no prepacking": Settings(prepacking=False),
    "graph level extended": Settings(graph_level="extended"),
    "graph level disabled": Settings(graph_level="disabled"),
    EXTERNAL: Settings(external_data=True),
    f"{EXTERNAL}, extended, no prepacking": Settings(graph_level="extended", prepacking=False, external_data=True),
    "basic, no arena, no prepacking": Settings(graph_level="basic", arena=False, prepacking=False),
}


@dataclass(frozen=True)
class Cell:
    """One process: megabytes."""

    model: str
    option: str
    bare: float
    steady: float
    peak: float
    anonymous: float


def models(nets: Path) -> dict[str, bytes]:
    """Return the models by name."""
    found = {name: (nets / f"{name}.onnx").read_bytes() for name in NETS}
    for name, (width, layers) in DENSE.items():
        net, x = Builder((1, width)), "x"
        for _ in range(layers):
            x = net.dense(x, width, act="Relu")
        found[name] = net.done(x)
    return found


def measure(nets: Path, work: Path | None) -> list[Cell]:
    """Return a cell of every model and option; those that `work` holds are not run again."""
    lines = work.read_text(encoding="utf-8").splitlines() if work and work.exists() else []
    known = {(cell.model, cell.option): cell for cell in (Cell(*json.loads(line)) for line in lines)}
    for name, data in models(nets).items():
        feeds = graph.random_rows(OnnxModel(data, source="benchmark"), 1)
        with tempfile.TemporaryDirectory() as folder:
            whole, apart = Path(folder) / "whole.onnx", Path(folder) / "apart.onnx"
            whole.write_bytes(data)
            proto = onnx.ModelProto.FromString(data)
            onnx.save(proto, apart, save_as_external_data=True, location="apart.data", size_threshold=1024)
            for option, settings in OPTIONS.items():
                if (name, option) in known:
                    continue
                path = apart if option.startswith(EXTERNAL) else whole
                found = cold_start(path, feeds, starts=1, settings=settings)
                cell = Cell(name, option, found.bare_mb, found.steady_mb, found.peak_mb, found.anonymous_mb)
                known[name, option] = cell
                if work:
                    with work.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(list(vars(cell).values())) + "\n")
                print(cell, flush=True)
    return list(known.values())


def evaluate(cells: Sequence[Cell], nets: Path) -> dict[str, Any]:
    """Return fitted prices, and every model's error with prices fitted to the other models."""
    costs = {name: graph.cost(data) for name, data in models(nets).items()}
    machine = platform.machine()
    found = [amounts(costs[cell.model], OPTIONS[cell.option], machine=machine) for cell in cells]
    matrix = np.array([[row[name] for name in PRICES] for row in found])
    bare, names = np.array([cell.bare for cell in cells]), np.array([cell.model for cell in cells])
    told: dict[str, Any] = {"prices": {}, "errors": {}}
    for what in ("steady", "peak"):
        total = np.array([getattr(cell, what) for cell in cells])
        told["prices"][what] = dict(zip(PRICES, _fit(matrix, bare, total).tolist(), strict=True))
        predicted = np.zeros(len(cells))
        for name in costs:
            out = names == name
            predicted[out] = matrix[out] @ _fit(matrix[~out], bare[~out], total[~out]) + bare[out]
        told["errors"][what] = (predicted / total - 1).tolist()
    anonymous = np.array([cell.anonymous for cell in cells])
    files = [mapped(row, OPTIONS[c.option]) for row, c in zip(found, cells, strict=True)]
    steady = np.array([cell.steady for cell in cells]) * (1 + np.array(told["errors"]["steady"]))
    told["errors"]["anonymous"] = ((np.maximum(steady - files, 0) - anonymous) / anonymous).tolist()
    return told | {"cells": [vars(cell) for cell in cells]}


def _fit(matrix: np.ndarray, bare: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return non-negative prices of least relative error of the whole process."""
    return np.asarray(nnls(matrix / total[:, None], (total - bare) / total)[0])


def table(told: dict[str, Any]) -> list[str]:
    """Return errors by option, and prices, as Markdown."""
    lines = [
        "| session | processes | resident: mean error | worst | peak: mean error | worst | anonymous: mean error |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    errors = {what: np.abs(values) for what, values in told["errors"].items()}
    options = np.array([cell["option"] for cell in told["cells"]])
    for option in (*OPTIONS, "all"):
        at = (options == option) | (option == "all")
        shares = [
            *(errors["steady"][at].mean(), errors["steady"][at].max()),
            *(errors["peak"][at].mean(), errors["peak"][at].max(), errors["anonymous"][at].mean()),
        ]
        lines.append(f"| {option} | {at.sum()} | " + " | ".join(f"{share:.1%}" for share in shares) + " |")
    lines += ["", "| what | resident, MB per MB | at the peak |", "|---|---:|---:|"]
    prices = told["prices"]
    lines += [f"| {name} | {prices['steady'][name]:.4f} | {prices['peak'][name]:.4f} |" for name in PRICES]
    lines += ["", "| model | " + " | ".join(OPTIONS) + " |", "|---|" + "---:|" * len(OPTIONS)]
    cells = {(c["model"], c["option"]): (c, e) for c, e in zip(told["cells"], told["errors"]["peak"], strict=True)}
    for name in dict.fromkeys(cell["model"] for cell in told["cells"]):
        row = [cells[name, option] for option in OPTIONS]
        lines.append(f"| {name} | " + " | ".join(f"{c['peak']:.0f} MB, {1 + e:.2f}" for c, e in row) + " |")
    return [*lines, "", "Each cell: the measured peak, and the prediction as a multiple of it."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--nets", type=Path, required=True, help="the folder that benchmarks/networks.py wrote")
    parser.add_argument("--work", type=Path, help="a file for what was measured: stop it, and it goes on")
    options = parser.parse_args()
    told = evaluate(measure(options.nets, options.work), options.nets)
    lines = table(told)
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "memory.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "memory.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
