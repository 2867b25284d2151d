"""OpenVINO in float32: the stock graph, converted and saved."""

from __future__ import annotations

import importlib
from pathlib import Path

from benchmarks.peers.job import FOLDER, STOCK, Result

ov = importlib.import_module("openvino")


def fp32(path: Path) -> None:
    ov.save_model(ov.convert_model(FOLDER / STOCK), path, compress_to_fp16=False)


if __name__ == "__main__":
    result = Result()
    result.make("OpenVINO fp32", "openvino", to="openvino-fp32.xml", by=fp32)
    result.tell()
