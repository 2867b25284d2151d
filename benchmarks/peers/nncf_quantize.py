"""NNCF: quantize_with_accuracy_control on the ONNX graph, and its plain quantize for OpenVINO's int8."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers.job import FOLDER, STOCK, Result, rows

nncf, onnx, ort, ov = (importlib.import_module(name) for name in ("nncf", "onnx", "onnxruntime", "openvino"))
MAX_DROP = 0.01


def accuracy_control(path: Path) -> None:
    """Quantize until at most 1 % of accuracy is lost on the calibration rows, the same that edgeml gets."""
    graph = onnx.load(FOLDER / STOCK)
    name = graph.graph.input[0].name
    array, target = rows("calibration")["x"], np.load(FOLDER / "calibration_target.npy")
    calibration = nncf.Dataset(list(array), lambda row: {name: row[None]})
    validation = nncf.Dataset(list(zip(array, target, strict=True)), lambda item: {name: item[0][None]})

    def validate(model: Any, items: Iterable[Any]) -> tuple[float, None]:
        session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        right = [np.argmax(session.run(None, {name: row[None]})[0]) == wanted for row, wanted in items]
        return float(np.mean(right)), None

    made = nncf.quantize_with_accuracy_control(graph, calibration, validation, validate, max_drop=MAX_DROP)
    onnx.save(made, path)


def for_openvino(path: Path) -> None:
    graph = ov.convert_model(FOLDER / STOCK)
    ov.save_model(nncf.quantize(graph, nncf.Dataset(list(rows("calibration")["x"]), lambda row: row[None])), path)


if __name__ == "__main__":
    result = Result()
    result.make("NNCF accuracy control", "onnxruntime", to="nncf.onnx", by=accuracy_control)
    result.make("OpenVINO int8", "openvino", to="openvino-int8.xml", by=for_openvino)
    result.tell()
