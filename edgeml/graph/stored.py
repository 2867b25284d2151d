"""Does a stored tensor hold what its type and shape declare? Asked before anything allocates by the declaration.

TensorProto -> declared_bytes, why_not
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

FOUR_BITS = frozenset({TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1})
TWO_BITS = frozenset(getattr(TensorProto, name) for name in ("INT2", "UINT2") if hasattr(TensorProto, name))
BITS: dict[int, int] = {
    **dict.fromkeys((TensorProto.INT8, TensorProto.UINT8, TensorProto.BOOL), 8),
    **dict.fromkeys(
        (
            TensorProto.FLOAT8E4M3FN,
            TensorProto.FLOAT8E4M3FNUZ,
            TensorProto.FLOAT8E5M2,
            TensorProto.FLOAT8E5M2FNUZ,
            TensorProto.FLOAT8E8M0,
        ),
        8,
    ),
    **dict.fromkeys((TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.INT16, TensorProto.UINT16), 16),
    **dict.fromkeys((TensorProto.FLOAT, TensorProto.INT32, TensorProto.UINT32), 32),
    **dict.fromkeys((TensorProto.DOUBLE, TensorProto.INT64, TensorProto.UINT64, TensorProto.COMPLEX64), 64),
    TensorProto.COMPLEX128: 128,
    **dict.fromkeys(FOUR_BITS, 4),
    **dict.fromkeys(TWO_BITS, 2),
}
# where a type keeps its values when they are not raw, and how many entries an element takes
FIELDS: dict[int, tuple[str, int]] = {
    TensorProto.FLOAT: ("float_data", 1),
    TensorProto.COMPLEX64: ("float_data", 2),
    TensorProto.DOUBLE: ("double_data", 1),
    TensorProto.COMPLEX128: ("double_data", 2),
    TensorProto.INT64: ("int64_data", 1),
    TensorProto.UINT32: ("uint64_data", 1),
    TensorProto.UINT64: ("uint64_data", 1),
    TensorProto.STRING: ("string_data", 1),
}
MOST_AXES = 32  # numpy takes 64, onnxruntime's kernels far fewer


def declared_bytes(tensor: TensorProto) -> int:
    """Return the bytes that the shape and type of `tensor` ask for when stored raw; 0 for text and unknown types."""
    return math.ceil(math.prod(tensor.dims) * BITS.get(tensor.data_type, 0) / 8) if _shaped(tensor) else 0


def why_not(tensor: TensorProto) -> str:
    """Return what is wrong with `tensor`, "" when its values are as many as its shape says."""
    if not _shaped(tensor):
        return f"has the shape {list(tensor.dims)[:8]}"
    if tensor.data_type not in BITS and tensor.data_type != TensorProto.STRING:
        return f"is of the unknown type {tensor.data_type}"
    elements = math.prod(tensor.dims)
    if tensor.HasField("raw_data"):
        if tensor.data_type == TensorProto.STRING:
            return "keeps text as raw bytes"
        if len(tensor.raw_data) != (wanted := declared_bytes(tensor)):
            return f"has {len(tensor.raw_data):,} bytes, its shape {list(tensor.dims)} needs {wanted:,}"
        return ""
    field, entries = FIELDS.get(tensor.data_type, ("int32_data", 1))
    wanted = math.ceil(elements * BITS[tensor.data_type] / 8) if _packed(tensor) else elements * entries
    if (found := len(getattr(tensor, field))) != wanted:
        return f"has {found:,} values, its shape {list(tensor.dims)} needs {wanted:,}"
    return ""


def tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """Return every tensor that `proto` holds: weights, sparse ones, attributes, those of subgraphs and functions."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        for node in function.node:
            yield from _of_node(node)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _of_node(node)


def _of_node(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        if attribute.HasField("g"):
            yield from _of_graph(attribute.g)
        if attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        yield from attribute.tensors
        for graph in attribute.graphs:
            yield from _of_graph(graph)
        for sparse in attribute.sparse_tensors:
            yield from (sparse.values, sparse.indices)


def _shaped(tensor: TensorProto) -> bool:
    return len(tensor.dims) <= MOST_AXES and all(size >= 0 for size in tensor.dims)


def _packed(tensor: TensorProto) -> bool:
    return tensor.data_type in FOUR_BITS or tensor.data_type in TWO_BITS
