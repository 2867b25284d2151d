"""What goes into a graph and comes out of it, its weights, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto

from edgeml.artifacts import OnnxModel
from edgeml.errors import DataError, UnsupportedModel
from edgeml.graph.proto import load, serialize, subgraphs
from edgeml_runtime.wire.manifest import TensorSpec

DTYPES: dict[int, str] = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.FLOAT16: "float16",
    TensorProto.INT64: "int64",
    TensorProto.INT32: "int32",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "uint8",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "string",
}


def inputs(model: OnnxModel | bytes) -> tuple[TensorSpec, ...]:
    """Return the inputs a caller must feed: weights that are listed as inputs are left out."""
    graph = load(model).graph
    weights = {tensor.name for tensor in graph.initializer}
    return tuple(_spec(value) for value in graph.input if value.name not in weights)


def outputs(model: OnnxModel | bytes) -> tuple[TensorSpec, ...]:
    """Return the outputs of `model`, in order."""
    return tuple(_spec(value) for value in load(model).graph.output)


def initializers(model: OnnxModel | bytes) -> dict[str, np.ndarray]:
    """Return the weights of `model` by name."""
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in load(model).graph.initializer}


def set_initializers(model: OnnxModel, arrays: Mapping[str, np.ndarray]) -> OnnxModel:
    """Return `model` with the weights in `arrays` in place of its own; everything else stays.

    Raises DataError when a name is no weight of the model or a shape or type is another one.
    """
    proto = load(model)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, array in arrays.items():
        if name not in tensors:
            raise DataError(f"the model has no weight {name!r}; it has {_some(tensors)}")
        old, new = tensors[name], np.asarray(array)
        dtype = onnx.helper.tensor_dtype_to_np_dtype(old.data_type)
        if tuple(old.dims) != new.shape or dtype != new.dtype:
            raise DataError(
                f"weight {name!r} is {dtype} {list(old.dims)} in the model, but {new.dtype} {list(new.shape)} was given"
            )
        old.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(new).reshape(new.shape), name))
    return serialize(proto, source=model.digest, notes=model.notes)


def rename(model: OnnxModel, names: Mapping[str, str]) -> OnnxModel:
    """Return `model` with the tensors in `names` (old -> new) renamed everywhere they occur.

    Raises DataError when an old name does not occur or a new one is taken.
    """
    proto = load(model)
    known = set(_tensor_names(proto.graph))
    if missing := names.keys() - known:
        raise DataError(f"the model has no tensor {sorted(missing)[0]!r}; it has {_some(known)}")
    if taken := set(names.values()) & (known - names.keys()) or len(set(names.values())) < len(names):
        raise DataError(f"cannot rename {dict(names)}: a new name is already taken ({taken})")
    _rename_graph(proto.graph, names)
    return serialize(proto, source=model.source, notes=model.notes)


def dims(value: ValueInfoProto) -> tuple[int, ...] | None:
    """Return the shape of `value` with -1 for a size that is not fixed; None when even the rank is unknown."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)


def _spec(value: ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type.elem_type
    if kind not in DTYPES:
        what = value.type.WhichOneof("value") if kind == 0 else TensorProto.DataType.Name(kind)
        known = ", ".join(DTYPES.values())
        raise UnsupportedModel(f"{value.name!r} is of type {what}, which devices cannot feed; use tensors of {known}")
    return TensorSpec(name=value.name, dtype=cast(Any, DTYPES[kind]), shape=dims(value) or ())


def _tensor_names(graph: GraphProto) -> Iterable[str]:
    yield from (item.name for group in (graph.input, graph.output, graph.initializer) for item in group)
    for node in graph.node:
        yield from node.output
        for subgraph in subgraphs(node):
            yield from _tensor_names(subgraph)


def _rename_graph(graph: GraphProto, names: Mapping[str, str]) -> None:
    for group in (graph.input, graph.output, graph.initializer, graph.value_info):
        for item in group:
            item.name = names.get(item.name, item.name)
    for node in graph.node:
        _rename_node(node, names)


def _rename_node(node: NodeProto, names: Mapping[str, str]) -> None:
    for field in (node.input, node.output):
        field[:] = [names.get(name, name) for name in field]
    for subgraph in subgraphs(node):
        _rename_graph(subgraph, names)


def _some(names: Iterable[str], limit: int = 8) -> str:
    listed = sorted(names)
    return ", ".join(listed[:limit]) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")
