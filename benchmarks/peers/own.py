"""edgeml by its public doors: the source read, and every precision that suits its graph."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.peers.job import FOLDER, Result, age, info, rows
from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.convert import read_model
from edgeml.errors import UnsupportedModel
from edgeml.quantize import Options, quantize
from edgeml_runtime.session import Session

BUDGET_S = float(os.environ.get("EDGEML_BUDGET_S", "60"))
PRECISIONS = os.environ.get("EDGEML_PRECISIONS", "auto").split(",")


def calibration(model: OnnxModel) -> Rows:
    """Return the calibration rows by the inputs' names; a table's columns alone or stacked."""
    arrays = rows("calibration")
    target = np.load(FOLDER / "calibration_target.npy")
    session = Session(model.data)
    names = [spec.name for spec in session.inputs]
    if "x" in arrays:
        return Rows({names[0]: arrays["x"]}, target)
    columns = {n: a.astype(object) if a.dtype.kind == "U" else a for n, a in arrays.items()}
    stacked = {
        "numeric": [a for a in columns.values() if a.dtype.kind == "f"],
        "categorical": [a for a in columns.values() if a.dtype.kind == "O"],
    }
    inputs = {n: np.stack(stacked[n], axis=1) if n in stacked else columns[n].reshape(-1, 1) for n in names}
    return Rows(inputs, target)


def read(path: Path) -> OnnxModel:
    """Return the model of the file, or of the estimator in it where the file's door does not take its kind."""
    try:
        return read_model(path, trust=True)
    except UnsupportedModel:
        arrays = rows("calibration")
        if "x" not in arrays or path.suffix != ".joblib":
            raise
        estimator = importlib.import_module("joblib").load(path)
        room = importlib.import_module("edgeml.convert.sklearn")  # only here: its imports take a second
        model: OnnxModel = room.convert(estimator, {"numeric": arrays["x"].shape[1]}, source=FOLDER.name)
        return model


def compile_all(result: Result) -> None:
    """Write the float graph and each variant with the seconds until it alone was there."""
    suffix = "keras" if info()["kind"] == "keras" else "joblib"
    model = read(FOLDER / f"source.{suffix}")
    path = FOLDER / "edgeml-fp32.onnx"
    path.write_bytes(model.data)
    base = age()
    result.add("edgeml fp32", "edgeml", path=path, seconds=base)
    given = calibration(model)
    marks: list[tuple[str, float]] = []
    options = Options(max_drop=0.01, budget_s=BUDGET_S, progress=lambda name: marks.append((name, time.perf_counter())))
    start = time.perf_counter()
    made = quantize(model, given, PRECISIONS, options)
    end = time.perf_counter()
    ends = [at for _, at in marks[1:]] + [end]
    spent = {name: after - at for (name, at), after in zip(marks, ends, strict=False)}
    for item in made:
        own = next((s for name, s in spent.items() if item.recipe.startswith(name)), end - start)
        path = FOLDER / f"edgeml-{item.recipe}.onnx"
        if not isinstance(item, Variant):
            print(f"  edgeml {item.recipe}: {item.reason}", file=sys.stderr)
        elif item.recipe != "fp32":
            path.write_bytes(item.model.data)
            result.add(f"edgeml {item.recipe}", "edgeml", path=path, seconds=base + own)
    result.files[0]["all_seconds"] = round(base + end - start, 3)


if __name__ == "__main__":
    answer = Result()
    try:
        compile_all(answer)
    except Exception as error:  # a refusal is a result too
        name = FOLDER / "edgeml-fp32.onnx"
        answer.add("edgeml fp32", "edgeml", path=name, seconds=age(), why=f"{type(error).__name__}: {str(error)[:300]}")
    answer.tell()
