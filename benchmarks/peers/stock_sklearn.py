"""The graph as skl2onnx writes it: what every ORT-based peer starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import joblib
import numpy as np
from onnx import helper
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType

from benchmarks.peers.job import FOLDER, STOCK, Result, rows

OPSETS = {"": 17, "ai.onnx.ml": 3}
plain_attribute = helper.make_attribute


def convert(path: Path) -> None:
    """Write the stock graph, one input for all numbers or one for each column of a frame."""
    model = joblib.load(FOLDER / "source.joblib")
    types: list[tuple[str, Any]] = [
        (name, StringTensorType([None, 1]) if array.dtype.kind == "U" else FloatTensorType([None, array[0].size]))
        for name, array in rows("calibration").items()
    ]
    if type(model).__name__.startswith("HistGradientBoosting"):
        helper.make_attribute = plain_numbers  # without it there is no stock graph at all
    options = {id(model): {"zipmap": False}} if hasattr(model, "classes_") else {}
    proto = convert_sklearn(model, initial_types=types, options=options, target_opset=OPSETS)
    path.write_bytes(proto.SerializeToString())


def plain_numbers(key: str, value: Any, *rest: Any, **more: Any) -> Any:
    """Make an attribute of the numpy numbers and booleans that skl2onnx hands over and onnx refuses."""
    if isinstance(value, list | tuple | np.ndarray):
        value = [item.item() if isinstance(item, np.generic) else item for item in value]
        value = [int(item) if isinstance(item, bool) else item for item in value]
    return plain_attribute(key, value, *rest, **more)


if __name__ == "__main__":
    result = Result()
    result.make("onnxruntime fp32", "onnxruntime", to=STOCK, by=convert)
    result.tell()
