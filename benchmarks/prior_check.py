"""Hold the latency prior against published timings of real boards, beside a FLOPs-only baseline.

    python benchmarks/prior_check.py [--data published_latency.csv]

The five networks are built here from the tables of their papers, with random weights, and go through
`edgeml.bench.predict` like any model. The published rows are ncnn's (benchmark/README.md, 1 thread): another
runtime than ours, so this checks the method and the size of its error, not onnxruntime's numbers.
ncnn uses 16-bit floats on the Pi 5, twice the lanes of the float32 that is predicted: those rows are
shown with half the predicted time and do not count for the range.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.bench import predict
from edgeml.bench.predict.roofline import RANGE_FACTOR
from edgeml.devices import DeviceProfile, find_board
from edgeml.graph import cost, serialize
from edgeml.quantize import MIN_CALIBRATION_ROWS, quantize

RESULTS = Path(__file__).parent / "results"
DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
COLUMNS = ("device", "core", "runtime", "threads", "precision", "model")


class Network:
    """A chain of layers with random weights, growing one layer a call."""

    def __init__(self, side: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[TensorProto] = []
        self.side, self.channels, self.last = side, 3, "numeric"
        self._generator = np.random.default_rng(0)

    def conv(self, out: int, kernel: int, *, stride: int = 1, depthwise: bool = False, relu: bool = True) -> Network:
        group = self.channels if depthwise else 1
        shape = (out, self.channels // group, kernel, kernel)
        scale = math.sqrt(2 / math.prod(shape[1:]))
        names = [self._weight(self._generator.standard_normal(shape) * scale), self._weight(np.zeros(out))]
        pads = [kernel // 2] * 4
        self._node("Conv", [self.last, *names], group=group, strides=[stride] * 2, pads=pads, kernel_shape=[kernel] * 2)
        self.channels = out
        return self._node("Relu", [self.last]) if relu else self

    def add(self, other: str) -> Network:
        return self._node("Add", [self.last, other])

    def relu(self) -> Network:
        return self._node("Relu", [self.last])

    def pool(self, kernel: int, stride: int) -> Network:
        window = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [kernel // 3] * 4}
        return self._node("MaxPool", [self.last], **window)

    def head(self, classes: int = 1000) -> Network:
        self._node("GlobalAveragePool", [self.last])._node("Flatten", [self.last])
        return self.dense(classes)

    def dense(self, out: int, *, inputs: int = 0) -> Network:
        inputs = inputs or self.channels
        weight = self._weight(self._generator.standard_normal((inputs, out)) / math.sqrt(inputs))
        self.channels = out
        return self._node("Gemm", [self.last, weight, self._weight(np.zeros(out))])

    def flatten(self) -> Network:
        return self._node("Flatten", [self.last])

    def model(self) -> OnnxModel:
        image = helper.make_tensor_value_info("numeric", TensorProto.FLOAT, ["rows", 3, self.side, self.side])
        scores = helper.make_tensor_value_info(self.last, TensorProto.FLOAT, ["rows", self.channels])
        graph = helper.make_graph(self.nodes, "network", [image], [scores], self.weights)
        return serialize(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), source="prior_check")

    def _weight(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def _node(self, operator: str, inputs: list[str], **attributes: Any) -> Network:
        self.last = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [self.last], **attributes))
        return self


def mobilenet_v1() -> Network:
    """MobileNetV1 1.0 (arXiv 1704.04861, table 1)."""
    net = Network(224).conv(32, 3, stride=2)
    early, late = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)], [(1024, 2), (1024, 1)]
    for out, stride in [*early, *[(512, 1)] * 5, *late]:
        net.conv(net.channels, 3, stride=stride, depthwise=True).conv(out, 1)
    return net.head()


def mobilenet_v2() -> Network:
    """MobileNetV2 1.0 (arXiv 1801.04381, table 2)."""
    net = Network(224).conv(32, 3, stride=2)
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, out, repeats, first in stages:
        for block in range(repeats):
            stride, start, before = first if block == 0 else 1, net.last, net.channels
            if expand > 1:
                net.conv(net.channels * expand, 1)
            net.conv(net.channels, 3, stride=stride, depthwise=True).conv(out, 1, relu=False)
            if stride == 1 and before == out:
                net.add(start)
    return net.conv(1280, 1).head()


def resnet18() -> Network:
    """ResNet-18 (arXiv 1512.03385, table 1)."""
    net = Network(224).conv(64, 7, stride=2).pool(3, 2)
    for out, first in [(64, 1), (128, 2), (256, 2), (512, 2)]:
        for block in range(2):
            stride = first if block == 0 else 1
            start = net.last, net.channels
            net.conv(out, 3, stride=stride).conv(out, 3, relu=False)
            _close(net, start, stride)
    return net.head()


def resnet50() -> Network:
    """ResNet-50 (arXiv 1512.03385, table 1, the stride in the first 1x1 convolution of a stage)."""
    net = Network(224).conv(64, 7, stride=2).pool(3, 2)
    for inner, repeats, first in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for block in range(repeats):
            stride = first if block == 0 else 1
            start = net.last, net.channels
            net.conv(inner, 1, stride=stride).conv(inner, 3).conv(4 * inner, 1, relu=False)
            _close(net, start, stride)
    return net.head()


def vgg16() -> Network:
    """VGG-16 (arXiv 1409.1556, configuration D)."""
    net = Network(224)
    for out, repeats in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
        for _ in range(repeats):
            net.conv(out, 3)
        net.pool(2, 2)
    return net.flatten().dense(4096, inputs=512 * 7 * 7).relu().dense(4096).relu().dense(1000)


def _close(net: Network, start: tuple[str, int], stride: int) -> None:
    """End a residual block that began at `start`: add the shortcut, through a 1x1 convolution where it must be."""
    (shortcut, before), end, out = start, net.last, net.channels
    if stride != 1 or before != out:
        net.last, net.channels = start
        shortcut = net.conv(out, 1, stride=stride, relu=False).last
    net.last = end
    net.add(shortcut).relu()


NETWORKS = {  # published name -> network, the MACs its paper states in millions
    "mobilenet": (mobilenet_v1, 569),
    "mobilenet_v2": (mobilenet_v2, 300),
    "resnet18": (resnet18, 1800),
    "resnet50": (resnet50, 3800),
    "vgg16": (vgg16, 15300),
}


def _boards() -> dict[tuple[str, str], DeviceProfile]:
    """Return profiles by the (device, core) that the published rows name; the 3B+ stands in as a faster A53."""
    zero, four, five = (find_board(f"raspberry-pi-{name}") for name in ("zero-2w", "4", "5"))
    return {
        ("Raspberry Pi Zero 2 W", "Cortex-A53@1.0GHz x4"): zero,
        ("Raspberry Pi 3B+", "Cortex-A53@1.4GHz x4"): replace(zero, name="3B+", frequency_ghz=1.4, bandwidth_mb_s=1050),
        ("Raspberry Pi 4B", "Cortex-A72@1.8GHz(label) x4"): four,
        ("Raspberry Pi 5", "Cortex-A76@2.4GHz x4"): five,
    }


@dataclass(frozen=True)
class Row:
    """One published timing with the prior for it; `ratio` is predicted over published."""

    board: str
    network: str
    precision: str
    published_ms: float
    predicted_ms: float
    ratio: float
    flops_ratio: float  # of the baseline: MACs times one factor per board and precision
    source: str


def read_published(path: Path) -> list[dict[str, str]]:
    """Return the rows of the CSV that this check can predict, the newest table of the benchmark only."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["runtime"] == "ncnn" and row["threads"] == "1"]
    newest = "git README a4d2ea1d4"
    boards = _boards()
    known = [r for r in rows if (r["device"], r["core"]) in boards and r["runtime_version"] == newest]
    return [row for row in known if row["model"] in NETWORKS]


def variants(name: str) -> dict[str, OnnxModel]:
    """Return the fp32 and int8 forms of a network; int8 as edgeml itself quantizes it."""
    model = NETWORKS[name][0]().model()
    side = 224
    if name == "vgg16":  # half a gigabyte: its weights are the same in both forms but for their size
        return {"fp32": model}
    rows = Rows({"numeric": np.random.default_rng(1).random((MIN_CALIBRATION_ROWS, 3, side, side), dtype=np.float32)})
    made = quantize(model, rows, ["int8-static-u8s8", "int8-static-s8s8"])
    return {item.recipe: item.model for item in made if isinstance(item, Variant)}


def check(published: list[dict[str, str]]) -> list[Row]:
    """Return every published timing with the prior and the baseline for it."""
    rows: list[Row] = []
    macs: dict[str, int] = {}
    for name in NETWORKS:
        forms = variants(name)
        macs[name] = cost(forms["fp32"]).macs
        print(f"{name}: {macs[name] / 1e6:.0f} million MACs counted, {NETWORKS[name][1]} in its paper")
        for row in (row for row in published if row["model"] == name):
            board = _boards()[row["device"], row["core"]]
            int8 = "int8-static-s8s8" if board.dot_product else "int8-static-u8s8"
            form = forms.get(int8 if row["precision"] == "int8" else "fp32")
            if form is not None:
                halved = 0.5 if row["precision"] == "fp16" else 1.0
                predicted, measured = predict(form, board).predicted * halved, float(row["latency_ms"])
                found = (row["device"], name, row["precision"], measured, predicted, predicted / measured, 0.0)
                rows.append(Row(*found, row["source"]))
    return [replace(row, flops_ratio=_flops_only(row, rows, macs)) for row in rows]


def _flops_only(row: Row, rows: list[Row], macs: dict[str, int]) -> float:
    """Return the ratio of MACs x one factor, fitted to the board's other networks: more than the prior gets."""
    others = [r for r in rows if (r.board, r.precision) == (row.board, row.precision) and r.network != row.network]
    factor = statistics.median(other.published_ms / macs[other.network] for other in others)
    return macs[row.network] * factor / row.published_ms


def summary(rows: list[Row]) -> dict[str, Any]:
    """Return how far off the prior and the baseline are, 16-bit rows left out."""
    counted = [row for row in rows if row.precision != "fp16"]
    prior, flops = ([row.ratio for row in counted], [row.flops_ratio for row in counted])
    return {
        "rows": len(counted),
        "prior": _errors(prior),
        "flops_only": _errors(flops),
        "range_factor": RANGE_FACTOR,
        "within_range": sum(1 / RANGE_FACTOR <= ratio <= RANGE_FACTOR for ratio in prior),
        "paper_macs_millions": {name: paper for name, (_, paper) in NETWORKS.items()},
    }


def _errors(ratios: list[float]) -> dict[str, float]:
    return {
        "mape": statistics.mean(abs(ratio - 1) for ratio in ratios),
        "median_ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def table(rows: list[Row], result: dict[str, Any]) -> list[str]:
    """Return the rows and their summary as Markdown."""
    lines = ["| board | network | type | published ms | prior ms | prior / published | FLOPs only / published |"]
    lines.append("|---|---|---|---:|---:|---:|---:|")
    for row in sorted(rows, key=lambda row: (row.precision == "fp16", row.board, row.precision, row.network)):
        numbers = f"{row.published_ms:.1f} | {row.predicted_ms:.1f} | {row.ratio:.2f} | {row.flops_ratio:.2f}"
        lines.append(f"| {row.board} | {row.network} | {row.precision} | {numbers} |")
    prior, flops = result["prior"], result["flops_only"]
    return [
        *lines,
        "",
        f"Mean error over the {result['rows']} fp32 and int8 rows: prior {prior['mape']:.0%}, FLOPs only "
        f"{flops['mape']:.0%}; {result['within_range']} of them lie within the range of a factor "
        f"{result['range_factor']:g}. The fp16 rows are ncnn's on the Pi 5, shown and not counted.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=DATA / "published_latency.csv", help="published_latency.csv")
    rows = check(read_published(parser.parse_args().data))
    result = summary(rows)
    lines = table(rows, result)
    RESULTS.mkdir(exist_ok=True)
    found = json.dumps({"summary": result, "rows": [asdict(row) for row in rows]}, indent=1)
    (RESULTS / "prior_check.json").write_text(found + "\n", encoding="utf-8")
    (RESULTS / "prior_check.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
