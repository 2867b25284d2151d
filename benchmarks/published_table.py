"""The curated table of published timings, made from the large one: edgeml/bench/predict/published.csv.

    PYTHONPATH=. python benchmarks/published_table.py [--data published_latency.csv]

Only facts: who published which time for which network on which board, with the source of each row. Kept are CPU
timings of the networks of published_networks.py at known threads (MLPerf submissions do not state theirs and are marked
0). Left out are rows that are flagged unreliable, graphics processors, and single cells that their own minimum and
maximum contradict. ncnn computes float32 networks in 16-bit floats where the core has them: those are marked fp16.
"""

from __future__ import annotations

import argparse
import csv
import os
import re
from pathlib import Path

from benchmarks.published_networks import NETWORKS

DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))
TABLE = Path(__file__).resolve().parents[1] / "edgeml/bench/predict/published.csv"
COLUMNS = (
    *("board", "core", "clock_ghz", "runtime", "version", "threads", "precision", "model", "ms", "statistic", "source"),
)
BOARDS = {  # (device, core) of the large table -> name here, core, gigahertz where the source states them
    ("Raspberry Pi Zero 2 W", "Cortex-A53@1.0GHz x4"): ("raspberry-pi-zero-2w", "Cortex-A53", 1.0),
    ("Raspberry Pi 3B+", "Cortex-A53@1.4GHz x4"): ("raspberry-pi-3b-plus", "Cortex-A53", 1.4),
    ("Raspberry Pi 4B", "Cortex-A72@1.8GHz(label) x4"): ("raspberry-pi-4", "Cortex-A72", 1.8),
    ("Raspberry Pi 4B", "Cortex-A72@1.5GHz x4"): ("raspberry-pi-4", "Cortex-A72", 1.5),
    ("Raspberry Pi 4B", "Cortex-A72"): ("raspberry-pi-4", "Cortex-A72", None),
    ("Raspberry Pi 5", "Cortex-A76@2.4GHz x4"): ("raspberry-pi-5", "Cortex-A76", 2.4),
    ("Raspberry Pi 5", "Cortex-A76"): ("raspberry-pi-5", "Cortex-A76", None),
    ("Raspberry Pi 5", "Cortex-A76 x4"): ("raspberry-pi-5", "Cortex-A76", None),
    ("OrangePi 5", "A76@2.4GHz x4 + A55@1.8GHz x4"): ("orange-pi-5", "Cortex-A76", 2.4),
    ("Jetson Nano", "Cortex-A57 x4 / Maxwell"): ("jetson-nano", "Cortex-A57", None),
    ("Jetson Orin Nano", "Cortex-A78AE x6 / Ampere"): ("jetson-orin-nano", "Cortex-A78AE", None),
    ("Intel N100 (LarkBox X)", "Alder Lake-N x4"): ("n100", "Gracemont", None),
}
RUNTIMES = {  # of the large table -> here
    "ncnn": "ncnn",
    "tflite(ruy)": "tflite-ruy",
    "tflite(XNNPACK) benchmark_model": "tflite-xnnpack",
    "armnn(neon)": "armnn",
    "onnxruntime": "onnxruntime",
}
MODELS = {"YOLOX-Nano": "yolox-nano", "YOLOX-Tiny": "yolox-tiny", "YOLOX-S": "yolox-s", "YOLOX-M": "yolox-m"}
NEWEST = {"ncnn": "git README a4d2ea1d4"}  # of several versions on one board the table keeps one
BIG_AND_LITTLE = {"OrangePi 5"}  # boards with two kinds of cores: rows of the big ones only
CONTRADICTED = 1.5  # an average that many times its own minimum is an outlier of somebody's background


def curated(path: Path) -> list[dict[str, str]]:
    """Return the rows of the large table that are kept, the best of equal ones."""
    kept: dict[tuple[str, ...], dict[str, str]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found = _row(row)
            if found is None:
                continue
            key = tuple(found[name] for name in COLUMNS if name not in ("ms", "statistic", "source"))
            if key not in kept or float(found["ms"]) < float(kept[key]["ms"]):
                kept[key] = found
    return sorted(kept.values(), key=lambda row: [row[name] for name in COLUMNS])


def _row(row: dict[str, str]) -> dict[str, str] | None:
    board, runtime = BOARDS.get((row["device"], row["core"])), RUNTIMES.get(row["runtime"])
    model = _model(row["model"])
    if board is None or runtime is None or model is None or "UNRELIABLE" in row["note"] or "suspect" in row["note"]:
        return None
    if runtime == "ncnn" and row["runtime_version"] != NEWEST["ncnn"]:
        return None
    if row["device"] in BIG_AND_LITTLE and "powersave=2" not in row["note"]:
        return None
    if runtime == "onnxruntime" and board[0] != "raspberry-pi-5":
        return None
    least = re.search(r"min=([\d.]+)", row["note"])
    if least and float(row["latency_ms"]) > CONTRADICTED * float(least[1]):
        return None
    statistic = re.search(r"stat=([^;]+)", row["note"])
    threads = {"": "0", "multi": "0"}.get(row["threads"], row["threads"])
    clock = f"{board[2]:g}" if board[2] else ""
    values = (board[0], board[1], clock, runtime, row["runtime_version"], threads, row["precision"], model)
    told = (row["latency_ms"], statistic[1].strip() if statistic else "unstated", row["source"])
    return dict(zip(COLUMNS, (*values, *told), strict=True))


def _model(name: str) -> str | None:
    name = re.sub(r"-(non-)?quantized$|_(float|uint8)$", "", name)
    name = MODELS.get(name, "resnet50-v1.5" if name == "resnet50-mlperf" else name)
    return name if name in NETWORKS else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--data", type=Path, default=DATA / "published_latency.csv", help="published_latency.csv")
    rows = curated(parser.parse_args().data)
    with TABLE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} rows -> {TABLE.name}")


if __name__ == "__main__":
    main()
