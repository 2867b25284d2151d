"""VJP rules of the operators that are not element-wise: products, reductions, softmax, shapes."""

from __future__ import annotations

from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder, attributes
from edgeml.autodiff.rules import Grads, vjp


@vjp("Gemm")
def gemm(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    a, b = node.input[:2]
    options = attributes(node)
    alpha, beta = options.get("alpha", 1.0), options.get("beta", 1.0)
    ta, tb = options.get("transA", 0), options.get("transB", 0)
    if ta:
        da = g.op("Gemm", b, dy, alpha=alpha, transA=tb, transB=1)
    else:
        da = g.op("Gemm", dy, b, alpha=alpha, transA=0, transB=1 - tb)
    if tb:
        db = g.op("Gemm", dy, a, alpha=alpha, transA=1, transB=ta)
    else:
        db = g.op("Gemm", a, dy, alpha=alpha, transA=1 - ta, transB=0)
    if len(node.input) < 3 or node.input[2] not in g.active:
        return (da, db, None)[: len(node.input)]
    scaled = dy if beta == 1.0 else g.op("Mul", dy, g.const(beta, like=node.input[2]))
    return da, db, g.reduced_to(scaled, node.input[2], out=g.shapes.get(node.output[0]))


@vjp("MatMul")
def matmul(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    a, b = node.input
    right = g.shape(b, node)
    if len(right) == 2 and all(isinstance(size, int) for size in right):
        return _times_matrix(g, node, dy)
    left, out = g.shape(a, node), g.shape(node.output[0], node)
    if min(len(left), len(right)) < 2:
        return _with_vector(g, node, dy)
    da = db = None
    if a in g.active:
        da = g.op("MatMul", dy, _swapped(g, b, len(right)))
        da = g.reduced_to(da, a, out=(*out[:-2], *left[-2:]))
    if b in g.active:
        db = g.op("MatMul", _swapped(g, a, len(left)), dy)
        db = g.reduced_to(db, b, out=(*out[:-2], *right[-2:]))
    return da, db


def _times_matrix(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """The common layer: any number of leading axes times a weight (k, n), without one batched product."""
    a, b = node.input
    rank = len(g.shapes[a]) if a in g.shapes else None
    if rank == 1:
        return _with_vector(g, node, dy)
    if rank == 2:
        return g.op("Gemm", dy, b, transB=1), g.op("Gemm", a, dy, transA=1)
    depth, width = (int(size or 0) for size in g.shapes[b])
    rows = g.op("Reshape", a, g.ints([-1, depth]))
    db = g.op("Gemm", rows, g.op("Reshape", dy, g.ints([-1, width])), transA=1)
    return g.op("MatMul", dy, _swapped(g, b, 2)), db


def _with_vector(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """A 1-D factor is one row on the left, one column on the right; the answer has no such axis."""
    a, b = node.input
    left, right, out = g.shape(a, node), g.shape(b, node), g.shape(node.output[0], node)
    row, column = len(left) == 1, len(right) == 1
    dy = g.op("Unsqueeze", dy, g.ints([-2] * row + [-1] * column))
    wide_a = g.op("Unsqueeze", a, g.ints([0])) if row else a
    wide_b = g.op("Unsqueeze", b, g.ints([1])) if column else b
    lead = out[: max(len(left), len(right), 2) - 2]
    da = g.op("MatMul", dy, _swapped(g, wide_b, max(2, len(right))))
    db = g.op("MatMul", _swapped(g, wide_a, max(2, len(left))), dy)
    if row:
        da = g.op("Squeeze", da, g.ints([-2]))
        da = g.reduced_to(da, a, out=(*lead, *left))
    if column:
        db = g.op("Squeeze", db, g.ints([-1]))
        db = g.reduced_to(db, b, out=(*lead, *right))
    return da, db


def _swapped(g: GraphBuilder, name: str, rank: int) -> str:
    order = [*range(rank - 2), rank - 1, rank - 2]
    return g.op("Transpose", name, perm=order)


@vjp("ReduceSum")
def reduce_sum(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (spread(g, node, dy), None)[: len(node.input)]


@vjp("ReduceMean")
def reduce_mean(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, y = node.input[0], node.output[0]
    to = g.dtypes[x]
    count = g.op("Div", g.op("Cast", g.op("Size", x), to=to), g.op("Cast", g.op("Size", y), to=to))
    return (spread(g, node, g.op("Div", dy, count)), None)[: len(node.input)]


def reduced_axes(g: GraphBuilder, node: NodeProto) -> str:
    """Return the axes that a reduction takes as a tensor, "" for all of them."""
    options = attributes(node)
    axes = node.input[1] if len(node.input) > 1 else ""
    if not axes and "axes" in options:  # an attribute before opset 13 (ReduceSum) and 18 (the others)
        axes = g.ints(options["axes"])
    return "" if axes in g.constants and not g.constants[axes].size else str(axes)


def spread(g: GraphBuilder, node: NodeProto, value: str) -> str:
    """Undo a reduction: put the reduced axes of `value` back and repeat along them.

    When all axes were reduced without being kept, `value` is a scalar, which expands to anything.
    """
    axes = reduced_axes(g, node)
    if axes and not attributes(node).get("keepdims", 1):
        value = g.op("Unsqueeze", value, axes)
    return g.op("Expand", value, g.shape_of(node.input[0]))


@vjp("Softmax")
def softmax(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    y, axis = node.output[0], g.ints([attributes(node).get("axis", -1)])
    mean = g.op("ReduceSum", g.op("Mul", dy, y), axis, keepdims=1)
    return (g.op("Mul", y, g.op("Sub", dy, mean)),)


@vjp("LogSoftmax")
def log_softmax(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    total = g.op("ReduceSum", dy, g.ints([attributes(node).get("axis", -1)]), keepdims=1)
    return (g.op("Sub", dy, g.op("Mul", g.op("Exp", node.output[0]), total)),)


@vjp("Transpose")
def transpose(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    order = attributes(node).get("perm") or list(range(len(g.shape(node.input[0], node))))[::-1]
    return (g.op("Transpose", dy, perm=[order.index(axis) for axis in range(len(order))]),)


@vjp("Concat")
def concat(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    axis = attributes(node)["axis"]
    shapes = [g.shape(name, node) for name in node.input]
    sizes = [shape[axis] for shape in shapes]
    known = [size for size in sizes if isinstance(size, int)]
    if len(known) == len(sizes):
        split = g.ints(known)
    else:
        at = [g.ints([axis % len(shape)]) for shape in shapes]
        own = [g.op("Gather", g.op("Shape", name), place) for name, place in zip(node.input, at, strict=True)]
        split = g.op("Concat", *own, axis=0)
    return g.ops("Split", dy, split, outputs=len(node.input), axis=axis)


def _reshaped(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Reshape", dy, g.shape_of(node.input[0])), None)[: len(node.input)]


for _op_type in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
    vjp(_op_type)(_reshaped)
