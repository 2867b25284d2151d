"""Another opset for a graph: up or down to what every listed board loads.

ModelProto -> restamp -> candidates in the opset asked for; whoever asks compares the answers, no converter does
"""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto, checker, defs, version_converter

from edgeml.graph import proto as protos

OLDEST_OPSET = 7  # the first that onnxruntime promises to run


def restamp(proto: ModelProto, opset: int) -> Iterator[ModelProto]:
    """Return `proto` written in `opset`, the surest way first: nothing where there is none.

    Only the number changes where every operator is defined alike in both; else onnx's converter rewrites them, and
    where it has no adapter the number alone is tried if the result is valid. Other domains stay as they are.
    """
    old = protos.opset_imports(proto).get("", opset)
    alone = _numbered(proto, opset)
    if old == opset or _alike(proto, old, opset):
        yield alone
        return
    copy = _numbered(proto, old)
    protos.tidy(copy)
    try:
        made = version_converter.convert_version(copy, opset)
    except Exception:
        made = None
    if made is not None and [v.name for v in made.graph.output] == [v.name for v in proto.graph.output]:
        made.metadata_props.extend(proto.metadata_props)
        del made.graph.value_info[:]  # the converter writes one for every tensor
        yield made
    try:
        checker.check_model(alone, full_check=True)
    except Exception:
        return
    yield alone


def _numbered(proto: ModelProto, opset: int) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(proto)
    for entry in copy.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = opset
    return copy


def _alike(proto: ModelProto, old: int, new: int) -> bool:
    """Say whether every operator of ONNX itself in `proto` has one definition from the older opset to the newer."""
    low, high = sorted((old, new))
    kinds = {node.op_type for node in protos.walk(proto.graph) if node.domain in ("", "ai.onnx")}
    try:
        return all(defs.get_schema(kind, high).since_version <= low for kind in kinds)
    except defs.SchemaError:
        return False
