"""The float graph that quantizers start from, and the checks that a quantized one must pass.

OnnxModel -prepared-> ModelProto (opset 13 or newer, batch norms and constants folded, types known)
ModelProto -finished-> Variant
"""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections import Counter
from pathlib import Path

import onnx
from onnx import ModelProto

from edgeml import graph
from edgeml.artifacts import OnnxModel, Variant
from edgeml.errors import UnsupportedModel
from edgeml.graph.operators import MACS
from edgeml.graph.proto import opset_imports, subgraphs, walk
from edgeml.graph.trees import OPERATORS as TREES
from edgeml_runtime.session import Session  # before onnxruntime: it switches its telemetry off
from edgeml_runtime.wire import DeviceError

import onnxruntime  # isort: skip
from onnxruntime.capi import onnxruntime_pybind11_state as native  # isort: skip

MIN_OPSET = 13  # per-channel QuantizeLinear, and reductions whose axes are inputs
PRODUCTS = ("Conv", "Gemm", "MatMul")
REFUSALS: tuple[type[Exception], ...] = (
    *(native.Fail, native.InvalidArgument, native.InvalidGraph, native.NotImplemented, native.RuntimeException),
    *(native.InvalidProtobuf, RuntimeError, ValueError),
)


def prepared(model: OnnxModel) -> ModelProto:
    """Return the simplified float graph of `model`; every node has a name of its own.

    Without this step MatMul and Add stay apart, batch norms stay operators, and int8 is slower than float.
    Raises UnsupportedModel when onnxruntime refuses the graph or its opset cannot be raised.
    """
    return graph.load(_prepared(model.data))


@functools.lru_cache(maxsize=2)
def _prepared(data: bytes) -> bytes:
    proto = _raised(graph.load(data))
    _squeeze_biases(proto)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory(prefix="edgeml-quantize-") as folder:
        options.optimized_model_filepath = str(Path(folder, "basic.onnx"))
        try:
            onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except REFUSALS as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedModel(f"onnxruntime does not load the float graph: {reason}") from error
        simple = onnx.load(options.optimized_model_filepath)
    graph.annotate(simple)
    _squeeze_biases(simple)
    for index, node in enumerate(simple.graph.node):
        node.name = f"{node.op_type}.{index}"
    return bytes(simple.SerializeToString(deterministic=True))


def forget() -> None:
    """Drop the simplified graphs that `prepared` keeps for the next recipe."""
    _prepared.cache_clear()


def _raised(proto: ModelProto) -> ModelProto:
    version = opset_imports(proto).get("", 0)
    if version >= MIN_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, MIN_OPSET)
    except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnsupportedModel(
            f"the model uses opset {version}, int8 needs {MIN_OPSET}, and onnx cannot raise it: {reason}"
        ) from error


def _squeeze_biases(proto: ModelProto) -> None:
    """Make every Gemm bias of shape (1, n), which scikit-learn's networks have, one of shape (n,), in place."""
    biases = {node.input[2] for node in proto.graph.node if node.op_type == "Gemm" and len(node.input) > 2}
    for tensor in proto.graph.initializer:
        if tensor.name in biases and len(tensor.dims) == 2 and tensor.dims[0] == 1:
            del tensor.dims[0]


def without_products(proto: ModelProto, wanted: tuple[str, ...] = PRODUCTS) -> str:
    """Return why a recipe for the operators `wanted` has nothing to do in this graph, or ""."""
    operators = Counter(node.op_type for node in proto.graph.node)
    done = sorted(n for n in operators if n.startswith("Q") or n.endswith(("Integer", "NBits", "DequantizeLinear")))
    if done:
        return f"the model is quantized already ({', '.join(done)})"
    if any(operators[name] for name in wanted):
        return ""
    if any(operators[name] for name in TREES):
        return "a tree ensemble compares and adds, it has no matrix products to quantize: it ships as fp32"
    if operators["LinearClassifier"] or operators["LinearRegressor"]:
        return "a linear model is one small product inside a single operator: int8 would gain nothing, it ships as fp32"
    listed = ", ".join(sorted(operators.keys() & MACS.keys()) or sorted(operators)[:6])
    return f"none of {', '.join(wanted)} among the model's operators ({listed}): nothing to quantize"


def require(model: OnnxModel, wanted: tuple[str, ...] = PRODUCTS) -> None:
    """Raise UnsupportedModel when `model` has none of the operators `wanted`, or is quantized already."""
    if reason := without_products(graph.load(model), wanted):
        raise UnsupportedModel(reason)


def finished(proto: ModelProto, model: OnnxModel, recipe: str) -> Variant:
    """Return `proto` as the variant `recipe` of `model`; raise UnsupportedModel unless it is valid and loads."""
    del proto.metadata_props[:]
    del proto.graph.value_info[:]
    proto.graph.doc_string, proto.producer_name, proto.producer_version = "", "", ""
    _drop_unread(proto)
    _shorten(proto)
    made = graph.serialize(proto, source=model.digest, notes=model.notes)
    made = OnnxModel(made.data, made.source, made.notes, model.features, model.classes)
    if [s.name for s in graph.inputs(made)] != [s.name for s in graph.inputs(model)]:
        raise UnsupportedModel("the quantizer changed the inputs of the graph")
    try:
        Session(made.data)
    except DeviceError as error:
        raise UnsupportedModel(f"the quantized graph does not load: {error}") from error
    return Variant(made, recipe, model.digest)


def _drop_unread(proto: ModelProto) -> None:
    """Drop the weights that no node reads, in place."""
    read = {name for node in walk(proto.graph) for name in node.input}
    read |= {value.name for value in proto.graph.output}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    if len(kept) < len(proto.graph.initializer):
        del proto.graph.initializer[:]
        proto.graph.initializer.extend(kept)


def _shorten(proto: ModelProto) -> None:
    """Give the tensors inside short names and the nodes none, in place: of a small net they are a third."""
    if any(subgraphs(node) for node in proto.graph.node):  # their names would have to follow
        return
    kept = {value.name for value in (*proto.graph.input, *proto.graph.output)} | {""}
    inner = [tensor.name for tensor in proto.graph.initializer] + [n for node in proto.graph.node for n in node.output]
    free = (name for name in map("{:x}".format, itertools.count(10)) if name not in kept)
    short = {name: next(free) for name in dict.fromkeys(inner) if name not in kept}
    for tensor in proto.graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)
    for node in proto.graph.node:
        node.name = ""
        for names in (node.input, node.output):
            names[:] = [short.get(name, name) for name in names]
