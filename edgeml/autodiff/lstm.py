"""LSTM forwards, keeping what its gradient needs, and backwards (ONNX operator specification, LSTM).

    i, o, f = gate(x W' + h R' + b [+ p c]); g = fresh(...); c = f c + i g; h = o out(c)

Backwards, dh and dc are one step after the other; everything they are multiplied with is known before:

    dc = dh k + q;   dpre = (dc, dh, dc, dc) slopes;   dh[t-1] = dpre R;   q[t-1] = dc f

Peepholes change k and f alone: dc grows by dpre_o p_o, and q by dpre_i p_i + dpre_f p_f.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.direction import Direction, Found, Walk, beside, shifted, summed
from edgeml.autodiff.scan import Body


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Of every step, (T, B, H): the gates, the fresh value, its two products, out(c) and h."""

    i: str
    o: str
    f: str  # "" where it is 1 - i
    fresh: str
    into: str  # what the input gate lets in
    held: str  # what the forget gate holds, "" without one
    top: str
    h: str
    factors: str  # x, 1 and the h before, side by side, or ""
    cells: str  # where something needs them
    pres: tuple[str, ...]  # of i, o, f, fresh, where they are clipped


def lstm(g: GraphBuilder, one: Direction) -> Walk:
    kept, h, c = _forwards(g, one)
    return Walk(every=kept.h, h=h, c=c, found=_backwards(g, one, kept))


def _needs_cells(one: Direction) -> bool:
    return bool(one.peepholes) or one.coupled or not one.activations[0].of_its_product


def _forwards(g: GraphBuilder, one: Direction) -> tuple[_Kept, str, str]:
    """Return what is kept, the last h and the last cell."""
    gate, fresh, out = one.activations
    body = Body(g, like=one.x)
    h, c = body.state(one.h0), body.state(one.c0)
    pres, factors = one.sums(g, body, h, biases=g.op("Add", one.bw, one.br) if one.bw else "")
    peep = [body.fixed(p, vector=True) for p in _peepholes(g, one)] if one.peepholes else []

    def pre(index: int, cell: str) -> str:
        if peep and index < 3:
            pres[index] = body.op("Add", pres[index], body.op("Mul", peep[index], cell))
        return one.limited(body, pres[index])

    i, new = gate.of(body, pre(0, c)), fresh.of(body, pre(3, c))
    if one.coupled:
        f = held = ""
        into = body.op("Mul", i, body.op("Sub", new, c))
        cell = body.op("Add", c, into)
    else:
        f = gate.of(body, pre(2, c))
        into, held = body.op("Mul", i, new), body.op("Mul", f, c)
        cell = body.op("Add", into, held)
    o, top = gate.of(body, pre(1, cell)), out.of(body, cell)
    h_next, c_next = one.either(body, body.op("Mul", o, top), h), one.either(body, cell, c)
    every = {"i": i, "o": o, "f": f, "fresh": new, "into": into, "held": held, "top": top, "h": h_next}
    every |= {"factors": factors, "cells": c_next if _needs_cells(one) else ""}
    clipped = {f"pre{index}": pre if one.clip else "" for index, pre in enumerate(pres)}
    (last, last_cell), found = body.walk([h_next, c_next], every | clipped)
    pres_found = tuple(found.pop(key) for key in clipped)
    return _Kept(**found, pres=pres_found), last, last_cell


def _peepholes(g: GraphBuilder, one: Direction) -> tuple[str, ...]:
    return g.ops("Split", one.peepholes, g.ints([one.hidden] * 3), outputs=3, axis=0)


def _slopes(g: GraphBuilder, one: Direction, kept: _Kept, *, before: str) -> tuple[list[str], str, str]:
    """Return the slopes of the gates i, o, f and of the fresh value, k and f as the loop takes them."""
    gate, fresh, out = one.activations
    let_in = g.op("Sub", kept.fresh, before) if one.coupled else kept.fresh
    product = g.op("Mul", kept.i, kept.fresh) if one.coupled else kept.into
    slopes = [
        gate.times(g, let_in, kept.i, product=kept.into),
        gate.times(g, kept.top, kept.o, product=kept.h),
        g.zeros(kept.h) if one.coupled else gate.times(g, before, kept.f, product=kept.held),
        fresh.times(g, kept.i, kept.fresh, product=product),
    ]
    if one.clip:
        slopes = [one.inside(g, slope, pre) for slope, pre in zip(slopes, kept.pres, strict=True)]
    through = out.times(g, kept.o, kept.top, product=kept.h)
    f = g.op("Sub", g.const(1, like=one.x), kept.i) if one.coupled else kept.f
    if one.peepholes:
        p_i, p_o, p_f = _peepholes(g, one)
        through = g.op("Add", through, g.op("Mul", slopes[1], p_o))
        f = g.op("Add", f, g.op("Add", g.op("Mul", slopes[0], p_i), g.op("Mul", slopes[2], p_f)))
    return slopes, one.masked(g, through), one.masked(g, f, beyond=1)


def _backwards(g: GraphBuilder, one: Direction, kept: _Kept) -> Found:
    before = shifted(g, one.c0, kept.cells) if kept.cells else ""
    slopes, through, f = _slopes(g, one, kept, before=before)
    body = Body(g, like=one.x)
    dh, q = body.state(one.dh), body.state(one.dc)
    dh_all = one.arriving(body, dh)
    dc = body.op("Add", body.op("Mul", dh_all, body.each(through)), q)
    four = body.op("Concat", dc, dh_all, dc, dc, axis=1)
    dpre = body.op("Mul", four, body.each(one.masked(g, g.op("Concat", *slopes, axis=2))))
    dh_next = one.either(body, body.op("MatMul", dpre, body.fixed(one.r)), dh_all)
    q_next = body.op("Mul", dc, body.each(f))
    (h0, c0), found = body.walk([dh_next, q_next], {"dpre": dpre}, reverse=True)
    dpres = found["dpre"]
    w, r, b = summed(g, one, dpres, factors=kept.factors or beside(g, one, shifted(g, one.h0, kept.h)))
    return Found(
        x=g.op("MatMul", dpres, one.w),
        w=w,
        r=r,
        b=g.op("Concat", b, b, axis=0),
        h0=h0,
        c0=c0,
        peepholes=_of_peepholes(g, one, kept, before=before, dpres=dpres) if one.peepholes else "",
    )


def _of_peepholes(g: GraphBuilder, one: Direction, kept: _Kept, *, before: str, dpres: str) -> str:
    i, o, f, _ = g.ops("Split", dpres, g.ints([one.hidden] * 4), outputs=4, axis=2)
    seen = [g.op("Mul", i, before), g.op("Mul", o, kept.cells), g.op("Mul", f, before)]
    return g.op("ReduceSum", g.op("Concat", *seen, axis=2), g.ints([0, 1]), keepdims=0)
