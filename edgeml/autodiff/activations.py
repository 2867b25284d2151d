"""VJP rules of functions of one element, the activations among them. Formulas: the ONNX operator specification."""

from __future__ import annotations

import math

from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder, attributes
from edgeml.autodiff.rules import Grads, broadcast, vjp


@vjp("Reciprocal")
def reciprocal(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    y = node.output[0]
    return (g.op("Neg", g.op("Mul", dy, g.op("Mul", y, y))),)


@vjp("Erf")
def erf(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x = node.input[0]
    bell = g.op("Exp", g.op("Neg", g.op("Mul", x, x)))
    return (g.op("Mul", dy, g.op("Mul", g.const(2 / math.sqrt(math.pi), like=x), bell)),)


@vjp("Sin")
def sin(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Mul", dy, g.op("Cos", node.input[0])),)


@vjp("Cos")
def cos(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Neg", g.op("Mul", dy, g.op("Sin", node.input[0]))),)


@vjp("Tan")
def tan(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    y = node.output[0]
    return (g.op("Mul", dy, g.op("Add", g.const(1, like=node.input[0]), g.op("Mul", y, y))),)


@vjp("Sinh")
def sinh(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    return (g.op("Mul", dy, _cosh(g, node.input[0])),)


@vjp("Cosh")
def cosh(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    up, down = g.op("Exp", node.input[0]), g.op("Exp", g.op("Neg", node.input[0]))
    return (g.op("Mul", dy, g.op("Mul", g.const(0.5, like=node.input[0]), g.op("Sub", up, down))),)


def _cosh(g: GraphBuilder, x: str) -> str:
    """The operator itself has no float64 kernel in onnxruntime."""
    return g.op("Mul", g.const(0.5, like=x), g.op("Add", g.op("Exp", x), g.op("Exp", g.op("Neg", x))))


@vjp("Atan", "Asin", "Acos", "Asinh", "Acosh", "Atanh")
def inverse_of_an_angle(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """The slope is one over 1 + x^2, sqrt(1 - x^2), -sqrt(1 - x^2), sqrt(x^2 + 1), sqrt(x^2 - 1), 1 - x^2."""
    x = node.input[0]
    one, square = g.const(1, like=x), g.op("Mul", x, x)
    below = {
        "Atan": lambda: g.op("Add", one, square),
        "Asin": lambda: g.op("Sqrt", g.op("Sub", one, square)),
        "Acos": lambda: g.op("Neg", g.op("Sqrt", g.op("Sub", one, square))),
        "Asinh": lambda: g.op("Sqrt", g.op("Add", square, one)),
        "Acosh": lambda: g.op("Sqrt", g.op("Sub", square, one)),
        "Atanh": lambda: g.op("Sub", one, square),
    }
    return (g.op("Div", dy, below[node.op_type]()),)


@vjp("Shrink")
def shrink(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x = node.input[0]
    beyond = g.op("Greater", g.op("Abs", x), g.const(attributes(node).get("lambd", 0.5), like=x))
    return (g.op("Where", beyond, dy, g.const(0, like=x)),)


@vjp("Softsign")
def softsign(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x = node.input[0]
    one = g.op("Add", g.const(1, like=x), g.op("Abs", x))
    return (g.op("Div", dy, g.op("Mul", one, one)),)


@vjp("Selu")
def selu(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, y, options = node.input[0], node.output[0], attributes(node)
    alpha, gamma = options.get("alpha", 1.6732632423543772), options.get("gamma", 1.0507009873554805)
    below = g.op("Add", y, g.const(alpha * gamma, like=x))
    return (g.op("Mul", dy, g.op("Where", _positive(g, x), g.const(gamma, like=x), below)),)


@vjp("Celu")
def celu(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """y = alpha (exp(x / alpha) - 1) below 0, where its slope is y / alpha + 1."""
    x, one = node.input[0], g.const(1, like=node.input[0])
    alpha = g.const(attributes(node).get("alpha", 1.0), like=x)
    below = g.op("Add", g.op("Div", node.output[0], alpha), one)
    return (g.op("Mul", dy, g.op("Where", _positive(g, x), one, below)),)


@vjp("ThresholdedRelu")
def thresholded_relu(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x = node.input[0]
    above = g.op("Greater", x, g.const(attributes(node).get("alpha", 1.0), like=x))
    return (g.op("Where", above, dy, g.const(0, like=x)),)


@vjp("HardSigmoid")
def hard_sigmoid(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    y, zero, one = node.output[0], g.const(0, like=node.input[0]), g.const(1, like=node.input[0])
    between = g.op("And", g.op("Greater", y, zero), g.op("Less", y, one))
    slope = g.const(attributes(node).get("alpha", 0.2), like=node.input[0])
    return (g.op("Where", between, g.op("Mul", dy, slope), zero),)


@vjp("HardSwish")
def hard_swish(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """y = x clip(x / 6 + 1/2, 0, 1): its slope is x / 3 + 1/2 between -3 and 3, then 0 or 1."""
    x = node.input[0]
    slope = g.op("Add", g.op("Div", x, g.const(3, like=x)), g.const(0.5, like=x))
    below, above = g.op("Less", x, g.const(-3, like=x)), g.op("Greater", x, g.const(3, like=x))
    slope = g.op("Where", below, g.const(0, like=x), g.op("Where", above, g.const(1, like=x), slope))
    return (g.op("Mul", dy, slope),)


@vjp("Mish")
def mish(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, one = node.input[0], g.const(1, like=node.input[0])
    t = g.op("Tanh", g.op("Softplus", x))
    rest = g.op("Mul", g.op("Mul", x, g.op("Sigmoid", x)), g.op("Sub", one, g.op("Mul", t, t)))
    return (g.op("Mul", dy, g.op("Add", t, rest)),)


@vjp("Gelu")
def gelu(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """x Phi(x), or its approximation by tanh (arXiv 1606.08415)."""
    x, half, one = node.input[0], g.const(0.5, like=node.input[0]), g.const(1, like=node.input[0])
    if attributes(node).get("approximate", b"none") != b"tanh":
        scaled = g.op("Mul", x, g.const(1 / math.sqrt(2), like=x))
        phi = g.op("Mul", half, g.op("Add", one, g.op("Erf", scaled)))
        bell = g.op("Exp", g.op("Mul", g.const(-0.5, like=x), g.op("Mul", x, x)))
        density = g.op("Mul", g.const(1 / math.sqrt(2 * math.pi), like=x), bell)
        return (g.op("Mul", dy, g.op("Add", phi, g.op("Mul", x, density))),)
    root, cubic, square = g.const(math.sqrt(2 / math.pi), like=x), 0.044715, g.op("Mul", x, x)
    bent = g.op("Add", one, g.op("Mul", g.const(cubic, like=x), square))
    t = g.op("Tanh", g.op("Mul", root, g.op("Mul", x, bent)))
    steep = g.op("Mul", root, g.op("Add", one, g.op("Mul", g.const(3 * cubic, like=x), square)))
    inner = g.op("Mul", g.op("Sub", one, g.op("Mul", t, t)), steep)
    return (g.op("Mul", dy, g.op("Mul", half, g.op("Add", g.op("Add", one, t), g.op("Mul", x, inner)))),)


@vjp("PRelu")
def prelu(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, slope = node.input
    above, zero = _positive(g, x), g.const(0, like=x)
    dx = g.op("Where", above, dy, g.op("Mul", dy, slope))
    return broadcast(g, node, dx, g.op("Where", above, zero, g.op("Mul", dy, x)))


def _positive(g: GraphBuilder, x: str) -> str:
    return g.op("Greater", x, g.const(0, like=x))
