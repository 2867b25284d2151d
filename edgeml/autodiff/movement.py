"""VJP rules of operators that move elements: what was read is written back, and what was read twice is added up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.rules import Grads, vjp, vjp_all
from edgeml.errors import UnsupportedModel


@vjp("Expand")
def expand(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return g.reduced_to(dy, node.input[0], out=g.shapes.get(node.output[0])), None


@vjp_all("Split")
def split(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
    parts = [dy or g.zeros(name) for dy, name in zip(dys, node.output, strict=True)]
    return (g.op("Concat", *parts, axis=attributes(node).get("axis", 0)), None)[: len(node.input)]


@vjp("Slice", "GatherElements", "GatherND", "Tile", "SpaceToDepth", "DepthToSpace", "Gather", "Compress")
def moved(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """The operator itself, applied to the positions of the elements, says where each gradient belongs.

    Positions are float64 where the operator has no integer kernel (DepthToSpace): exact up to 2^53 elements.
    """
    x, options = node.input[0], attributes(node)
    if node.op_type == "Gather" and options.get("axis", 0) == 0:
        return _rows(g, node, dy), None
    count = g.op("Size", x)
    places = g.op("Range", g.const(0, dtype=np.int64), count, g.const(1, dtype=np.int64))
    places = g.op("Reshape", places, g.shape_of(x))
    real = node.op_type in ("DepthToSpace", "SpaceToDepth")
    if real:
        places = g.op("Cast", places, to=TensorProto.DOUBLE if g.dtypes[x] == TensorProto.DOUBLE else TensorProto.FLOAT)
    given = ["" if node.op_type == "Pad" and i == 1 else name for i, name in enumerate(node.input[1:])]
    taken = g.op(node.op_type, places, *given, **options)
    if real:
        taken = g.op("Cast", taken, to=TensorProto.INT64)
    flat = g.op("Reshape", g.zeros(x), g.ints([-1]))
    flat_dy, flat_taken = g.op("Reshape", dy, g.ints([-1])), g.op("Reshape", taken, g.ints([-1]))
    whole = g.op("ScatterElements", flat, flat_taken, flat_dy, axis=0, reduction="add")
    return g.op("Reshape", whole, g.shape_of(x)), *[None] * (len(node.input) - 1)


def _rows(g: GraphBuilder, node: NodeProto, dy: str) -> str:
    """The gradient of a look-up of rows: the rows' gradients added up where they came from."""
    x, chosen = node.input
    rank = len(g.shape(x, node))
    places = g.op("Reshape", g.op("Cast", chosen, to=TensorProto.INT64), g.ints([-1, 1]))
    rows = g.op("Reshape", dy, g.dims(x, -1, (1, rank)) if rank > 1 else g.ints([-1]))
    return g.op("ScatterND", g.zeros(x), places, rows, reduction="add")


@vjp("ReverseSequence")
def reverse_sequence(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Turned once more, it is as it was."""
    return g.op("ReverseSequence", dy, node.input[1], **attributes(node)), None


@vjp("ScatterND", "ScatterElements", refuses="reductions other than none and add")
def scatter(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """What was overwritten has no gradient; what was written takes it from its place."""
    places, updates = node.input[1:]
    options = attributes(node)
    reduction = options.pop("reduction", b"none")
    if reduction not in (b"none", b"add"):
        raise UnsupportedModel(f"{describe(node)}: reduction {reduction.decode()!r} has no gradient rule")
    gather = "GatherND" if node.op_type == "ScatterND" else "GatherElements"
    kept = dy if reduction == b"add" else g.op(node.op_type, dy, places, g.zeros(updates), **options)
    return kept, None, g.op(gather, dy, places, **options)


@vjp("Pad")
def pad(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """A constant border is cut off again; a mirrored one goes back to the elements that it repeats."""
    amounts, *more = node.input[1:]
    if attributes(node).get("mode", b"constant") != b"constant":
        return moved(g, node, dy)
    axes = more[1:2] if len(more) > 1 and more[1] else []
    dx = g.op("Pad", dy, g.op("Neg", amounts), *(["", *axes] if axes else []))
    grads: list[str | None] = [dx, *[None] * (len(node.input) - 1)]
    if more and more[0] in g.active:  # the border is what the elements do not get
        border = g.op("Sub", g.op("ReduceSum", dy, keepdims=0), g.op("ReduceSum", dx, keepdims=0))
        grads[2] = g.op("Reshape", border, g.shape_of(more[0]))
    return tuple(grads)


@vjp("Trilu")
def trilu(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Trilu", dy, *node.input[1:], **attributes(node)), None)[: len(node.input)]


@vjp_all("TopK")
def top_k(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
    x, axis = node.input[0], attributes(node).get("axis", -1)
    if dys[0] is None:
        return None, None
    return g.op("ScatterElements", g.zeros(x), node.output[1], dys[0], axis=axis, reduction="add"), None


@vjp("Col2Im", refuses="an image or a block of unknown size")
def col2im(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Blocks were added up in an image: each element takes the gradient of its place."""
    x, options = node.input[0], attributes(node)
    if any(name not in g.constants for name in node.input[1:3]):
        raise UnsupportedModel(f"{describe(node)}: the sizes of its image and its blocks must be constants")
    image, block = (g.constants[name].tolist() for name in node.input[1:3])
    rank = len(image)
    strides, dilations = (options.get(name, [1] * rank) for name in ("strides", "dilations"))
    pads = options.get("pads", [0] * 2 * rank)
    places = np.zeros([1] * 2 * rank, np.int64)  # by axes inside a block, then by axes of blocks
    for axis in range(rank):
        padded = image[axis] + pads[axis] + pads[rank + axis]
        inside = np.arange(block[axis]) * dilations[axis]
        at = np.arange((padded - inside[-1] - 1) // strides[axis] + 1) * strides[axis]
        shapes = [[-1 if i == own else 1 for i in range(2 * rank)] for own in (axis, rank + axis)]
        places = places * padded + inside.reshape(shapes[0]) + at.reshape(shapes[1])
    wide = g.op("Pad", dy, g.ints([0, 0, *pads[:rank], 0, 0, *pads[rank:]])) if any(pads) else dy
    flat = g.op("Reshape", wide, g.ints([0, 0, -1]))
    taken = g.op("Gather", flat, g.const(places.reshape(-1), dtype=np.int64), axis=2)
    return g.op("Reshape", taken, g.shape_of(x)), None, None


@vjp("Resize", refuses="tf_crop_and_resize; sizes that are not known")
def resize(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Interpolation is linear in its input: each axis is a product with a matrix, which the gradient takes turned.

    The matrix of an axis is the operator's own answer to the unit vectors of that axis, known when sizes are.
    """
    x, y = node.input[0], node.output[0]
    if attributes(node).get("coordinate_transformation_mode", b"") == b"tf_crop_and_resize":
        raise UnsupportedModel(f"{describe(node)}: tf_crop_and_resize has no gradient rule; crop, then resize")
    before, after = g.shape(x, node), g.shape(y, node)
    changed = [
        axis for axis in range(len(before)) if before[axis] != after[axis] or _scale(g, node, axis) not in (None, 1)
    ]
    for axis in changed:
        if not isinstance(before[axis], int) or not isinstance(after[axis], int):
            raise UnsupportedModel(f"{describe(node)}: its sizes {before} to {after} must be known to differentiate it")
    dx = dy
    for axis in changed:
        dx = _along(g, dx, _resizing(g, node, axis), axis=axis, rank=len(before))
    return dx, *[None] * (len(node.input) - 1)


def _resizing(g: GraphBuilder, node: NodeProto, axis: int) -> str:
    """Return the (new size, old size) matrix of `node` along `axis`, by resizing an identity."""
    old, new = (int(g.shape(name, node)[axis] or 0) for name in (node.input[0], node.output[0]))
    options = {k: v for k, v in attributes(node).items() if k not in ("axes", "keep_aspect_ratio_policy")}
    unit = g.const(np.eye(old)[:, None, None, :], like=node.input[0])  # (old, 1, 1, old)
    if len(node.input) > 2 and node.input[2]:
        scale = _scale(g, node, axis) or new / old
        resized = g.op("Resize", unit, "", g.const([1, 1, 1, scale], dtype=np.float32), **options)
    else:
        resized = g.op("Resize", unit, "", "", g.ints([old, 1, 1, new]), **options)
    return g.op("Transpose", g.op("Reshape", resized, g.ints([old, new])), perm=[1, 0])


def _scale(g: GraphBuilder, node: NodeProto, axis: int) -> float | None:
    """Return the scale that `node` has for `axis`: not always the ratio of the sizes, which are whole."""
    scales = g.constants.get(node.input[2]) if len(node.input) > 2 else None
    if scales is None or not scales.size:
        return None
    rank = len(g.shape(node.input[0], node))
    axes = [one % rank for one in attributes(node).get("axes", range(rank))]
    return float(scales[axes.index(axis)]) if axis in axes else 1.0


def _along(g: GraphBuilder, x: str, matrix: str, *, axis: int, rank: int) -> str:
    """Return `x` times `matrix` along one axis."""
    order = [*(i for i in range(rank) if i != axis), axis]
    turned = g.op("MatMul", g.op("Transpose", x, perm=order), matrix)
    return g.op("Transpose", turned, perm=[order.index(i) for i in range(rank)])
