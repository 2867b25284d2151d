"""What is wrong with an .onnx graph and can be put right without changing an answer, a note for each thing done.

ModelProto -> repair -> ModelProto with one form for everything: own functions inlined, sparse weights dense, weights
no inputs, maps matrices, nodes in order, names apart
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import onnx
from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, inliner, numpy_helper

from edgeml.errors import UnsupportedModel
from edgeml.graph import proto as protos
from edgeml.graph.bounds import MOST_NODES, inferred, light
from edgeml.graph.order import name_apart, put_in_order
from edgeml.graph.stored import why_not

MOST_SPARSE = 64 << 20  # elements of a sparse weight made dense: 256 MB of floats

ROWS = "rows"  # the name of the axis of rows

Repair = Callable[[GraphProto], list[str]]


def repair(proto: ModelProto) -> tuple[ModelProto, list[str]]:
    """Return `proto` repaired and what was done; raise UnsupportedModel, without the file's name, for the rest."""
    notes = []
    domains = [entry.domain for entry in proto.opset_import]
    if len(domains) > len({"" if domain == "ai.onnx" else domain for domain in domains}):
        notes.append("an opset was imported twice: the newest of them counts")
    proto, inlined = _inline(proto)
    notes += inlined
    protos.tidy(proto)
    for step in (_densify, _fix_weights, _without_zipmap):
        notes += step(proto.graph)
    if put_in_order(proto.graph):
        notes.append("operators stood before what they read: sorted")
    if renamed := name_apart(proto.graph):
        notes.append(f"{renamed} operators shared a name: renamed")
    return proto, notes


def _inline(proto: ModelProto) -> tuple[ModelProto, list[str]]:
    """Put the bodies of the model's own functions in place of their calls."""
    if not proto.functions:
        return proto, []
    own = {(function.domain, function.name): function for function in proto.functions}
    if len(own) < len(proto.functions):
        raise UnsupportedModel("it defines one function twice: export it again")
    sizes: dict[tuple[str, str], int | None] = {}
    grown = sum(_expanded(node, own, sizes) for node in protos.walk(proto.graph))
    if grown > MOST_NODES:
        raise UnsupportedModel(
            f"its functions call each other until they are {grown:,} operators, {MOST_NODES:,} at most are taken"
        )
    try:
        flat = inliner.inline_local_functions(proto)
    except Exception as error:  # the inliner has no error class of its own
        raise UnsupportedModel(
            f"its functions cannot be put in place: {_line(error)}; export it without functions"
        ) from error
    del flat.functions[:]
    return flat, [f"{len(own)} functions of its own were put in place of their calls"]


def _expanded(
    node: NodeProto, own: dict[tuple[str, str], FunctionProto], sizes: dict[tuple[str, str], int | None]
) -> int:
    """Return how many operators `node` is once its function, if it is one, stands in its place."""
    key = (node.domain, node.op_type)
    if key not in own:
        return 1
    if key in sizes:
        if (size := sizes[key]) is None:
            raise UnsupportedModel(f"its function {node.op_type!r} calls itself, which ONNX does not allow")
        return size
    sizes[key] = None
    inner = [node for outer in own[key].node for node in (outer, *_inside(outer))]
    found = sizes[key] = sum(_expanded(node, own, sizes) for node in inner)
    return found


def _inside(node: NodeProto) -> list[NodeProto]:
    return [inner for graph in protos.subgraphs(node) for inner in protos.walk(graph)]


def _densify(graph: GraphProto) -> list[str]:
    """Make sparse weights plain ones: neither the quantizers nor the trainers read them."""
    count = len(graph.sparse_initializer)
    for sparse in graph.sparse_initializer:
        graph.initializer.append(_dense(sparse))
    graph.ClearField("sparse_initializer")
    return [f"{count} sparse weights made dense"] if count else []


def _dense(sparse: SparseTensorProto) -> TensorProto:
    name, shape = sparse.values.name, tuple(sparse.dims)
    size = int(np.prod([float(axis) for axis in shape]))
    if not shape or min(shape) < 0 or size > MOST_SPARSE:
        raise UnsupportedModel(
            f"its sparse weight {name!r} has the shape {list(shape)[:8]}, {MOST_SPARSE:,} values at most are taken"
        )
    values, indices = (numpy_helper.to_array(tensor) for tensor in (sparse.values, sparse.indices))
    if sparse.indices.data_type != TensorProto.INT64 or values.ndim != 1:
        raise UnsupportedModel(f"its sparse weight {name!r} is not laid out as ONNX says: export it dense")
    flat = indices if indices.ndim == 1 else _flat(indices, shape, name)
    if len(flat) != len(values) or (len(flat) and not 0 <= flat.min() <= flat.max() < size):
        raise UnsupportedModel(
            f"its sparse weight {name!r} has values outside its shape {list(shape)}: export it dense"
        )
    dense = np.zeros(size, values.dtype)
    dense[flat] = values
    return numpy_helper.from_array(dense.reshape(shape), name)


def _flat(indices: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    inside = indices.ndim == 2 and indices.shape[1] == len(shape)
    if not inside or (indices.size and not ((indices >= 0) & (indices < np.array(shape))).all()):
        raise UnsupportedModel(
            f"its sparse weight {name!r} has values outside its shape {list(shape)}: export it dense"
        )
    flat: np.ndarray = np.ravel_multi_index(tuple(indices.T), shape)
    return flat


def _fix_weights(graph: GraphProto) -> list[str]:
    """Take weights off the list of inputs: onnxruntime neither folds nor re-lays what a caller might replace."""
    weights = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.input if value.name not in weights]
    listed = len(graph.input) - len(kept)
    if listed:
        del graph.input[:]
        graph.input.extend(kept)
    return [f"{listed} weights were listed as inputs: fixed to their values"] if listed else []


def _without_zipmap(graph: GraphProto) -> list[str]:
    """Make each ZipMap output the matrix of probabilities that went into it."""
    outputs = {value.name: value for value in graph.output}
    done = []
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        matrix, zipped = (list(node.input) or [""])[0], (list(node.output) or [""])[0]
        if zipped not in outputs or not any(matrix in other.output for other in graph.node):
            raise UnsupportedModel("its ZipMap is not the last step before an output: export it with zipmap off")
        outputs[zipped].type.CopyFrom(onnx.helper.make_tensor_type_proto(onnx.TensorProto.FLOAT, [None, None]))
        graph.node.remove(node)
        if matrix in outputs:  # both are asked for
            graph.node.append(onnx.helper.make_node("Identity", [matrix], [zipped]))
        else:
            _rename(graph, matrix, zipped)
        done.append(f"output {zipped!r} was a map (ZipMap): now the matrix of its values")
    return done


def complete(proto: ModelProto) -> list[str]:
    """Give every output the type and shape that follow from the graph, where it says none or another one, in place.

    An output of which nothing follows stays bare.
    """
    del proto.graph.value_info[:]  # every tool infers them again, and trusts what stands there
    found = {value.name: value for value in inferred(light(proto, open_axis=None)).output if _told(value)}
    bare = [value.name for value in proto.graph.output if not _told(value)]
    wrong = []
    for value in proto.graph.output:
        if value.name in found and (value.name in bare or not _may_be(value, found[value.name])):
            wrong += [] if value.name in bare else [value.name]
            value.type.CopyFrom(found[value.name].type)
    notes = [f"{len(bare)} outputs had no shape: inferred"] if bare else []
    return notes + [f"output {name!r} was declared otherwise than it is: corrected" for name in wrong]


def complete_from(proto: ModelProto, answers: Mapping[str, np.ndarray]) -> None:
    """Give outputs that are still bare the type and rank that they had in `answers`, in place.

    Raises UnsupportedModel, naming one, when there is no answer to go by.
    """
    for value in proto.graph.output:
        if _told(value):
            continue
        if value.name not in answers:
            raise UnsupportedModel(
                f"its output {value.name!r} has no shape, and none follows from its graph: export it so"
            )
        answer = answers[value.name]
        text = answer.dtype.kind in "OU"
        kind = TensorProto.STRING if text else onnx.helper.np_dtype_to_tensor_dtype(answer.dtype)
        value.type.CopyFrom(onnx.helper.make_tensor_type_proto(kind, [None] * answer.ndim))


def _may_be(declared: onnx.ValueInfoProto, found: onnx.ValueInfoProto) -> bool:
    """Say whether an output that is `found` in the graph may be called as `declared`."""
    said, known = declared.type.tensor_type, found.type.tensor_type
    if said.elem_type != known.elem_type or len(said.shape.dim) != len(known.shape.dim):
        return False
    pairs = zip(said.shape.dim, known.shape.dim, strict=True)
    fixed = [(one.dim_value, other.dim_value) for one, other in pairs if one.HasField("dim_value")]
    return all(one > 0 and (one == other or not other) for one, other in fixed)


def _told(value: onnx.ValueInfoProto) -> bool:
    """Say whether `value` is complete; what is no tensor is refused elsewhere."""
    tensor = value.type.tensor_type
    return value.type.WhichOneof("value") not in ("tensor_type", None) or (
        tensor.elem_type > 0 and tensor.HasField("shape")
    )


def _rename(graph: GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]
        node.input[:] = [new if name == old else name for name in node.input]


def name_axes(proto: ModelProto) -> list[str]:
    """Give open axes without a name one, in place: `rows` for the first, the tensor's and its number for others."""
    named = 0
    for value in (*proto.graph.input, *proto.graph.output):
        for index, axis in enumerate(value.type.tensor_type.shape.dim):
            below = axis.HasField("dim_value") and axis.dim_value < 1 and value in proto.graph.input
            if below or not (axis.HasField("dim_value") or axis.dim_param):
                axis.dim_param = ROWS if index == 0 else f"{value.name}_{index}"
                named += 1
    return [f"{named} open axes had no name: named"] if named else []


def refuse_hollow(tensors: list[TensorProto]) -> None:
    """Raise UnsupportedModel for the first of `tensors` that does not hold what its shape declares."""
    for tensor in tensors:
        if why := why_not(tensor):
            raise UnsupportedModel(f"its weight {tensor.name[:80]!r} {why}: export it again")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
