"""The activations of recurrent layers, and their slopes where the value is known (ONNX operator specification, RNN).

A slope is wanted times a factor whose product with the value is at hand already: a cell multiplied them forwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.scan import Body
from edgeml.errors import UnsupportedModel

DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
OPERATORS = {
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "softsign": "Softsign",
    "softplus": "Softplus",
    "leakyrelu": "LeakyRelu",
    "thresholdedrelu": "ThresholdedRelu",
    "elu": "Elu",
    "hardsigmoid": "HardSigmoid",
}
GIVEN = {  # alpha, and beta where there is one, when the layer does not say: what onnxruntime takes
    "affine": (0.0, 0.0),
    "scaledtanh": (0.0, 0.0),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01,),
    "thresholdedrelu": (0.0,),
    "elu": (1.0,),
}
_RISING = ("leakyrelu", "elu")  # the sign of their value is that of what goes in, unless alpha is below 0


@dataclass(frozen=True)
class Activation:
    """One activation of a layer, by its name in small letters."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def of(self, body: Body, x: str) -> str:
        """Return the value at `x`, inside a step."""
        if self.name == "affine":
            return body.op("Add", body.op("Mul", x, body.const(self.alpha)), body.const(self.beta))
        if self.name == "scaledtanh":
            return body.op("Mul", body.op("Tanh", body.op("Mul", x, body.const(self.beta))), body.const(self.alpha))
        count = len(GIVEN.get(self.name, ()))
        return body.op(OPERATORS[self.name], x, **dict([("alpha", self.alpha), ("beta", self.beta)][:count]))

    @property
    def of_its_product(self) -> bool:
        """Whether `times` needs the product alone, not the factor."""
        return self.name == "sigmoid"

    def times(self, g: GraphBuilder, factor: str, y: str, *, product: str) -> str:
        """Return `factor` times the slope where the value is `y`; `product` is factor times y."""
        if self.name == "sigmoid":
            return g.op("Sub", product, g.op("Mul", product, y))
        if self.name == "tanh":
            return g.op("Sub", factor, g.op("Mul", product, y))
        return g.op("Mul", factor, self.slope(g, y))

    def slope(self, g: GraphBuilder, y: str) -> str:
        """Return the slope where the value is `y`."""
        one, zero = g.const(1, like=y), g.const(0, like=y)
        alpha = g.const(self.alpha, like=y)
        if self.name in ("sigmoid", "tanh"):
            return self.times(g, one, y, product=y)
        if self.name == "softsign":
            left = g.op("Sub", one, g.op("Abs", y))
            return g.op("Mul", left, left)
        if self.name == "softplus":
            return g.op("Sub", one, g.op("Exp", g.op("Neg", y)))
        if self.name == "scaledtanh":
            bent = g.op("Mul", y, g.op("Mul", y, g.const(self.beta / (self.alpha or 1), like=y)))
            return g.op("Sub", g.const(self.alpha * self.beta, like=y), bent)
        above = g.op("Greater", y, zero)
        pieces = {
            "relu": lambda: g.op("Where", above, one, zero),
            "leakyrelu": lambda: g.op("Where", above, one, alpha),
            "elu": lambda: g.op("Where", above, one, g.op("Add", y, alpha)),
            "thresholdedrelu": lambda: g.op("Where", g.op("Equal", y, zero), zero, one),
            "hardsigmoid": lambda: g.op("Where", g.op("And", above, g.op("Less", y, one)), alpha, zero),
            "affine": lambda: g.op("Add", g.op("Mul", y, zero), alpha),
        }
        return pieces[self.name]()


def activations_of(node: NodeProto) -> list[tuple[Activation, ...]]:
    """Return the activations of each direction; alphas and betas belong, in order, to those that take them."""
    options, count = attributes(node), len(DEFAULTS[node.op_type])
    names = [name.decode().lower() for name in options.get("activations", [])] or [*DEFAULTS[node.op_type]] * 2
    alphas, betas = (list(options.get(f"activation_{key}", [])) for key in ("alpha", "beta"))
    found = []
    for name in names:
        usual = GIVEN.get(name, ())
        numbers = [kind.pop(0) if kind else of for kind, of in zip((alphas, betas), usual, strict=False)]
        found.append(Activation(name, *numbers))
    _check(node, found)
    return [tuple(found[start : start + count]) for start in range(0, len(found), count)]


def _check(node: NodeProto, found: Sequence[Activation]) -> None:
    known = {*OPERATORS, *GIVEN}
    for one in found:
        if one.name not in known:
            raise UnsupportedModel(f"{describe(node)}: activation {one.name!r} is none of ONNX's {sorted(known)}")
        if one.name in _RISING and one.alpha < 0:
            raise UnsupportedModel(
                f"{describe(node)}: {one.name} with an alpha of {one.alpha:g}, below 0, has no gradient rule; "
                f"convert the layer with another activation"
            )
