"""Static int8 in QDQ form: activation ranges from calibration rows, by onnxruntime's own tools."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from onnx import ModelProto

from edgeml import graph
from edgeml.artifacts import FP32, OnnxModel, Rows, Skipped, Variant
from edgeml.errors import DataError, UnsupportedModel
from edgeml.graph.operators import MACS
from edgeml.graph.proto import opset_imports
from edgeml.graph.trees import OPERATORS as TREES
from edgeml.quantize.recipe import Recipe, recipes_for
from edgeml_runtime.session import Session  # before onnxruntime: it switches its telemetry off
from edgeml_runtime.wire import DeviceError

import onnxruntime  # isort: skip
from onnxruntime.capi import onnxruntime_pybind11_state as native  # isort: skip
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static  # isort: skip
from onnxruntime.quantization.shape_inference import quant_pre_process  # isort: skip

MIN_CALIBRATION_ROWS = 32  # fewer rows leave the activation ranges to chance
MAX_CALIBRATION_ROWS = 1024  # min and max hardly move beyond, and every batch costs time
BATCH_ROWS = 64
MIN_OPSET = 13  # per-channel QuantizeLinear
QUANTIZABLE = ("Conv", "Gemm", "MatMul")
OPTIONS = {
    "ActivationSymmetric": False,
    "WeightSymmetric": True,
}
STOPS: tuple[type[Exception], ...] = (  # what onnxruntime's tools raise on a graph they cannot handle
    *(native.Fail, native.InvalidArgument, native.InvalidGraph, native.NotImplemented, native.RuntimeException),
    *(RuntimeError, ValueError, KeyError, IndexError, AssertionError, TypeError, NotImplementedError, AttributeError),
)
TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}

onnxruntime.set_default_logger_severity(3)  # its tools make sessions of their own, which warn about every tidy-up


def quantize(model: OnnxModel, calibration: Rows, precisions: Sequence[str]) -> list[Variant | Skipped]:
    """Return the fp32 variant and, for every other recipe in `precisions`, a variant or why there is none.

    Raises DataError when there are too few calibration rows for a model that can be quantized.
    """
    reference = Variant(model, FP32, model.digest)
    recipes = recipes_for(precisions)
    if reason := _nothing_to_quantize(graph.load(model)):
        return [reference, *(Skipped(recipe.name, reason) for recipe in recipes)]
    if recipes and len(calibration) < MIN_CALIBRATION_ROWS:
        raise DataError(
            f"{len(calibration)} calibration rows, but {recipes[0].name} needs {MIN_CALIBRATION_ROWS}: "
            f"pass more rows of the training set, or ask for fp32 only"
        )
    return [reference, *(_static(model, calibration, recipe) for recipe in recipes)]


def _nothing_to_quantize(proto: ModelProto) -> str:
    """Return why int8 has nothing to do in this graph, or ""."""
    operators = Counter(node.op_type for node in proto.graph.node)
    if done := sorted(name for name in operators if name.startswith("Q") or name.endswith("Integer")):
        return f"the model is quantized already ({', '.join(done)})"
    if any(operators[name] for name in QUANTIZABLE):
        version = opset_imports(proto).get("", 0)
        return f"the model uses opset {version}, int8 needs {MIN_OPSET}" if version < MIN_OPSET else ""
    if any(operators[name] for name in TREES):
        return "a tree ensemble compares and adds, it has no matrix products to quantize: it ships as fp32"
    if operators["LinearClassifier"] or operators["LinearRegressor"]:
        return "a linear model is one small product inside a single operator: int8 would gain nothing, it ships as fp32"
    listed = ", ".join(sorted(operators.keys() & MACS.keys()) or sorted(operators)[:6])
    return f"none of {', '.join(QUANTIZABLE)} among the model's operators ({listed}): nothing to quantize"


def _static(model: OnnxModel, calibration: Rows, recipe: Recipe) -> Variant | Skipped:
    with tempfile.TemporaryDirectory(prefix="edgeml-quantize-") as folder:
        source, prepared, written = (Path(folder, f"{name}.onnx") for name in ("source", "prepared", "quantized"))
        source.write_bytes(_annotated(model.data))
        try:
            # without this step MatMul + Add stay apart and int8 is slower than float; given a proto
            # instead of a path, onnxruntime 1.32 only logs that its optimizer failed, and goes on
            quant_pre_process(source, prepared, skip_symbolic_shape=True)
            prepared.write_bytes(_annotated(prepared.read_bytes()))
            quantize_static(
                prepared,
                written,
                _Reader(model, calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTIZABLE),
                per_channel=recipe.per_channel,
                activation_type=TYPES[recipe.activations],
                weight_type=QuantType.QInt8,
                extra_options=OPTIONS,
            )
        except STOPS as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            return Skipped(recipe.name, f"onnxruntime's quantizer stopped with {type(error).__name__}: {reason}")
        return _checked(written.read_bytes(), model, recipe)


def _annotated(data: bytes) -> bytes:
    """Return the graph in the form the quantizer understands.

    It skips a tensor without a type, with a warning only, and stops at a Gemm bias of shape (1, n),
    which is what scikit-learn's networks have.
    """
    proto = graph.load(data)
    graph.annotate(proto)
    biases = {node.input[2] for node in proto.graph.node if node.op_type == "Gemm" and len(node.input) > 2}
    for tensor in proto.graph.initializer:
        if tensor.name in biases and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]
    annotated: bytes = proto.SerializeToString()
    return annotated


def _checked(data: bytes, model: OnnxModel, recipe: Recipe) -> Variant | Skipped:
    """Return the written graph as a variant if it is valid, quantized and smaller in kind than a twin."""
    proto = graph.load(data)
    del proto.metadata_props[:]
    quantized = sum(node.op_type == "QuantizeLinear" for node in proto.graph.node)
    if not quantized:
        return Skipped(recipe.name, "the quantizer changed nothing: the result would be a twin of fp32")
    try:
        made = graph.serialize(proto, source=model.digest, notes=model.notes)
    except UnsupportedModel as error:
        return Skipped(recipe.name, f"the quantized graph is not valid: {error}")
    if [s.name for s in graph.inputs(made)] != [s.name for s in graph.inputs(model)]:
        return Skipped(recipe.name, "the quantizer changed the inputs of the graph")
    try:
        Session(made.data)
    except DeviceError as error:
        return Skipped(recipe.name, f"the quantized graph does not load: {error}")
    return Variant(made, recipe.name, model.digest)


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration rows in batches that the graph accepts: all of its fixed first axis, or `BATCH_ROWS`."""

    def __init__(self, model: OnnxModel, rows: Rows) -> None:
        self._batches = _batches(model, rows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _batches(model: OnnxModel, rows: Rows) -> Iterator[dict[str, np.ndarray]]:
    used = rows.take(np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MAX_CALIBRATION_ROWS)).astype(int)))
    fixed = {spec.shape[0] for spec in graph.inputs(model) if spec.shape and spec.shape[0] > 0}
    size = min(fixed, default=BATCH_ROWS)
    for start in range(0, len(used) - (size - 1 if fixed else 0), size):
        yield dict(used.take(slice(start, start + size)).inputs)
