"""VJP rules of reductions other than sum and mean, and of running sums."""

from __future__ import annotations

from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder, attributes
from edgeml.autodiff.rules import Grads, vjp
from edgeml.autodiff.tensors import reduced_axes, spread


@vjp("ReduceMax", "ReduceMin")
def reduce_extreme(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Equal extremes share the gradient evenly."""
    x = node.input[0]
    hit = g.op("Cast", g.op("Equal", x, spread(g, node, node.output[0])), to=g.dtypes[x])
    return _one(node, g.op("Mul", spread(g, node, dy), g.op("Div", hit, _summed(g, node, hit))))


@vjp("ReduceL1")
def reduce_l1(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return _one(node, g.op("Mul", spread(g, node, dy), g.op("Sign", node.input[0])))


@vjp("ReduceL2")
def reduce_l2(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """x over its norm; where the norm is 0, the gradient is 0."""
    x, y = node.input[0], node.output[0]
    one, zero = g.const(1, like=x), g.const(0, like=x)
    empty = g.op("Equal", y, zero)
    share = g.op("Where", empty, zero, g.op("Div", dy, g.op("Where", empty, one, y)))
    return _one(node, g.op("Mul", x, spread(g, node, share)))


@vjp("ReduceSumSquare")
def reduce_sum_square(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x = node.input[0]
    return _one(node, g.op("Mul", spread(g, node, dy), g.op("Add", x, x)))


@vjp("ReduceLogSumExp")
def reduce_log_sum_exp(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    share = g.op("Exp", g.op("Sub", node.input[0], spread(g, node, node.output[0])))
    return _one(node, g.op("Mul", spread(g, node, dy), share))


@vjp("ReduceLogSum")
def reduce_log_sum(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return _one(node, spread(g, node, g.op("Div", dy, g.op("Exp", node.output[0]))))


@vjp("ReduceProd")
def reduce_prod(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """The product of the others: of the factors that are not 0, over x, unless another one is 0."""
    x = node.input[0]
    zero, one = g.const(0, like=x), g.const(1, like=x)
    empty = g.op("Equal", x, zero)
    factors = g.op("Where", empty, one, x)
    is_zero = g.op("Cast", empty, to=g.dtypes[x])
    zeros = _summed(g, node, is_zero)
    product = g.op("ReduceProd", factors, *node.input[1:], **attributes(node))
    others = g.op("Div", spread(g, node, g.op("Mul", dy, product)), factors)
    return _one(node, g.op("Where", g.op("Equal", g.op("Sub", zeros, is_zero), zero), others, zero))


@vjp("CumSum")
def cum_sum(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """The running sum of the gradient, the other way."""
    options = attributes(node)
    back = 1 - options.get("reverse", 0)
    return g.op("CumSum", dy, node.input[1], reverse=back, exclusive=options.get("exclusive", 0)), None


def _summed(g: GraphBuilder, node: NodeProto, x: str) -> str:
    """Return the sums of `x`, shaped like the input, over the axes that `node` reduces."""
    axes = reduced_axes(g, node)
    noop = attributes(node).get("noop_with_empty_axes", 0)
    return g.op("ReduceSum", x, *([axes] if axes else []), keepdims=1, noop_with_empty_axes=noop)


def _one(node: NodeProto, dx: str) -> Grads:
    return (dx, None)[: len(node.input)]
