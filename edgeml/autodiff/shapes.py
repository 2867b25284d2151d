"""What is known of every tensor before a graph runs: element type and shape.

A dimension is an int, a symbol (equal symbols are equal sizes) or None. onnx infers the plain
operators; the preprocessing operators of ai.onnx.ml that it knows nothing about are replaced, in a
copy made for inference only, by plain ones of the same type and shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Dim = int | str | None
Shape = tuple[Dim, ...]
ROWS = "rows"  # the symbol of the batch axis

_SAME_SHAPE = {"Scaler": TensorProto.FLOAT, "Normalizer": TensorProto.FLOAT, "Imputer": None}  # None: same type too


@dataclass(frozen=True)
class Known:
    """Element types and shapes by tensor name; a name that is absent is unknown."""

    dtypes: Mapping[str, int]
    shapes: Mapping[str, Shape]


def infer(model: ModelProto) -> Known:
    """Return what can be known of the tensors of `model`, whose inputs have the rows on their first axis."""
    copy = ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    del copy.graph.output[:]  # declared output shapes are claims; the inferred ones are facts
    nodes = [_plain(node, copy.graph) for node in copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    inferred = onnx.shape_inference.infer_shapes(copy, data_prop=True).graph
    dtypes: dict[str, int] = {}
    shapes: dict[str, Shape] = {}
    for value in [*inferred.input, *inferred.value_info]:
        tensor = value.type.tensor_type
        dtypes[value.name] = tensor.elem_type
        if tensor.HasField("shape"):
            shapes[value.name] = tuple(_dim(dim) for dim in tensor.shape.dim)
    for constant in inferred.initializer:
        dtypes[constant.name], shapes[constant.name] = constant.data_type, tuple(constant.dims)
    return Known(dtypes, shapes)


def _dim(dim: onnx.TensorShapeProto.Dimension) -> Dim:
    return dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None


def _plain(node: NodeProto, graph: GraphProto) -> NodeProto:
    if node.domain != "ai.onnx.ml":
        return node
    if node.op_type in _SAME_SHAPE:
        to = _SAME_SHAPE[node.op_type]
        if to is None:
            return helper.make_node("Identity", node.input[:1], node.output)
        return helper.make_node("Cast", node.input[:1], node.output, to=to)
    if node.op_type == "FeatureVectorizer":
        return helper.make_node("Concat", node.input, node.output, axis=-1)
    columns = [tensor for tensor in graph.initializer if tensor.name in node.input[1:]]
    if node.op_type == "ArrayFeatureExtractor" and columns:  # takes columns as (k,) or (1, k)
        flat = numpy_helper.from_array(numpy_helper.to_array(columns[0]).reshape(-1), f"{node.output[0]}/columns")
        graph.initializer.append(flat)
        return helper.make_node("Gather", [node.input[0], flat.name], node.output, axis=-1)
    return node


def input_rows(value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
    """Return graph input `value` with a symbolic number of rows on its first axis."""
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    dims = copy.type.tensor_type.shape.dim
    if dims:
        dims[0].Clear()
        dims[0].dim_param = ROWS
    return copy
