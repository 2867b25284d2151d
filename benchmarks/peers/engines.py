"""How each runtime is loaded and called for one row: path -> (prepare a row, call, label of the answer).

Packages are imported by name when their engine is asked for: no environment has them all.
"""

from __future__ import annotations

import ctypes
import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
Row = Mapping[str, np.ndarray]
Engine = tuple[Callable[[Row], Any], Callable[[Any], Any], Callable[[Any], int]]
X = "x"  # the one array of rows that are no table
NUMERIC, CATEGORICAL = "numeric", "categorical"


def label_of(answer: Any) -> int:
    """Return the class index in `answer`: of the largest of several scores, or whether a single one is positive."""
    scores = np.asarray(answer, np.float32).reshape(-1)
    return int(scores.argmax()) if len(scores) > 1 else int(scores[0] >= 0)


def feeds_of(names: Sequence[str], row: Row) -> dict[str, np.ndarray]:
    """Return `row` by the input names of a graph: the one array, or the table's columns, each alone or stacked."""
    if X in row:
        return {names[0]: np.ascontiguousarray(row[X])}
    columns = {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in row.items()}
    kinds = {NUMERIC: "f", CATEGORICAL: "O"}
    stacked = {name: [c for c in columns.values() if c.dtype.kind == kind] for name, kind in kinds.items()}
    return {
        name: np.stack(stacked[name], axis=1) if name in stacked else columns[name].reshape(-1, 1) for name in names
    }


def _scores_at(outputs: Sequence[Any]) -> int:
    """Return which output holds the scores: the last one of floats."""
    return max((i for i, node in enumerate(outputs) if "float" in node.type), default=0)


def onnxruntime(path: str) -> Engine:
    """Run a graph as most programs do: one thread, `InferenceSession.run`."""
    ort = importlib.import_module("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names, at = [node.name for node in session.get_inputs()], _scores_at(session.get_outputs())
    return lambda row: feeds_of(names, row), lambda feeds: session.run(None, feeds), lambda out: label_of(out[at])


def edgeml(path: str) -> Engine:
    """Run a graph as edgeml's agent does."""
    session = importlib.import_module("edgeml_runtime.session").Session(path)
    names = [spec.name for spec in session.inputs]
    floats = [spec.name for spec in session.outputs if spec.dtype.startswith("float")]
    last = floats[-1]
    if len(names) == 1:
        return lambda row: feeds_of(names, row)[names[0]], session.predict, lambda out: label_of(out[last])
    return lambda row: feeds_of(names, row), session.run, lambda out: label_of(out[last])


def edgeml_rows(path: str) -> Engine:
    """Run a graph as edgeml's gates do: many rows in a call."""
    session = importlib.import_module("edgeml_runtime.session").Session(path)
    names, last = [spec.name for spec in session.inputs], session.outputs[-1].name
    return lambda row: feeds_of(names, row), session.run, lambda out: label_of(out[last])


def litert(path: str) -> Engine:
    """Run a flatbuffer with the XNNPACK delegate that the package applies by default."""
    interpreter = importlib.import_module("ai_edge_litert.interpreter").Interpreter(path, num_threads=1)
    interpreter.allocate_tensors()
    given, made = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    read = interpreter.tensor(made)

    def call(array: np.ndarray) -> Any:
        interpreter.set_tensor(given, array)
        interpreter.invoke()
        return read()

    return lambda row: np.ascontiguousarray(row[X]), call, label_of


def openvino(path: str) -> Engine:
    """Run an OpenVINO model in float32 or as quantized, tuned for latency."""
    ov = importlib.import_module("openvino")
    how = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.Core().compile_model(path, "CPU", how).create_infer_request()
    outputs = request.model_outputs
    at = max(
        (i for i, o in enumerate(outputs) if "float" in o.element_type.get_type_name() or "f32" in str(o)), default=0
    )

    def call(array: np.ndarray) -> Any:
        request.infer([array], share_inputs=True, share_outputs=True)
        return request.get_output_tensor(at).data

    return lambda row: np.ascontiguousarray(row[X]), call, label_of


def scikit_learn(path: str) -> Engine:
    """Run the estimator itself, on a frame where it learned from one."""
    model = importlib.import_module("joblib").load(path)
    frame = importlib.import_module("pandas").DataFrame
    call = getattr(model, "predict_proba", None) or getattr(model, "decision_function", None) or model.predict
    return lambda row: row[X] if X in row else frame(_with_missing(row)), call, label_of


def _with_missing(row: Row) -> dict[str, Any]:
    return {name: array.astype(object) if array.dtype.kind == "U" else array for name, array in row.items()}


def treelite(path: str) -> Engine:
    """Run a treelite checkpoint by its own interpreter."""
    gtil, model = importlib.import_module("treelite.gtil"), importlib.import_module("treelite").Model.deserialize(path)
    outlier = Path(path).name.startswith("iforest")
    return (
        lambda row: np.ascontiguousarray(row[X]),
        lambda array: gtil.predict(model, array, nthread=1),
        lambda out: _treelite_label(out, outlier=outlier),
    )


def tl2cgen(path: str) -> Engine:
    """Run the C code that tl2cgen made of a treelite model."""
    package = importlib.import_module("tl2cgen")
    predictor = package.Predictor(path, nthread=1)
    outlier = Path(path).name.startswith("iforest")
    return (
        lambda row: package.DMatrix(np.ascontiguousarray(row[X])),
        predictor.predict,
        lambda out: _treelite_label(out, outlier=outlier),
    )


def _treelite_label(answer: Any, *, outlier: bool) -> int:
    return int(np.asarray(answer).reshape(-1)[0] <= 0.5) if outlier else label_of(answer)


def m2cgen(path: str) -> Engine:
    """Run the C code that m2cgen made, by ctypes; the number of classes is in the file's name."""
    score = ctypes.CDLL(path).score
    classes = int(Path(path).stem.rsplit("-", 1)[1])
    double = ctypes.POINTER(ctypes.c_double)
    score.restype, score.argtypes = None, [double, double]
    out = np.zeros(classes)
    pointer = out.ctypes.data_as(double)

    def call(given: tuple[Any, np.ndarray]) -> np.ndarray:
        score(given[0], pointer)
        return out

    def prepare(row: Row) -> tuple[Any, np.ndarray]:
        array = np.ascontiguousarray(row[X][0], np.float64)
        return array.ctypes.data_as(double), array

    return prepare, call, label_of


ENGINES: dict[str, Callable[[str], Engine]] = {
    engine.__name__: engine
    for engine in (onnxruntime, edgeml, edgeml_rows, litert, openvino, scikit_learn, treelite, tl2cgen, m2cgen)
}
