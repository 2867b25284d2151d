"""The shape and type of every tensor of a graph, for a batch of one row."""

from __future__ import annotations

from typing import NamedTuple

import onnx
from onnx import GraphProto, ModelProto

from edgeml.errors import UnsupportedModel
from edgeml.graph.tensors import dims

UNKNOWN = -1
SAME_SHAPE = frozenset({"Imputer", "Scaler", "Normalizer", "Binarizer"})  # of ai.onnx.ml: floats out, shape as in


class Tensor(NamedTuple):
    """`shape` has -1 where a size depends on the data; `item_bytes` is the size of one element."""

    shape: tuple[int, ...]
    item_bytes: int

    @property
    def known(self) -> bool:
        return UNKNOWN not in self.shape

    @property
    def size(self) -> int:
        """Elements, counting an unknown axis as one."""
        count = 1
        for axis in self.shape:
            count *= max(axis, 1) if axis == UNKNOWN else axis
        return count

    @property
    def nbytes(self) -> int:
        return self.size * self.item_bytes


def infer(proto: ModelProto, *, batch: int = 1) -> dict[str, Tensor]:
    """Return what is known of each tensor when the free first axis of every input is `batch`.

    Tensors whose rank cannot be inferred are absent.
    """
    fixed = ModelProto()
    fixed.CopyFrom(proto)
    _fix_rows(fixed, batch)
    graph = _inferred(fixed)
    known = {
        value.name: Tensor(shape, item_bytes(value.type.tensor_type.elem_type))
        for group in (graph.input, graph.value_info, graph.output)
        for value in group
        if (shape := dims(value)) is not None
    }
    return known | {t.name: Tensor(tuple(t.dims), item_bytes(t.data_type)) for t in graph.initializer}


def annotate(proto: ModelProto) -> None:
    """Write the type and shape of every tensor that can be inferred into `proto`, in place.

    onnx alone stops at the operators of `SAME_SHAPE`, and tools that trust it then skip what follows.
    """
    copy = ModelProto()
    copy.CopyFrom(proto)
    found = _inferred(copy).value_info
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(found)


def _inferred(proto: ModelProto) -> GraphProto:
    """Return the graph of `proto`, which is changed, with value_info for all that shape inference sees."""
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        if node.op_type in SAME_SHAPE:
            node.CopyFrom(onnx.helper.make_node("Cast", node.input[:1], node.output[:1], to=onnx.TensorProto.FLOAT))
    try:
        return onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    except (onnx.shape_inference.InferenceError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnsupportedModel(f"the shapes of the graph contradict each other: {reason}") from error


def _fix_rows(proto: ModelProto, batch: int) -> None:
    """Set the free first axis of every input, and the same axis of the outputs, to `batch`, in place."""
    weights, rows = {tensor.name for tensor in proto.graph.initializer}, set()
    for value in proto.graph.input:
        axes = value.type.tensor_type.shape.dim
        if value.name not in weights and axes and not axes[0].HasField("dim_value"):
            rows.add(axes[0].dim_param)
            axes[0].dim_value = batch
    for value in proto.graph.output:
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param and axis.dim_param in rows:
                axis.dim_value = batch


def item_bytes(kind: int) -> int:
    """Return the bytes of one element of the ONNX type `kind`; strings are taken as 16."""
    if kind in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        return 16
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize)
