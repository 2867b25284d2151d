"""VJP rules of pooling."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.convolution import spread_back
from edgeml.autodiff.rules import Grads, vjp
from edgeml.autodiff.window import Window, window
from edgeml.errors import UnsupportedModel


@vjp("MaxPool")
def max_pool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """The operator's second output says where each maximum was; windows that overlap add up."""
    x = node.input[0]
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


@vjp("AveragePool")
def average_pool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Each element of a window gets the same share, by a depthwise transposed convolution with ones."""
    x, options = node.input[0], attributes(node)
    kernel = tuple(options["kernel_shape"])
    channels, before, after = g.shape(x, node)[1], g.shape(x, node)[2:], g.shape(node.output[0], node)[2:]
    if not all(isinstance(size, int) for size in (channels, *before, *after)):
        raise UnsupportedModel(f"{describe(node)}: channels and sizes {g.shapes[x][1:]} must be known")
    move = window(g, node, kernel)
    sizes, out = [int(size or 0) for size in before], [int(size or 0) for size in after]
    counts = _counts(move, sizes, out, padded=bool(options.get("count_include_pad", 0)))
    share = g.op("Div", dy, g.const(counts, like=x))
    ones = g.const(np.ones((int(channels or 0), 1, *kernel)), like=x)
    depthwise = replace(move, group=int(channels or 0))
    return (spread_back(g, (x, node.output[0]), share, weight=ones, move=depthwise),)


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
    return (g.op("Expand", g.op("Div", dy, count), g.shape_of(x)),)


@vjp("GlobalMaxPool")
def global_max_pool(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Equal maxima share the gradient evenly."""
    x = node.input[0]
    axes = g.ints(range(2, len(g.shape(x, node))))
    hit = g.op("Cast", g.op("Equal", x, node.output[0]), to=g.dtypes[x])
    return (g.op("Mul", g.op("Div", dy, g.op("ReduceSum", hit, axes, keepdims=1)), hit),)
