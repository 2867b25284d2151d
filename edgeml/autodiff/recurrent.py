"""VJP rules of LSTM, GRU and RNN (ONNX operator specification, equations of each): backpropagation through time.

The forward operator gave h of every step. From it the gates of all steps follow at once, in two products; only what is
truly one step after the other (the cell, the gradient of h) walks through a Scan. The weights' gradients are products
over all steps again.

    dpre: gradient of the gates before their activations; dx = dpre W, dW = dpre' x, dR = dpre' h[t-1], db = sum dpre
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from onnx import NodeProto, numpy_helper

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.rules import Grads, vjp_all
from edgeml.autodiff.scan import Body
from edgeml.errors import UnsupportedModel

DEFAULTS = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
TURNS = (8, 5, 4, 3, 2)  # steps in one turn of a Scan, the first that divides their number
KNOWN = ("sigmoid", "hardsigmoid", "tanh", "relu")
REFUSED = ("clip", "input_forget", "layout")


@dataclass(frozen=True, kw_only=True)
class Direction:
    """One direction of a layer, time running forwards: x (T, B, I), h and hprev (T, B, H), weights as 2-D tensors."""

    x: str
    h: str
    hprev: str
    w: str  # (gates H, I)
    r: str  # (gates H, H)
    bw: str  # (gates H,), or "" without bias
    br: str
    cell: str  # the initial one, (B, H); of an LSTM
    dy: str  # of every h
    last: bool  # the last h alone has a gradient, and `dy` is zeros
    dh: str  # of the last h, beside dy
    dc: str  # of the last cell
    hidden: int
    activations: tuple[Activation, ...]  # of the gates, then of the new values


@dataclass(frozen=True)
class Found:
    """Gradients of one direction."""

    x: str
    w: str
    r: str
    b: str
    h0: str = ""
    c0: str = ""


def _layer(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
    """Return the gradients of X, W, R, B, sequence_lens, initial_h and initial_c."""
    _refuse(g, node)
    back = BACK[node.op_type]
    directions = 2 if _way(node) == "bidirectional" else 1
    parts = []
    for index in range(directions):
        backwards = _way(node) == "reverse" or index == 1
        one = _direction(g, node, dys, index=index, backwards=backwards)
        found = back(g, node, one)
        parts.append((found, _turned(g, found.x) if backwards else found.x))
    x = parts[0][1] if directions == 1 else g.op("Add", parts[0][1], parts[1][1])
    stacked = [_stacked(g, [getattr(found, name) for found, _ in parts]) for name in ("w", "r", "b", "h0", "c0")]
    w, r, b, h0, c0 = stacked
    return (x, w, r, b, None, h0, c0, None)[: len(node.input)]


def _refuse(g: GraphBuilder, node: NodeProto) -> None:
    options = attributes(node)
    activations = [name.decode().lower() for name in options.get("activations", [])]
    usual = set(activations) <= set(KNOWN)
    odd = [name for name in REFUSED if options.get(name)]
    if not usual or odd or any(node.input[4:5]) or any(node.input[7:8]):
        what = ", ".join(odd) or (f"activations {activations}" if not usual else "sequence_lens or peepholes")
        raise UnsupportedModel(f"{describe(node)}: {what} has no gradient rule; convert the layer without it")


def _way(node: NodeProto) -> str:
    return str(attributes(node).get("direction", b"forward").decode())


@dataclass(frozen=True)
class Activation:
    """One activation of a layer, by its name in small letters; of a hard sigmoid also its slope and its middle."""

    name: str
    alpha: float = 0.2
    beta: float = 0.5

    def of(self, g: GraphBuilder, x: str) -> str:
        if self.name == "hardsigmoid":
            return g.op("HardSigmoid", x, alpha=self.alpha, beta=self.beta)
        return g.op({"sigmoid": "Sigmoid", "tanh": "Tanh", "relu": "Relu"}[self.name], x)

    def slope(self, g: GraphBuilder, y: str, *, like: str) -> str:
        """Return the slope where the value is `y`."""
        one = g.const(1, like=like)
        if self.name == "sigmoid":
            return g.op("Mul", y, g.op("Sub", one, y))
        if self.name == "tanh":
            return g.op("Sub", one, g.op("Mul", y, y))
        if self.name == "relu":
            return g.op("Sign", y)
        zero = g.const(0, like=like)
        inside = g.op("And", g.op("Greater", y, zero), g.op("Less", y, one))
        return g.op("Where", inside, g.const(self.alpha, like=like), zero)


def _activations(node: NodeProto, index: int) -> tuple[Activation, ...]:
    """Return the activations of one direction; alphas and betas belong to the hard sigmoids, one after the other."""
    default, options = DEFAULTS[node.op_type], attributes(node)
    names = [name.decode().lower() for name in options.get("activations", [])] or [*default, *default]
    found, hard = [], 0
    for name in names:
        given = {}
        if name == "hardsigmoid":
            for key in ("alpha", "beta"):
                if values := options.get(f"activation_{key}", []):
                    given[key] = values[hard] if hard < len(values) else values[-1]
            hard += 1
        found.append(Activation(name, **given))
    return tuple(found[index * len(default) :][: len(default)])


def _direction(
    g: GraphBuilder, node: NodeProto, dys: Sequence[str | None], *, index: int, backwards: bool
) -> Direction:
    hidden = int(attributes(node)["hidden_size"])
    x, w, r = node.input[:3]
    gates = GATES[node.op_type] * hidden
    if not node.output[0]:
        node.output[0] = g.fresh("steps")
    steps = _one(g, node.output[0], index, axis=1)
    g.dtypes[steps] = g.dtypes[x]
    zero = _zeros(g, x, hidden)
    first = _one(g, node.input[5], index) if len(node.input) > 5 and node.input[5] else zero
    cell = _one(g, node.input[6], index) if len(node.input) > 6 and node.input[6] else zero
    bias = _one(g, node.input[3], index) if len(node.input) > 3 and node.input[3] else ""
    bw, br = g.ops("Split", bias, g.ints([gates, gates]), outputs=2, axis=0) if bias else ("", "")
    dy = _one(g, dys[0], index, axis=1) if dys[0] else g.zeros(steps)
    ends = [_one(g, dys[i], index) if len(dys) > i and dys[i] else zero for i in (1, 2)]
    turned, h, dy = (_turned(g, name) for name in (x, steps, dy)) if backwards else (x, steps, dy)
    g.dtypes[turned] = g.dtypes[dy] = g.dtypes[first] = g.dtypes[x]
    return Direction(
        x=turned,
        h=h,
        hprev=_shifted(g, first, h),
        w=_one(g, w, index),
        r=_one(g, r, index),
        bw=bw,
        br=br,
        cell=cell,
        dy=dy,
        last=not dys[0],
        dh=ends[0],
        dc=ends[1],
        hidden=hidden,
        activations=_activations(node, index),
    )


def _lstm(g: GraphBuilder, node: NodeProto, one: Direction) -> Found:
    pre = _gates(g, one, bias=g.op("Add", one.bw, one.br) if one.bw else "")
    i, o, f, c = g.ops("Split", pre, g.ints([one.hidden] * 4), outputs=4, axis=2)
    gate, fresh, out = one.activations
    i, o, f, c = gate.of(g, i), gate.of(g, o), gate.of(g, f), fresh.of(g, c)
    g.dtypes[one.cell] = g.dtypes[one.x]
    turn = _turn_of(g, node)
    cells = _cells(g, one, f=f, news=g.op("Mul", i, c), turn=turn)
    top = out.of(g, cells)
    through = g.op("Mul", o, out.slope(g, top, like=one.x))
    ki = g.op("Mul", c, gate.slope(g, i, like=one.x))
    kf = g.op("Mul", _shifted(g, one.cell, cells), gate.slope(g, f, like=one.x))
    ko, kc = g.op("Mul", top, gate.slope(g, o, like=one.x)), g.op("Mul", i, fresh.slope(g, c, like=one.x))
    slopes = g.op("Concat", ki, ko, kf, kc, axis=2)
    body = Body(g, "dh", "dc", "r", "through", "slopes", "f", *([] if one.last else ["dy"]))
    dh, dc, r, *given = body.inputs
    made: list[str] = []
    for through_, slopes_, f_, *dy in reversed(list(zip(*(body.parts(name, turn) for name in given), strict=True))):
        dh = body.op("Add", *dy, dh) if dy else dh
        dc = body.op("Add", body.op("Mul", dh, through_), dc)
        dpre = body.op("Mul", body.op("Concat", dc, dh, dc, dc, axis=2), slopes_)
        dh, dc = body.op("MatMul", dpre, r), body.op("Mul", dc, f_)
        made.insert(0, dpre)
    outputs = [dh, dc, body.kept(r), body.joined(made)]
    sequences = [_in_turns(g, name, turn) for name in (through, slopes, f, *([] if one.last else [one.dy]))]
    first = g.ints([0])
    states = [g.op("Unsqueeze", name, first) for name in (one.dh, one.dc)]
    g.dtypes[states[0]] = g.dtypes[one.x]
    h0, c0, _, dpres = body.scan([*states, one.r], sequences, outputs=outputs, reverse=True)
    found = _found(g, one, _one_by_one(g, dpres, turn))
    return replace(found, h0=g.op("Squeeze", h0, first), c0=g.op("Squeeze", c0, first))


def _cells(g: GraphBuilder, one: Direction, *, f: str, news: str, turn: int) -> str:
    """Return c[t] = f[t] c[t - 1] + news[t] of every step."""
    body = Body(g, "cell", "f", "news")
    cell, *given = body.inputs
    made = []
    for forget, new in zip(*(body.parts(name, turn) for name in given), strict=True):
        cell = body.op("Add", body.op("Mul", forget, cell), new)
        made.append(cell)
    start = g.op("Unsqueeze", one.cell, g.ints([0]))
    g.dtypes[start] = g.dtypes[one.x]
    sequences = [_in_turns(g, name, turn) for name in (f, news)]
    _, cells = body.scan([start], sequences, outputs=[cell, body.joined(made)])
    return _one_by_one(g, cells, turn)


def _turn_of(g: GraphBuilder, node: NodeProto) -> int:
    """Return how many steps one turn of a Scan takes: a turn costs as much as a few steps, whatever is in it."""
    steps = g.shapes.get(node.input[0], (None,))[0]
    return next((turn for turn in TURNS if isinstance(steps, int) and not steps % turn), 1)


def _in_turns(g: GraphBuilder, sequence: str, turn: int) -> str:
    """Return (turns, steps of a turn, rows, n) of (steps, rows, n)."""
    shape = g.op("Concat", g.ints([-1, turn]), g.op("Slice", g.op("Shape", sequence), g.ints([1]), g.ints([3])), axis=0)
    return g.op("Reshape", sequence, shape)


def _one_by_one(g: GraphBuilder, sequence: str, turn: int) -> str:
    """Undo `_in_turns`."""
    shape = g.op("Concat", g.ints([-1]), g.op("Slice", g.op("Shape", sequence), g.ints([2]), g.ints([4])), axis=0)
    return g.op("Reshape", sequence, shape)


def _rnn(g: GraphBuilder, node: NodeProto, one: Direction) -> Found:
    slope = one.activations[0].slope(g, one.h, like=one.x)
    step = Body(g, "dh", "r", "dy", "slope")
    dh, r, dy, slope_ = step.inputs
    dpre = step.op("Mul", step.op("Add", dy, dh), slope_)
    outputs = [step.op("MatMul", dpre, r), step.kept(r), dpre]
    h0, _, dpres = step.scan([one.dh, one.r], [one.dy, slope], outputs=outputs, reverse=True)
    return replace(_found(g, one, dpres), h0=h0)


def _gru(g: GraphBuilder, node: NodeProto, one: Direction) -> Found:
    """Gates z, r, h; with linear_before_reset the reset acts on the product, else on h[t-1] before it."""
    size, two = one.hidden, g.ints([2 * one.hidden, one.hidden])
    after = bool(attributes(node).get("linear_before_reset", 0))
    wx = g.op("MatMul", one.x, _transposed(g, one.w))
    wx = g.op("Add", wx, one.bw) if one.bw else wx
    x_zr, x_h = g.ops("Split", wx, two, outputs=2, axis=2)
    r_zr, r_h = g.ops("Split", one.r, two, outputs=2, axis=0)
    b_zr, b_h = g.ops("Split", one.br, two, outputs=2, axis=0) if one.br else ("", "")
    pre = g.op("Add", x_zr, g.op("MatMul", one.hprev, _transposed(g, r_zr)))
    gates = one.activations[0].of(g, g.op("Add", pre, b_zr) if b_zr else pre)
    z, r = g.ops("Split", gates, g.ints([size] * 2), outputs=2, axis=2)
    inner = one.hprev if after else g.op("Mul", r, one.hprev)
    product = g.op("MatMul", inner, _transposed(g, r_h))
    product = g.op("Add", product, b_h) if b_h else product
    new = one.activations[1].of(g, g.op("Add", x_h, g.op("Mul", r, product) if after else product))
    keep = g.op("Sub", g.const(1, like=one.x), z)
    a = g.op("Mul", keep, one.activations[1].slope(g, new, like=one.x))
    kz = g.op("Mul", g.op("Sub", one.hprev, new), one.activations[0].slope(g, z, like=one.x))
    kr = g.op("Mul", product if after else one.hprev, one.activations[0].slope(g, r, like=one.x))
    step = Body(g, "dh", "rzr", "rh", "dy", "a", "kz", "kr", "z", "r")
    dh_, rzr, rh, dy, a_, kz_, kr_, z_, r_ = step.inputs
    dh = step.op("Add", dy, dh_)
    dhat, dz = step.op("Mul", dh, a_), step.op("Mul", dh, kz_)
    if after:
        inside = step.op("Mul", dhat, r_)
        dr, direct = step.op("Mul", dhat, kr_), step.op("MatMul", inside, rh)
    else:
        inside = dhat
        dq = step.op("MatMul", dhat, rh)
        dr, direct = step.op("Mul", dq, kr_), step.op("Mul", dq, r_)
    dzr = step.op("Concat", dz, dr, axis=1)
    back = step.op("Add", step.op("Mul", dh, z_), step.op("Add", step.op("MatMul", dzr, rzr), direct))
    outputs = [back, step.kept(rzr), step.kept(rh), dzr, dhat, *([inside] if after else [])]
    sequences = [one.dy, a, kz, kr, z, r]
    h0, _, _, dzrs, dhats, *rest = step.scan([one.dh, r_zr, r_h], sequences, outputs=outputs, reverse=True)
    insides = rest[0] if after else dhats
    dpres = g.op("Concat", dzrs, dhats, axis=2)
    dr_weights = g.op("Concat", _weights(g, dzrs, one.hprev), _weights(g, insides, inner), axis=0)
    over = g.ints([0, 1])
    bw = g.op("ReduceSum", dpres, over, keepdims=0)
    br = g.op("ReduceSum", g.op("Concat", dzrs, insides, axis=2), over, keepdims=0)
    return Found(
        g.op("MatMul", dpres, one.w), _weights(g, dpres, one.x), dr_weights, g.op("Concat", bw, br, axis=0), h0
    )


BACK: dict[str, Callable[[GraphBuilder, NodeProto, Direction], Found]] = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}
ODD = f"{', '.join(REFUSED)}; other activations; sequence_lens; peepholes"
vjp_all(*BACK, refuses=ODD)(_layer)


def _gates(g: GraphBuilder, one: Direction, *, bias: str) -> str:
    """Return the gates of all steps before their activations."""
    inputs, states = g.op("MatMul", one.x, _transposed(g, one.w)), g.op("MatMul", one.hprev, _transposed(g, one.r))
    pre = g.op("Add", inputs, states)
    return g.op("Add", pre, bias) if bias else pre


def _found(g: GraphBuilder, one: Direction, dpres: str) -> Found:
    """Return the gradients where every gate adds its two products and its two biases."""
    bias = g.op("ReduceSum", dpres, g.ints([0, 1]), keepdims=0)
    dx = g.op("MatMul", dpres, one.w)
    both = g.op("Concat", bias, bias, axis=0)
    return Found(dx, _weights(g, dpres, one.x), _weights(g, dpres, one.hprev), both)


def _weights(g: GraphBuilder, dpres: str, factor: str) -> str:
    """Return dpre' factor over all steps and rows."""
    flat = [g.op("Flatten", name, axis=2) for name in (dpres, factor)]
    return g.op("Gemm", *flat, transA=1)


def _transposed(g: GraphBuilder, name: str) -> str:
    return g.op("Transpose", name, perm=[1, 0])


def _one(g: GraphBuilder, name: str | None, index: int, *, axis: int = 0) -> str:
    return g.op("Gather", name or "", g.const(index, dtype="int64"), axis=axis)


def _stacked(g: GraphBuilder, names: Sequence[str]) -> str | None:
    if not all(names):
        return None
    first = g.ints([0])
    parts = [g.op("Unsqueeze", name, first) for name in names]
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=0)


def _turned(g: GraphBuilder, name: str) -> str:
    """Return the sequence backwards."""
    return g.op("Slice", name, g.ints([-1]), g.ints([-(2**31)]), g.ints([0]), g.ints([-1]))


def _shifted(g: GraphBuilder, first: str, sequence: str) -> str:
    """Return the sequence one step later, `first` before it."""
    rest = g.op("Slice", sequence, g.ints([0]), g.ints([-1]), g.ints([0]))
    return g.op("Concat", g.op("Unsqueeze", first, g.ints([0])), rest, axis=0)


def _zeros(g: GraphBuilder, x: str, hidden: int) -> str:
    """Return zeros of (rows, hidden), of the type of `x`."""
    zero = numpy_helper.from_array(np.zeros(1, g.numpy_type(x)))
    return g.op("ConstantOfShape", g.dims(x, (1, 2), hidden), value=zero)
