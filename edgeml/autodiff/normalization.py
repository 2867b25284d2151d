"""VJP rules of normalizations. With xhat = (x - mean) / deviation over n elements and d = dy scale:

dx = (d - mean(d) - xhat mean(d xhat)) / deviation        (arXiv 1502.03167, section 3)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.rules import Grads, vjp, vjp_all
from edgeml.errors import UnsupportedModel


@dataclass(frozen=True)
class Normalized:
    """Names of (x - mean) / deviation and 1 / deviation, and the axes that were averaged over."""

    xhat: str
    inverse: str
    axes: tuple[int, ...]


def normalized(g: GraphBuilder, x: str, axes: Sequence[int], *, epsilon: float) -> Normalized:
    """Emit the normalization of `x` over `axes`."""
    centred = g.op("Sub", x, g.mean(x, axes, like=x))
    variance = g.mean(g.op("Mul", centred, centred), axes, like=x)
    inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, g.const(epsilon, like=x))))
    return Normalized(g.op("Mul", centred, inverse), inverse, tuple(axes))


def back(g: GraphBuilder, found: Normalized, d: str, *, like: str) -> str:
    """Return dx for the gradient `d` of xhat; all have the shape of `like`."""
    across = g.op("Mul", found.xhat, g.mean(g.op("Mul", d, found.xhat), found.axes, like=like))
    rest = g.op("Sub", g.op("Sub", d, g.mean(d, found.axes, like=like)), across)
    return g.op("Mul", found.inverse, rest)


@vjp_all("LayerNormalization", refuses="a gradient for its mean or deviation")
def layer_normalization(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
    dy = _only(node, dys)
    x, scale = node.input[:2]
    out, options = g.shape(x, node), attributes(node)
    first = options.get("axis", -1) % len(out)
    axes = range(first, len(out))
    if g.dtypes.get(x) == TensorProto.FLOAT:  # the operator keeps mean and 1 / deviation; of doubles it rounds them
        found = _kept(g, node, axes)
    else:
        found = normalized(g, x, axes, epsilon=options.get("epsilon", 1e-5))
    dx = back(g, found, g.op("Mul", dy, scale), like=x)
    dscale = g.reduced_to(g.op("Mul", dy, found.xhat), scale, out=out)
    return dx, dscale, *(g.reduced_to(dy, name, out=out) for name in node.input[2:])


def _kept(g: GraphBuilder, node: NodeProto, axes: Sequence[int]) -> Normalized:
    while len(node.output) < 3:
        node.output.append(g.fresh("kept"))
    for index in (1, 2):
        node.output[index] = node.output[index] or g.fresh("kept")
    mean, inverse = node.output[1:]
    xhat = g.op("Mul", g.op("Sub", node.input[0], mean), inverse)
    return Normalized(xhat, inverse, tuple(axes))


@vjp("InstanceNormalization")
def instance_normalization(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, scale, _ = node.input
    rank = len(g.shape(x, node))
    found = normalized(g, x, range(2, rank), epsilon=attributes(node).get("epsilon", 1e-5))
    by_channel = g.op("Reshape", scale, g.ints([-1, *[1] * (rank - 2)]))
    others = g.ints([0, *range(2, rank)])
    dscale = g.op("ReduceSum", g.op("Mul", dy, found.xhat), others, keepdims=0)
    return back(g, found, g.op("Mul", dy, by_channel), like=x), dscale, g.op("ReduceSum", dy, others, keepdims=0)


@vjp("GroupNormalization")
def group_normalization(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Over (rows, groups, the rest); scale and bias per channel (opset 21) or per group (opset 18)."""
    x, scale, _ = node.input
    options, rank = attributes(node), len(g.shape(x, node))
    groups = options["num_groups"]
    per_group = g.opset < 21
    whole = g.dims(x, 0, groups, -1)
    parts = g.op("Reshape", x, whole)
    g.dtypes[parts], g.shapes[parts] = g.dtypes[x], (None, groups, None)
    found = normalized(g, parts, [2], epsilon=options.get("epsilon", 1e-5))
    xhat = found.xhat if per_group else g.op("Reshape", found.xhat, g.shape_of(x))
    upstream = g.op("Reshape", dy, whole) if per_group else dy
    others = [0, 2] if per_group else [0, *range(2, rank)]
    shape = [-1, 1] if per_group else [-1, *[1] * (rank - 2)]
    d = g.op("Mul", upstream, g.op("Reshape", scale, g.ints(shape)))
    d = d if per_group else g.op("Reshape", d, whole)
    dx = g.op("Reshape", back(g, found, d, like=parts), g.shape_of(x))
    dscale = g.op("ReduceSum", g.op("Mul", upstream, xhat), g.ints(others), keepdims=0)
    return dx, dscale, g.op("ReduceSum", upstream, g.ints(others), keepdims=0)


@vjp("LpNormalization")
def lp_normalization(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """y = x / |x|: dx = (dy - y sum(dy y)) / |x| for p = 2, with the sign of x in place of y for p = 1."""
    x, y, options = node.input[0], node.output[0], attributes(node)
    axes = g.ints([options.get("axis", -1)])
    if options.get("p", 2) == 1:
        norm, along = g.op("ReduceSum", g.op("Abs", x), axes, keepdims=1), g.op("Sign", x)
    else:
        norm, along = g.op("Sqrt", g.op("ReduceSum", g.op("Mul", x, x), axes, keepdims=1)), y
    total = g.op("ReduceSum", g.op("Mul", dy, y), axes, keepdims=1)
    return (g.op("Div", g.op("Sub", dy, g.op("Mul", along, total)), norm),)


@vjp_all("BatchNormalization", refuses="a gradient for its running statistics")
def batch_normalization(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
    """With the statistics as given, or (training_mode) those of the batch, through which the gradient goes, too."""
    dy = _only(node, dys)
    x, scale, _, mean, variance = node.input
    options, rank = attributes(node), len(g.shape(x, node))
    others, shape = [0, *range(2, rank)], g.ints([-1, *[1] * (rank - 2)])
    dmean = dvariance = None
    epsilon = options.get("epsilon", 1e-5)
    by_channel = g.op("Reshape", scale, shape)
    if options.get("training_mode", 0):
        return _of_batch(g, node, dy)
    else:
        inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, g.const(epsilon, like=x))))
        inverse = g.op("Reshape", inverse, shape)
        xhat = g.op("Mul", g.op("Sub", x, g.op("Reshape", mean, shape)), inverse)
        found = Normalized(xhat, inverse, tuple(others))
        dx = g.op("Mul", dy, g.op("Mul", by_channel, inverse))
    dscale = g.op("ReduceSum", g.op("Mul", dy, found.xhat), g.ints(others), keepdims=0)
    if not options.get("training_mode", 0):
        flat = g.op("Reshape", found.inverse, g.ints([-1]))
        dmean = g.op("Neg", g.op("ReduceSum", dx, g.ints(others), keepdims=0))
        steep = g.op("Mul", g.op("Mul", flat, flat), g.op("Mul", scale, g.const(-0.5, like=x)))
        dvariance = g.op("Mul", steep, dscale)
    return dx, dscale, g.op("ReduceSum", dy, g.ints(others), keepdims=0), dmean, dvariance


def _of_batch(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """With d = sum(dy) and e = sum(dy (x - mean)) by channel, n elements in each:

    dscale = e / deviation, dx = scale / deviation (dy - d / n - (x - mean) e / (n deviation^2))
    """
    x, scale, rank = node.input[0], node.input[1], len(g.shape(node.input[0], node))
    others, by_channel = g.ints([0, *range(2, rank)]), g.ints([-1, *[1] * (rank - 2)])
    mean, variance = statistics_of(g, node)
    epsilon = g.const(attributes(node).get("epsilon", 1e-5), like=x)
    inverse = g.op("Reciprocal", g.op("Sqrt", g.op("Add", variance, epsilon)))
    centred = g.op("Sub", x, g.op("Reshape", mean, by_channel))
    total = g.op("ReduceSum", dy, others, keepdims=0)
    along = g.op("ReduceSum", g.op("Mul", dy, centred), others, keepdims=0)
    dscale = g.op("Mul", along, inverse)
    count = g.op("Div", g.op("Cast", g.op("Size", x), to=g.dtypes[x]), g.op("Cast", g.op("Size", mean), to=g.dtypes[x]))
    steep = g.op("Mul", scale, inverse)
    share = g.op("Div", steep, count)
    level = g.op("Neg", g.op("Mul", share, total))
    slope = g.op("Neg", g.op("Mul", g.op("Mul", share, inverse), dscale))
    none, one = g.op("Sub", mean, mean), g.op("Exp", g.op("Sub", mean, mean))
    direct = g.op("BatchNormalization", dy, steep, level, none, one, epsilon=0.0)  # steep * dy + level, in one pass
    dx = g.op("Add", direct, g.op("Mul", centred, g.op("Reshape", slope, by_channel)))
    return dx, dscale, total, None, None


def statistics_of(g: GraphBuilder, node: NodeProto) -> tuple[str, str]:
    """Return mean and variance of the batch by channel: with momentum 0 they are what the operator keeps."""
    if attributes(node).get("momentum", 0.9) == 0 and len(node.output) == 3:
        return node.output[1], node.output[2]
    x = node.input[0]
    others = [0, *range(2, len(g.shape(x, node)))]
    mean = g.mean(x, others, like=x)
    centred = g.op("Sub", x, mean)
    flat = g.ints([-1])
    variance = g.mean(g.op("Mul", centred, centred), others, like=x)
    return g.op("Reshape", mean, flat), g.op("Reshape", variance, flat)


@vjp("MeanVarianceNormalization")
def mean_variance_normalization(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """(x - mean) / deviation; the operator's 1e-9 beside the deviation is below what rounding leaves."""
    x = node.input[0]
    rank = len(g.shape(x, node))
    axes = [axis % rank for axis in attributes(node).get("axes", [0, 2, 3])]
    return (back(g, normalized(g, x, axes, epsilon=1e-18), dy, like=x),)


@vjp("LRN", refuses="a number of channels that is not known")
def local_response(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """y = x s^-b, s = bias + a/n sum of x^2 over n channels: dx = dy s^-b - 2 a b / n x sum of dy x s^(-b - 1).

    The sums over neighbouring channels are products with a band of ones.
    """
    x, options = node.input[0], attributes(node)
    channels, size = g.shape(x, node)[1], options["size"]
    if not isinstance(channels, int):
        raise UnsupportedModel(f"{describe(node)}: its number of channels must be known to differentiate it")
    alpha, beta = options.get("alpha", 1e-4) / size, options.get("beta", 0.75)
    far = np.arange(channels)[None, :] - np.arange(channels)[:, None]  # from channel (row) to the neighbour summed
    band = ((far >= -((size - 1) // 2)) & (far <= size // 2)).astype(float)
    squares = _across(g, g.op("Mul", x, x), band)
    s = g.op("Add", g.const(options.get("bias", 1.0), like=x), g.op("Mul", g.const(alpha, like=x), squares))
    direct = g.op("Mul", dy, g.op("Pow", s, g.const(-beta, like=x)))
    through = _across(g, g.op("Div", g.op("Mul", direct, x), s), band.T)
    steep = g.op("Mul", g.const(2 * alpha * beta, like=x), x)
    return (g.op("Sub", direct, g.op("Mul", steep, through)),)


def _across(g: GraphBuilder, x: str, band: np.ndarray) -> str:
    """Return the channels of `x`, each replaced by the sum over those that its row of `band` marks."""
    flat = g.op("Reshape", x, g.ints([0, 0, -1]))
    return g.op("Reshape", g.op("MatMul", g.const(band, like=x), flat), g.op("Shape", x))


@vjp_all("Dropout", refuses="a gradient for its mask")
def dropout(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
    """Without training an identity; with it, what was kept, as its mask says, times 1 / (1 - ratio)."""
    dy, rest = _only(node, dys), [None] * (len(node.input) - 1)
    training = node.input[2] if len(node.input) > 2 else ""
    if not training or (training in g.constants and not g.constants[training]):
        return dy, *rest
    if len(node.output) < 2 or not node.output[1]:
        del node.output[1:]
        node.output.append(g.fresh("kept"))
    ratio = node.input[1] or g.const(0.5)
    kept = g.op("Sub", g.const(1, like=ratio), ratio)
    scaled = g.op("Div", dy, g.op("Cast", kept, to=g.dtypes[node.input[0]]))
    return g.op("Where", node.output[1], scaled, g.const(0, like=node.input[0])), *rest


def _only(node: NodeProto, dys: Sequence[str | None]) -> str:
    """Return the gradient of the first output; raise UnsupportedModel when another one has any."""
    if dys[0] is None or any(dys[1:]):
        raise UnsupportedModel(f"{describe(node)}: only its first output can be differentiated")
    return dys[0]
