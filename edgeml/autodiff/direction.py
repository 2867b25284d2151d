"""One direction of a recurrent layer, time running forwards, and what LSTM, GRU and RNN share of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import numpy_helper

from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.gates import Activation
from edgeml.autodiff.scan import Body


@dataclass(frozen=True, kw_only=True)
class Direction:
    """x (T, B, I) and the weights of one direction; "" for what the layer does not have."""

    x: str
    w: str  # (gates H, I)
    r: str  # (gates H, H)
    bw: str  # (gates H,)
    br: str
    peepholes: str  # (3 H,), of the gates i, o and f of an LSTM
    h0: str  # (B, H)
    c0: str
    mask: str  # (T, B, 1), whether a step is one of its row
    dy: str  # the gradient of every h, where one has any
    dh: str  # of the last h, beside dy
    dc: str  # of the last cell
    hidden: int
    inputs: int | None  # I, where it is known
    gates: int
    activations: tuple[Activation, ...]  # of the gates, then of the new values
    clip: float  # of what goes into an activation, 0 for none
    reset_last: bool  # of a GRU: the reset acts on the product
    coupled: bool  # of an LSTM: f = 1 - i

    def parted(self, g: GraphBuilder, name: str) -> list[str]:
        """Return the parts of a weight or bias that belong to the gates."""
        if self.gates == 1:
            return [name]
        return list(g.ops("Split", name, g.ints([self.hidden] * self.gates), outputs=self.gates, axis=0))

    def products(self, g: GraphBuilder, biases: Sequence[str]) -> list[str]:
        """Return x W' of every gate with its bias, (T, B, H) each."""
        flat, shape = g.op("Flatten", self.x, axis=2), g.dims(self.x, (0, 2), self.hidden)
        made = []
        for w, bias in zip(self.parted(g, self.w), biases, strict=True):
            product = g.op("Gemm", flat, w, *([bias] if bias else []), transB=1)
            made.append(g.op("Reshape", product, shape))
        return made

    def recurrent(self, g: GraphBuilder) -> list[str]:
        """Return R' of every gate."""
        return [g.op("Transpose", r, perm=[1, 0]) for r in self.parted(g, self.r)]

    def sums(self, g: GraphBuilder, body: Body, h: str, *, biases: str) -> tuple[list[str], str]:
        """Return x W' + h R' + b of every gate in one step, and (x, 1, h) of the step, or "".

        A narrow x goes into the product of h; that of a wide one is made before, for all steps.
        """
        if self.inputs is None or self.inputs > self.hidden:
            parts = self.parted(g, biases) if biases else [""] * self.gates
            pairs = zip(self.recurrent(g), self.products(g, parts), strict=True)
            return [body.op("Gemm", h, body.fixed(r), body.each(x)) for r, x in pairs], ""
        biases = biases or g.const(np.zeros(self.gates * self.hidden), like=self.x)
        whole = g.op("Concat", self.w, g.op("Unsqueeze", biases, g.ints([1])), self.r, axis=1)
        factors = body.op("Concat", body.each(g.op("Concat", self.x, self.ones(g), axis=2)), h, axis=1)
        turned = [g.op("Transpose", part, perm=[1, 0]) for part in self.parted(g, whole)]
        return [body.op("Gemm", factors, body.fixed(part)) for part in turned], factors

    def ones(self, g: GraphBuilder) -> str:
        """Return (T, B, 1), what a bias is multiplied with."""
        one = numpy_helper.from_array(np.ones(1, g.numpy_type(self.x)))
        return g.op("ConstantOfShape", g.dims(self.x, (0, 2), 1), value=one)

    def limited(self, body: Body, pre: str) -> str:
        """Return what goes into an activation, clipped."""
        return body.op("Clip", pre, body.const(-self.clip), body.const(self.clip)) if self.clip else pre

    def inside(self, g: GraphBuilder, slope: str, pre: str) -> str:
        """Return `slope` where `pre` was not clipped, 0 elsewhere."""
        if not self.clip:
            return slope
        within = g.op("Less", g.op("Abs", pre), g.const(self.clip, like=self.x))
        return g.op("Where", within, slope, g.const(0, like=self.x))

    def masked(self, g: GraphBuilder, name: str, *, beyond: float = 0) -> str:
        """Return `name` with `beyond` in the steps that a row does not have."""
        return g.op("Where", self.mask, name, g.const(beyond, like=self.x)) if self.mask else name

    def either(self, body: Body, new: str, old: str) -> str:
        """Return the state after a step: the `old` one where a row ended before."""
        return body.op("Where", body.each(self.mask), new, old) if self.mask else new

    def arriving(self, body: Body, dh: str) -> str:
        """Return the whole gradient of the h of a step."""
        return body.op("Add", body.each(self.dy), dh) if self.dy else dh


@dataclass(frozen=True, kw_only=True)
class Found:
    """Gradients of one direction, of the shapes of what they are for."""

    x: str
    w: str
    r: str
    b: str
    h0: str
    c0: str = ""
    peepholes: str = ""


@dataclass(frozen=True, kw_only=True)
class Walk:
    """h of every step (T, B, H), the last h and the last cell, and the gradients."""

    every: str
    h: str
    c: str = ""
    found: Found


Cell = Callable[[GraphBuilder, Direction], Walk]


def summed(g: GraphBuilder, one: Direction, dpres: str, *, factors: str) -> tuple[str, str, str]:
    """Return sum dpre' x, sum dpre' state and sum dpre, over all steps and rows, by one product.

    `dpres` are (T, B, n), of n gates' units, `factors` (x, 1, state) of every step. Returns (n, I), (n, H) and (n,).
    """
    both = g.op("Gemm", g.op("Flatten", factors, axis=2), g.op("Flatten", dpres, axis=2), transA=1)
    if one.inputs:
        sizes = g.ints([one.inputs, 1, one.hidden])
    else:
        sizes = g.op("Concat", g.dims(one.w, (1, 2)), g.ints([1, one.hidden]), axis=0)
    w, b, r = g.ops("Split", both, sizes, outputs=3, axis=0)
    return g.op("Transpose", w, perm=[1, 0]), g.op("Transpose", r, perm=[1, 0]), g.op("Squeeze", b, g.ints([0]))


def beside(g: GraphBuilder, one: Direction, state: str) -> str:
    """Return (x, 1, state) of every step."""
    return g.op("Concat", one.x, one.ones(g), state, axis=2)


def shifted(g: GraphBuilder, first: str, sequence: str) -> str:
    """Return the sequence one step later, `first` before it."""
    rest = g.op("Slice", sequence, g.ints([0]), g.ints([-1]), g.ints([0]))
    return g.op("Concat", g.op("Unsqueeze", first, g.ints([0])), rest, axis=0)
