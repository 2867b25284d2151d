"""VJP rules of pooling."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.convolution import spread_back
from edgeml.autodiff.pooled import blocks_of, gradient
from edgeml.autodiff.rules import Grads, vjp
from edgeml.autodiff.window import Window, window
from edgeml.errors import UnsupportedModel


@vjp("MaxPool", refuses="storage_order=1 (places in columns)")
def max_pool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """The operator's second output says where each maximum was; windows that overlap add up."""
    x = node.input[0]
    if attributes(node).get("storage_order", 0):
        raise UnsupportedModel(f"{describe(node)}: storage_order 1 has no gradient rule; leave it out")
    if blocks := blocks_of(g, node):
        return (gradient(g, node, blocks, dy=dy),)
    if len(node.output) < 2 or not node.output[1]:
        del node.output[1:]
        node.output.append(g.fresh("places"))
    flat = g.op("Reshape", g.zeros(x), g.ints([-1]))
    places, values = (g.op("Reshape", name, g.ints([-1])) for name in (node.output[1], dy))
    return (
        g.op(
            "Reshape",
            g.op("ScatterElements", flat, places, values, axis=0, reduction="add"),
            g.shape_of(x),
        ),
    )


@vjp("AveragePool", refuses="sizes that are not known")
def average_pool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Each element of a window gets the same share."""
    x, options = node.input[0], attributes(node)
    _check_known(g, node)
    move = window(g, node, tuple(options["kernel_shape"]))
    sizes, out = ([int(size or 0) for size in g.shapes[name][2:]] for name in (x, node.output[0]))
    counts = _counts(move, sizes, out, padded=bool(options.get("count_include_pad", 0)))
    return (_summed_back(g, node, g.op("Div", dy, g.const(counts, like=x)), move=move),)


@vjp("LpPool", refuses="sizes that are not known")
def lp_pool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """y = (sum |x|^p)^(1/p): dx = sign(x) |x|^(p - 1) times the sum of dy y^(1 - p) over the windows of x."""
    options = attributes(node)
    _check_known(g, node)
    share = _norm_share(g, node, dy)
    spread = _summed_back(g, node, share, move=window(g, node, tuple(options["kernel_shape"])))
    return (g.op("Mul", _norm_slope(g, node), spread),)


@vjp("GlobalLpPool")
def global_lp_pool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Mul", _norm_slope(g, node), _norm_share(g, node, dy)),)


def _norm_share(g: GraphBuilder, node: NodeProto, dy: str) -> str:
    """Return dy y^(1 - p), 0 where y is."""
    y, p = node.output[0], attributes(node).get("p", 2)
    zero, one = g.const(0, like=node.input[0]), g.const(1, like=node.input[0])
    empty = g.op("Equal", y, zero)
    power = g.op("Pow", g.op("Where", empty, one, y), g.const(1 - p, like=node.input[0]))
    return g.op("Where", empty, zero, g.op("Mul", dy, power))


def _norm_slope(g: GraphBuilder, node: NodeProto) -> str:
    """Return sign(x) |x|^(p - 1)."""
    x, p = node.input[0], attributes(node).get("p", 2)
    return g.op("Mul", g.op("Sign", x), g.op("Pow", g.op("Abs", x), g.const(p - 1, like=x)))


@vjp("MaxUnpool")
def max_unpool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """What was put into a place takes the gradient from there."""
    flat = g.op("Reshape", dy, g.ints([-1]))
    return g.op("Gather", flat, node.input[1], axis=0), *[None] * (len(node.input) - 1)


def _check_known(g: GraphBuilder, node: NodeProto) -> None:
    x = node.input[0]
    known = (*g.shape(x, node)[1:], *g.shape(node.output[0], node)[2:])
    if not all(isinstance(size, int) for size in known):
        raise UnsupportedModel(f"{describe(node)}: channels and sizes {g.shapes[x][1:]} must be known")


def _summed_back(g: GraphBuilder, node: NodeProto, dy: str, *, move: Window) -> str:
    """Return for every element of the input the sum of `dy` over its windows, by a depthwise transposed convolution."""
    x = node.input[0]
    channels = int(g.shapes[x][1] or 0)
    ones = g.const(np.ones((channels, 1, *move.kernel)), like=x)
    return spread_back(g, (x, node.output[0]), dy, weight=ones, move=replace(move, group=channels))


def _counts(move: Window, sizes: list[int], out: list[int], *, padded: bool) -> np.ndarray:
    """Return how many elements every window averages: those inside, with the padding if it counts."""
    whole = np.ones(out)
    for axis in range(move.rank):
        low, high = (-move.pads[axis], sizes[axis] + move.pads[move.rank + axis]) if padded else (0, sizes[axis])
        starts = np.arange(out[axis])[:, None] * move.strides[axis] - move.pads[axis]
        places = starts + np.arange(move.kernel[axis])[None] * move.dilations[axis]
        inside = ((places >= low) & (places < high)).sum(1)
        whole *= inside.reshape([-1 if i == axis else 1 for i in range(move.rank)])
    return whole


@vjp("GlobalAveragePool")
def global_average_pool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, of = node.input[0], g.dtypes[node.input[0]]
    sizes = g.shape(x, node)[2:]
    if all(isinstance(size, int) for size in sizes):
        count = g.const(math.prod(int(size or 0) for size in sizes), like=x)
    else:
        count = g.op("Div", g.op("Cast", g.op("Size", x), to=of), g.op("Cast", g.op("Size", node.output[0]), to=of))
    spread = g.op("Expand", g.op("Div", dy, count), g.shape_of(x))
    g.shapes[spread] = g.shapes[x]
    return (spread,)


@vjp("GlobalMaxPool")
def global_max_pool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Equal maxima share the gradient evenly."""
    x = node.input[0]
    axes = g.ints(range(2, len(g.shape(x, node))))
    hit = g.op("Cast", g.op("Equal", x, node.output[0]), to=g.dtypes[x])
    return (g.op("Mul", g.op("Div", dy, g.op("ReduceSum", hit, axes, keepdims=1)), hit),)
