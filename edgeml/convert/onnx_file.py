"""A finished .onnx file, checked and made fit for devices.

    model.onnx -> read -> OnnxModel

Nothing runs before it is known what it asks for: names, sizes and loops are bounded first. What can be put right is
put right with a note (`onnx_repair`); the rest is refused by name, in one line.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import ModelProto, TensorProto, version_converter

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.convert.onnx_repair import refuse_hollow, repair
from edgeml.convert.onnx_source import read_source
from edgeml.errors import UnsupportedModel
from edgeml.graph import proto as protos
from edgeml.graph.bounds import refuse_bombs
from edgeml.graph.stored import tensors
from edgeml_runtime.session import Session
from edgeml_runtime.wire import DeviceError

DOMAINS = {"", "ai.onnx", "ai.onnx.ml", "com.microsoft"}  # what the stock onnxruntime wheel carries
ELSEWHERE = {  # domains of onnxruntime's own that no file should hold, and what they mean
    "com.microsoft.nchwc": "it was optimised for another processor: give the model as it was exported",
    "com.ms.internal.nhwc": "it was optimised for another processor: give the model as it was exported",
    "ai.onnx.preview.training": "it is a training graph: export it for inference",
    "ai.onnx.training": "it is a training graph: export it for inference",
}
NEWEST_ML_OPSET = 4  # of ai.onnx.ml, in onnxruntime 1.19


def read(path: Path, *, trust: bool = False) -> OnnxModel:
    """Return the model in the file at `path`; `trust` is not needed, an ONNX file runs no code.

    Raises NotFound, or UnsupportedModel when the file is no ONNX model or one that devices cannot load.
    """
    source = read_source(path)
    try:
        return _checked(source.proto, path.name, source.digest)
    except UnicodeDecodeError as error:
        raise UnsupportedModel(f"{path.name} is damaged: a name in it is no text; export it again") from error


def _checked(proto: ModelProto, name: str, digest: str) -> OnnxModel:
    _refuse_foreign(proto, name)
    try:
        refuse_hollow(proto, list(tensors(proto)))
        proto, notes = repair(proto)
        _refuse_values(proto)
    except UnsupportedModel as error:
        raise UnsupportedModel(f"{name}: {error}") from error
    refuse_bombs(proto, name)
    proto, more = _for_boards(proto, name)
    try:
        model = graph.serialize(proto, source=digest, notes=(*notes, *more))
        graph.inputs(model), graph.outputs(model)
        Session(model.data)
    except (UnsupportedModel, DeviceError) as error:
        raise UnsupportedModel(f"{name} cannot run on a device: {' '.join(str(error).split())[:240]}") from error
    return model


def _refuse_foreign(proto: ModelProto, name: str) -> None:
    own = {(function.domain, function.name) for function in proto.functions}
    nodes = [*protos.walk(proto.graph), *(node for function in proto.functions for node in function.node)]
    foreign = {node.domain for node in nodes if (node.domain, node.op_type) not in own} - DOMAINS
    called = sorted({f"{node.domain}:{node.op_type}" for node in nodes if node.domain in foreign})
    if not foreign:
        return
    why = next((ELSEWHERE[domain] for domain in sorted(foreign) if domain in ELSEWHERE), "")
    raise UnsupportedModel(
        f"{name} needs {', '.join(called[:5])}{f' and {len(called) - 5} more' if len(called) > 5 else ''}, "
        f"which stock onnxruntime does not carry: {why or 'export it without custom operators'}"
    )


def _refuse_values(proto: ModelProto) -> None:
    """Refuse inputs and outputs that no device can feed or read, by name."""
    if not proto.graph.output:
        raise UnsupportedModel("it has no outputs: nothing would come of running it; export it again")
    for what, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for value in values:
            kind = value.type.WhichOneof("value")
            if kind not in ("tensor_type", None):
                kept = (kind or "").removesuffix("_type").replace("_", " ")
                raise UnsupportedModel(f"its {what} {value.name!r} is a {kept}, devices take tensors: export it so")
            element = value.type.tensor_type.elem_type
            if element not in graph.DTYPES and not (what == "output" and not element):
                known = ", ".join(graph.DTYPES.values())
                raise UnsupportedModel(
                    f"its {what} {value.name!r} is of type {_type_name(element)}, devices take {known}: convert it"
                )


def _type_name(element: int) -> str:
    return str(TensorProto.DataType.Name(element)).lower() if element in TensorProto.DataType.values() else str(element)


def _for_boards(proto: ModelProto, name: str) -> tuple[ModelProto, list[str]]:
    opsets = protos.opset_imports(proto)
    if opsets.get("ai.onnx.ml", 0) > NEWEST_ML_OPSET:
        raise UnsupportedModel(
            f"{name} uses ai.onnx.ml opset {opsets['ai.onnx.ml']}, "
            f"boards load at most {NEWEST_ML_OPSET}: export it with that"
        )
    if opsets.get("", 0) <= graph.MAX_OPSET:
        return proto, []
    note = f"opset {opsets['']} rewritten as {graph.MAX_OPSET}, the newest that every board loads"
    return _older(proto, name, opsets[""]), [note]


def _older(proto: ModelProto, name: str, opset: int) -> ModelProto:
    protos.tidy(proto)
    try:
        return version_converter.convert_version(proto, graph.MAX_OPSET)
    except (RuntimeError, version_converter.ConvertError, onnx.checker.ValidationError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UnsupportedModel(
            f"{name} uses opset {opset} and cannot be rewritten as {graph.MAX_OPSET}, the newest that every board "
            f"loads ({reason}): export it with opset {graph.MAX_OPSET}"
        ) from error
