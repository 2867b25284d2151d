"""A finished .onnx file, checked and made fit for devices.

    model.onnx -> read -> OnnxModel

Domains that stock onnxruntime does not carry are refused by name. ZipMap outputs, weights listed as inputs and an
opset that is too new are repaired where they can be, each with a note.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import version_converter

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.errors import NotFound, UnsupportedModel
from edgeml.graph import proto as protos
from edgeml_runtime.session import Session
from edgeml_runtime.wire import DeviceError

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # what the stock onnxruntime wheel carries
NEWEST_ML_OPSET = 4  # of ai.onnx.ml, in onnxruntime 1.19


def read(path: Path, *, trust: bool = False) -> OnnxModel:
    """Return the model in the file at `path`; `trust` is not needed, an ONNX file runs no code.

    Raises NotFound, or UnsupportedModel when the file is no ONNX model or one that devices cannot load.
    """
    proto = _parse(path)
    _refuse_foreign(proto, path.name)
    notes: list[str] = []
    proto = _repair(proto, path.name, notes)
    model = graph.serialize(proto, source=hashlib.sha256(path.read_bytes()).hexdigest(), notes=tuple(notes))
    try:
        graph.inputs(model), graph.outputs(model)
        Session(model.data)
    except (UnsupportedModel, DeviceError) as error:
        raise UnsupportedModel(f"{path.name} cannot run on a device: {' '.join(str(error).split())[:240]}") from error
    return model


def _parse(path: Path) -> onnx.ModelProto:
    if not path.is_file():
        raise NotFound(f"no model at {path}: check the path")
    size = path.stat().st_size
    try:
        proto = onnx.load(path)
    except DecodeError as error:
        raise UnsupportedModel(
            f"{path.name} ({size:,} bytes) is not an ONNX model, or cut short: export it again"
        ) from error
    except (onnx.checker.ValidationError, FileNotFoundError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UnsupportedModel(
            f"{path.name}: its external weights cannot be read: {reason}; put them beside it"
        ) from error
    if not proto.graph.node or not proto.graph.output or not proto.opset_import:
        raise UnsupportedModel(f"{path.name} ({size:,} bytes) holds no ONNX graph: export it again")
    return proto


def _refuse_foreign(proto: onnx.ModelProto, name: str) -> None:
    own = {(function.domain, function.name) for function in proto.functions}
    nodes = [node for node in protos.walk(proto.graph) if (node.domain, node.op_type) not in own]
    foreign = sorted({f"{node.domain}:{node.op_type}" for node in nodes if node.domain not in DOMAINS})
    if foreign:
        raise UnsupportedModel(
            f"{name} needs {', '.join(foreign[:5])}, which stock onnxruntime does not carry: "
            f"export it without custom operators"
        )


def _repair(proto: onnx.ModelProto, name: str, notes: list[str]) -> onnx.ModelProto:
    weights = {tensor.name for tensor in proto.graph.initializer}
    kept = [value for value in proto.graph.input if value.name not in weights]
    if len(kept) < len(proto.graph.input):
        notes.append(f"{len(proto.graph.input) - len(kept)} weights were listed as inputs: fixed to their values")
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
    notes += _without_zipmap(proto.graph)
    opsets = protos.opset_imports(proto)
    if opsets.get("ai.onnx.ml", 0) > NEWEST_ML_OPSET:
        raise UnsupportedModel(
            f"{name} uses ai.onnx.ml opset {opsets['ai.onnx.ml']}, "
            f"boards load at most {NEWEST_ML_OPSET}: export it with that"
        )
    if opsets.get("", 0) > graph.MAX_OPSET:
        proto = _older(proto, name, opsets[""])
        notes.append(f"opset {opsets['']} rewritten as {graph.MAX_OPSET}, the newest that every board loads")
    return proto


def _older(proto: onnx.ModelProto, name: str, opset: int) -> onnx.ModelProto:
    protos.tidy(proto)
    try:
        return version_converter.convert_version(proto, graph.MAX_OPSET)
    except (RuntimeError, version_converter.ConvertError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UnsupportedModel(
            f"{name} uses opset {opset} and cannot be rewritten as {graph.MAX_OPSET}, the newest that every board "
            f"loads ({reason}): export it with opset {graph.MAX_OPSET}"
        ) from error


def _without_zipmap(model: onnx.GraphProto) -> list[str]:
    """Make each ZipMap output the matrix of probabilities that went into it."""
    shortened = []
    for node in [node for node in model.node if node.op_type == "ZipMap"]:
        matrix, zipped = node.input[0], node.output[0]
        output = next(value for value in model.output if value.name == zipped)
        output.type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [None, None]))
        model.node.remove(node)
        for other in model.node:
            other.output[:] = [zipped if name == matrix else name for name in other.output]
            other.input[:] = [zipped if name == matrix else name for name in other.input]
        shortened.append(f"output {zipped!r} was a map (ZipMap): now the matrix of its values")
    return shortened
