"""onnxruntime's own quantizers by their defaults, static after the preprocessing that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.peers.job import FOLDER, STOCK, Result, rows


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """The calibration rows, one by one."""

    def __init__(self) -> None:
        name = InferenceSession(FOLDER / STOCK).get_inputs()[0].name
        array = rows("calibration")["x"]
        self._rows = iter([{name: array[i : i + 1]} for i in range(len(array))])

    def get_next(self) -> Any:
        return next(self._rows, None)


def static(path: Path) -> None:
    before = FOLDER / "preprocessed.onnx"
    quant_pre_process(FOLDER / STOCK, before)
    quantize_static(before, path, Reader())


def dynamic(path: Path) -> None:
    quantize_dynamic(FOLDER / STOCK, path)


if __name__ == "__main__":
    result = Result()
    result.make("ORT static", "onnxruntime", to="ort-static.onnx", by=static)
    result.make("ORT dynamic", "onnxruntime", to="ort-dynamic.onnx", by=dynamic)
    result.tell()
