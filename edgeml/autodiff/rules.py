"""One VJP rule per operator: given the output gradient, emit the input gradients as ONNX nodes.

A rule takes the builder, the forward node and the name of the gradient of its first output, and
returns one gradient (or None) per input. It may emit gradients that nobody needs: dead code is
removed at the end. Arithmetic stands here; `activations`, `tensors`, `reductions`, `movement`, `convolution`,
`pooling`, `normalization` and more hold the others. What a rule refuses is written beside it, for docs/autodiff.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.errors import UnsupportedModel

Grads = tuple[str | None, ...]
OneRule = Callable[[GraphBuilder, NodeProto, str], Grads]
Rule = Callable[[GraphBuilder, NodeProto, Sequence[str | None]], Grads]

RULES: dict[str, Rule] = {}
REFUSED: dict[str, str] = {}  # operator -> the uses of it that its rule refuses by name


def vjp(*op_types: str, refuses: str = "") -> Callable[[OneRule], OneRule]:
    """Register the VJP rule of operators whose first output alone has a gradient."""

    def register(rule: OneRule) -> OneRule:
        @functools.wraps(rule)
        def first(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
            return rule(g, node, dys[0]) if dys[0] else (None,) * len(node.input)

        vjp_all(*op_types, refuses=refuses)(first)
        return rule

    return register


def vjp_all(*op_types: str, refuses: str = "") -> Callable[[Rule], Rule]:
    """Register the VJP rule of operators of several outputs: it takes a gradient, or None, for each of them.

    A second rule for one operator is a mistake.
    """

    def register(rule: Rule) -> Rule:
        for op_type in op_types:
            if op_type in RULES:
                raise ValueError(f"{op_type} already has a VJP rule: {RULES[op_type].__name__}")
            RULES[op_type] = rule
            REFUSED[op_type] = refuses
        return rule

    return register


def rule_for(node: NodeProto) -> Rule:
    """Return the rule of `node`; raise UnsupportedModel saying where to write the missing one."""
    if node.op_type in RULES and node.domain in ("", "ai.onnx"):
        return RULES[node.op_type]
    raise UnsupportedModel(
        f"{describe(node)} has no gradient rule: write @vjp({node.op_type!r}) in edgeml/autodiff/rules.py, "
        f"or train only parameters behind it (trainable=)"
    )


def broadcast(g: GraphBuilder, node: NodeProto, *gradients: str | None) -> Grads:
    out = g.shapes.get(node.output[0])
    pairs = zip(gradients, node.input, strict=True)
    return tuple(grad and (g.reduced_to(grad, x, out=out) if x in g.active else None) for grad, x in pairs)


@vjp("Add")
def add(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return broadcast(g, node, dy, dy)


@vjp("Sub")
def sub(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return broadcast(g, node, dy, g.op("Neg", dy))


@vjp("Mul")
def mul(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    a, b = node.input
    return broadcast(g, node, g.op("Mul", dy, b), g.op("Mul", dy, a))


@vjp("Div")
def div(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    quotient = g.op("Div", dy, node.input[1])
    return broadcast(g, node, quotient, g.op("Neg", g.op("Mul", quotient, node.output[0])))


@vjp("Pow")
def power(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, exponent = node.input
    if exponent in g.active or exponent not in g.constants:
        return _power_of_both(g, node, dy)
    p = g.constants[exponent].astype(np.float64)
    slope = g.const(np.where(p == 0, 0.0, p), like=x)
    lower = g.const(np.where(p == 0, 0.0, p - 1), like=x)  # x ** 0 is flat, also at 0
    return broadcast(g, node, g.op("Mul", dy, g.op("Mul", slope, g.op("Pow", x, lower))), None)


def _power_of_both(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """dx = p x^(p - 1), dp = y log x; where x or p is 0, what would be 0 times infinite is 0."""
    x, exponent = node.input
    zero, one = g.const(0, like=x), g.const(1, like=x)
    p = exponent if g.dtypes.get(exponent) == g.dtypes[x] else g.op("Cast", exponent, to=g.dtypes[x])
    lower = g.op("Where", g.op("Equal", p, zero), zero, g.op("Sub", p, one))
    dx = g.op("Mul", dy, g.op("Mul", p, g.op("Pow", x, lower)))
    empty = g.op("Equal", x, zero)
    log = g.op("Where", empty, zero, g.op("Log", g.op("Where", empty, one, x)))
    return broadcast(g, node, dx, g.op("Mul", dy, g.op("Mul", node.output[0], log)))


@vjp("Mod", refuses="fmod=0 (whole numbers)")
def mod(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """a - b trunc(a / b), between the jumps."""
    a, b = node.input
    quotient = g.op("Div", g.op("Sub", a, node.output[0]), b)
    return broadcast(g, node, dy, g.op("Neg", g.op("Mul", dy, quotient)))


@vjp("Sum")
def total(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return broadcast(g, node, *[dy] * len(node.input))


@vjp("Mean")
def mean(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    share = g.op("Div", dy, g.const(len(node.input), like=node.output[0]))
    return broadcast(g, node, *[share] * len(node.input))


@vjp("Max", "Min")
def extreme(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """Equal extremes share the gradient evenly."""
    y, of = node.output[0], g.dtypes[node.input[0]]
    hits = [g.op("Cast", g.op("Equal", x, y), to=of) for x in node.input]
    share = g.op("Div", dy, functools.reduce(lambda a, b: g.op("Add", a, b), hits))
    return broadcast(g, node, *(g.op("Mul", share, hit) for hit in hits))


@vjp("Where")
def where(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    condition, zero = node.input[0], g.const(0, like=node.output[0])
    return broadcast(g, node, None, g.op("Where", condition, dy, zero), g.op("Where", condition, zero, dy))


@vjp("Clip")
def clip(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, zero = node.input[0], g.const(0, like=node.input[0])
    inside = g.op("Equal", x, node.output[0])  # the edges count as inside
    lost = g.op("Where", inside, zero, dy)
    grads: list[str | None] = [g.op("Where", inside, dy, zero)]
    for bound, beyond in zip(node.input[1:], ("Less", "Greater"), strict=False):
        outside = g.op("Where", g.op(beyond, x, bound), lost, zero) if bound else ""
        grads.append(g.op("ReduceSum", outside, keepdims=0) if outside else None)
    return tuple(grads)


@vjp("Neg")
def neg(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Neg", dy),)


@vjp("Abs")
def absolute(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Mul", dy, g.op("Sign", node.input[0])),)


@vjp("Relu")
def relu(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    if dy in g.gated:
        return (dy,)
    mask = g.op("Cast", node.output[0], to=TensorProto.BOOL)  # Sign takes three times as long, Where ten times
    return (g.op("Mul", dy, g.op("Cast", mask, to=g.dtypes[node.input[0]])),)


@vjp("LeakyRelu")
def leaky_relu(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x = node.input[0]
    below = g.op("Mul", dy, g.const(attributes(node).get("alpha", 0.01), like=x))
    return (g.op("Where", g.op("Greater", x, g.const(0, like=x)), dy, below),)


@vjp("Elu")
def elu(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, y = node.input[0], node.output[0]
    below = g.op("Mul", dy, g.op("Add", y, g.const(attributes(node).get("alpha", 1.0), like=x)))
    return (g.op("Where", g.op("Greater", x, g.const(0, like=x)), dy, below),)


@vjp("Tanh")
def tanh(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    y = node.output[0]
    return (g.op("Mul", dy, g.op("Sub", g.const(1, like=node.input[0]), g.op("Mul", y, y))),)


@vjp("Sigmoid")
def sigmoid(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    y = node.output[0]
    return (g.op("Mul", dy, g.op("Mul", y, g.op("Sub", g.const(1, like=node.input[0]), y))),)


@vjp("Softplus")
def softplus(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Mul", dy, g.op("Sigmoid", node.input[0])),)


@vjp("Exp")
def exp(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Mul", dy, node.output[0]),)


@vjp("Log")
def log(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Div", dy, node.input[0]),)


@vjp("Sqrt")
def sqrt(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    half = g.const(0.5, like=node.input[0])
    return (g.op("Div", g.op("Mul", dy, half), node.output[0]),)


@vjp("Identity")
def identity(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (dy,)


@vjp("CastLike")
def cast_like(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return g.op("Cast", dy, to=g.dtypes[node.input[0]]), None


@vjp("Cast")
def cast(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Cast", dy, to=g.dtypes[node.input[0]]),)
