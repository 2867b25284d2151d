"""Which recipes make sense for a graph: what `auto` asks for."""

from __future__ import annotations

import math
from collections import Counter

from onnx import ModelProto

from edgeml.graph.proto import attribute
from edgeml.graph.trees import OPERATORS as TREES
from edgeml.quantize.weights import HOLDERS, MIN_INT4

STATIC = ("int8-static-u8s8", "int8-static-s8s8")
MANY_WEIGHTS = 1 << 18  # of one matrix: its bytes, not its products, take the time


def suitable(proto: ModelProto) -> list[str]:
    """Return the precisions and recipe names that may gain something on this graph, the likeliest first.

    Float16 is left out: it is slower on every processor listed here, and int8 is smaller.
    """
    operators = Counter(node.op_type for node in proto.graph.node)
    wanted: list[str] = []
    if operators.keys() & set(TREES) or operators["TfIdfVectorizer"]:
        wanted.append("compact")
    if operators.keys() & {"LSTM", "GRU"}:
        wanted.append("dynamic")
    if operators["Conv"]:
        wanted += [*STATIC, "mixed"]
        wanted += ["equalized"] if _depthwise(proto) else []
    elif operators["Gemm"] or operators["MatMul"]:
        wanted += [*STATIC, "mixed", "dynamic"]
        largest = _largest_matrix(proto)
        wanted += ["int4"] if largest >= MIN_INT4 else []
        wanted += ["per-tensor"] if largest >= MANY_WEIGHTS else []
        wanted += ["smooth"] if _attends(proto) else []
    if operators.keys() & HOLDERS.keys():
        wanted.append("weights8")
    return list(dict.fromkeys(wanted))


def _attends(proto: ModelProto) -> bool:
    weights = {tensor.name for tensor in proto.graph.initializer}
    return any(n.op_type == "MatMul" and not weights & set(n.input) for n in proto.graph.node)


def _depthwise(proto: ModelProto) -> bool:
    return any(n.op_type == "Conv" and int(str(attribute(n, "group", 1))) > 1 for n in proto.graph.node)


def _largest_matrix(proto: ModelProto) -> int:
    read = {n.input[1] for n in proto.graph.node if n.op_type in ("Gemm", "MatMul")}
    return max((math.prod(t.dims) for t in proto.graph.initializer if t.name in read), default=0)
