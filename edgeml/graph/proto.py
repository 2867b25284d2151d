"""ONNX protos in and out: parse, tidy, check, serialize the same bytes for the same graph."""

from __future__ import annotations

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto

from edgeml.artifacts import OnnxModel
from edgeml.errors import UnsupportedModel

MAX_OPSET = 21  # the newest that onnxruntime 1.19 loads, the last one for Python 3.9 on a board: written by default
NEWEST_OPSET = 28  # the newest that any onnxruntime in `opsets` loads
MAX_IR = 10


def load(model: OnnxModel | bytes) -> ModelProto:
    """Return the proto of `model`; raise UnsupportedModel when the bytes are no ONNX model."""
    data = model if isinstance(model, bytes) else model.data
    try:
        proto = onnx.load_from_string(data)
    except DecodeError as error:
        raise UnsupportedModel(f"{len(data):,} bytes that are not an ONNX model: export the model again") from error
    if not proto.graph.node and not proto.graph.output:
        raise UnsupportedModel(f"{len(data):,} bytes hold no ONNX graph: export the model again")
    return proto


def serialize(proto: ModelProto, *, source: str, notes: tuple[str, ...] = ()) -> OnnxModel:
    """Return `proto` as a checked artifact made from `source`; equal graphs give equal bytes.

    `proto` is tidied in place: one opset per domain, only domains in use, IR at most `MAX_IR`.
    Raises UnsupportedModel when the graph is not valid or asks for a newer opset than boards load.
    """
    tidy(proto)
    check(proto)
    return OnnxModel(proto.SerializeToString(deterministic=True), source, notes)


def tidy(proto: ModelProto) -> None:
    """Drop doubled and unused opset imports and cap the IR version, in place."""
    opsets = opset_imports(proto)
    used = {_domain(node) for node in walk(proto.graph)} | {_domain(f) for f in proto.functions} | {""}
    for function in proto.functions:
        used |= {_domain(node) for node in function.node}
    del proto.opset_import[:]
    for domain in sorted(used & opsets.keys()):
        proto.opset_import.append(onnx.helper.make_opsetid(domain, opsets[domain]))
    proto.ir_version = min(proto.ir_version or MAX_IR, MAX_IR)


def check(proto: ModelProto) -> None:
    """Raise UnsupportedModel, saying why, unless `proto` is valid and within `NEWEST_OPSET`.

    What a given board loads is another question: see `opsets`.
    """
    version = opset_imports(proto).get("", MAX_OPSET)
    if version > NEWEST_OPSET:
        raise UnsupportedModel(f"the model uses opset {version}, boards load at most {NEWEST_OPSET}: export it again")
    try:
        onnx.checker.check_model(proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise UnsupportedModel(f"not a valid ONNX graph: {first}") from error


def opset_imports(proto: ModelProto) -> dict[str, int]:
    """Return the opset of every domain; the newest one where a domain is listed twice."""
    found: dict[str, int] = {}
    for entry in proto.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        found[domain] = max(entry.version, found.get(domain, 0))
    return found


def walk(graph: GraphProto) -> list[NodeProto]:
    """Return every node of `graph`, those of the subgraphs of Loop, If and Scan included."""
    nodes: list[NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        for subgraph in subgraphs(node):
            nodes.extend(walk(subgraph))
    return nodes


def subgraphs(node: NodeProto) -> list[GraphProto]:
    """Return the graphs that `node` holds as attributes."""
    single = [a.g for a in node.attribute if a.type == AttributeProto.GRAPH]
    return single + [g for a in node.attribute if a.type == AttributeProto.GRAPHS for g in a.graphs]


def attribute(node: NodeProto, name: str, default: object = None) -> object:
    """Return the value of the attribute `name` of `node`, or `default`."""
    return next((onnx.helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _domain(item: NodeProto | onnx.FunctionProto) -> str:
    return "" if item.domain == "ai.onnx" else item.domain
