"""GRU and RNN forwards, keeping what their gradients need, and backwards (ONNX operator specification, GRU and RNN).

    z, r = gate(x W' + h R' + b)
    new = fresh(x W' + r (h R' + b_r) + b_w), or fresh(x W' + (r h) R' + b) where the reset comes first
    h = new + z (h - new)

Where the reset comes last, dpre of all gates is dh times what is known before: one product takes dh a step back.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.direction import Direction, Found, Walk, beside, shifted, summed
from edgeml.autodiff.scan import Body


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """Of every step, (T, B, H): the gates, the new value, z (h - new), what the reset made, and h."""

    z: str
    r: str
    new: str
    moved: str  # z (h - new)
    reset: str  # r (h R' + b), or r h
    h: str
    apart: str  # h - new, and the product that the reset acts on, where something needs them
    product: str
    pres: tuple[str, ...]  # of z, r, new, where they are clipped


def rnn(g: GraphBuilder, one: Direction) -> Walk:
    """h = fresh(x W' + h R' + b)."""
    (fresh,) = one.activations
    body = Body(g, like=one.x)
    h = body.state(one.h0)
    (pre,), factors = one.sums(g, body, h, biases=g.op("Add", one.bw, one.br) if one.bw else "")
    value = fresh.of(body, one.limited(body, pre))
    h_next = one.either(body, value, h)
    (last,), kept = body.walk([h_next], {"h": h_next, "factors": factors, "pre": pre if one.clip else ""})
    every = kept["h"]
    slope = one.inside(g, fresh.slope(g, every), kept["pre"])
    back = Body(g, like=one.x)
    dh = one.arriving(back, back.state(one.dh))
    dpre = back.op("Mul", dh, back.each(one.masked(g, slope)))
    dh_next = one.either(back, back.op("MatMul", dpre, back.fixed(one.r)), dh)
    (h0,), found = back.walk([dh_next], {"dpre": dpre}, reverse=True)
    dpres = found["dpre"]
    dw, dr, db = summed(g, one, dpres, factors=kept["factors"] or beside(g, one, shifted(g, one.h0, every)))
    both = g.op("Concat", db, db, axis=0)
    return Walk(every=every, h=last, found=Found(x=g.op("MatMul", dpres, one.w), w=dw, r=dr, b=both, h0=h0))


def gru(g: GraphBuilder, one: Direction) -> Walk:
    kept, last = _forwards(g, one)
    found = _reset_last(g, one, kept) if one.reset_last else _reset_first(g, one, kept)
    return Walk(every=kept.h, h=last, found=found)


def _forwards(g: GraphBuilder, one: Direction) -> tuple[_Kept, str]:
    """Return what is kept, and the last h."""
    gate, fresh = one.activations
    body = Body(g, like=one.x)
    h = body.state(one.h0)
    biases, inner = _biases(g, one)
    xz, xr, xh = (body.each(x) for x in one.products(g, biases))
    rz, rr, rh = (body.fixed(r) for r in one.recurrent(g))
    pre_z, pre_r = body.op("Gemm", h, rz, xz), body.op("Gemm", h, rr, xr)
    z, r = (gate.of(body, one.limited(body, pre)) for pre in (pre_z, pre_r))
    if one.reset_last:
        product = body.op("Gemm", h, rh, *([body.fixed(inner, vector=True)] if inner else []))
        reset = body.op("Mul", r, product)
        pre = body.op("Add", reset, xh)
    else:
        product, reset = "", body.op("Mul", r, h)
        pre = body.op("Gemm", reset, rh, xh)
    new = fresh.of(body, one.limited(body, pre))
    apart = body.op("Sub", h, new)
    moved = body.op("Mul", z, apart)
    h_next = one.either(body, body.op("Add", new, moved), h)
    every = {"z": z, "r": r, "new": new, "moved": moved, "reset": reset, "h": h_next}
    every |= dict.fromkeys(("apart", "product"), "") if gate.of_its_product else {"apart": apart, "product": product}
    clipped = {f"pre{index}": name if one.clip else "" for index, name in enumerate((pre_z, pre_r, pre))}
    (last,), found = body.walk([h_next], every | clipped)
    pres = tuple(found.pop(key) for key in clipped)
    return _Kept(**found, pres=pres), last


def _biases(g: GraphBuilder, one: Direction) -> tuple[list[str], str]:
    """Return the biases beside x W', and the one inside the reset."""
    if not one.bw:
        return [""] * 3, ""
    if not one.reset_last:
        return one.parted(g, g.op("Add", one.bw, one.br)), ""
    pairs = list(zip(one.parted(g, one.bw), one.parted(g, one.br), strict=True))
    return [*(g.op("Add", *pair) for pair in pairs[:2]), pairs[2][0]], pairs[2][1]


def _slopes(g: GraphBuilder, one: Direction, kept: _Kept, *, factor: str) -> tuple[str, str, str, str]:
    """Return what dh is multiplied with for z's dpre and for that of the new value; what is for r's; and z."""
    gate, fresh = one.activations
    keep = g.op("Sub", g.const(1, like=one.x), kept.z)
    kz = gate.times(g, kept.apart, kept.z, product=kept.moved)
    kr = gate.times(g, factor, kept.r, product=kept.reset)
    a = fresh.times(g, keep, kept.new, product=g.op("Mul", keep, kept.new))
    if one.clip:
        kz, kr, a = (one.inside(g, slope, pre) for slope, pre in zip((kz, kr, a), kept.pres, strict=True))
    kz, kr, a = (one.masked(g, slope) for slope in (kz, kr, a))
    return kz, kr, a, one.masked(g, kept.z, beyond=1)


def _reset_last(g: GraphBuilder, one: Direction, kept: _Kept) -> Found:
    kz, kr, a, z = _slopes(g, one, kept, factor=kept.product)
    slopes = g.op("Concat", kz, g.op("Mul", a, kr), g.op("Mul", a, kept.r), axis=2)
    body = Body(g, like=one.x)
    dh = one.arriving(body, body.state(one.dh))
    inner = body.op("Mul", body.op("Concat", dh, dh, dh, axis=1), body.each(slopes))
    dh_next = body.op("Gemm", inner, body.fixed(one.r), body.op("Mul", dh, body.each(z)))
    (h0,), found = body.walk([dh_next], {"inner": inner, "dh": dh}, reverse=True)
    inners, dnews = found["inner"], g.op("Mul", found["dh"], a)
    factors = beside(g, one, shifted(g, one.h0, kept.h))
    w, r, br = summed(g, one, inners, factors=factors)
    w_new, _, b_new = summed(g, one, dnews, factors=factors)
    two = g.ints([2 * one.hidden, one.hidden])
    (w, _), (b, _) = (g.ops("Split", part, two, outputs=2, axis=0) for part in (w, br))
    dzrs, _ = g.ops("Split", inners, two, outputs=2, axis=2)
    bias = g.op("Concat", b, b_new, br, axis=0)
    return Found(x=_dx(g, one, dzrs=dzrs, dnews=dnews), w=g.op("Concat", w, w_new, axis=0), r=r, b=bias, h0=h0)


def _reset_first(g: GraphBuilder, one: Direction, kept: _Kept) -> Found:
    before = shifted(g, one.h0, kept.h)
    kz, kr, a, z = _slopes(g, one, kept, factor=before)
    r_zr, r_h = g.ops("Split", one.r, g.ints([2 * one.hidden, one.hidden]), outputs=2, axis=0)
    body = Body(g, like=one.x)
    dh = one.arriving(body, body.state(one.dh))
    dnew = body.op("Mul", dh, body.each(a))
    dreset = body.op("MatMul", dnew, body.fixed(r_h))
    dr = body.op("Mul", dreset, body.each(kr))
    dzr = body.op("Concat", body.op("Mul", dh, body.each(kz)), dr, axis=1)
    direct = body.op("Add", body.op("Mul", dh, body.each(z)), body.op("Mul", dreset, body.each(kept.r)))
    dh_next = body.op("Gemm", dzr, body.fixed(r_zr), direct)
    (h0,), found = body.walk([dh_next], {"dzr": dzr, "dnew": dnew}, reverse=True)
    dzrs, dnews = found["dzr"], found["dnew"]
    parts = zip(
        summed(g, one, dzrs, factors=beside(g, one, before)),
        summed(g, one, dnews, factors=beside(g, one, kept.reset)),
        strict=True,
    )
    w, r, b = (g.op("Concat", *pair, axis=0) for pair in parts)
    return Found(x=_dx(g, one, dzrs=dzrs, dnews=dnews), w=w, r=r, b=g.op("Concat", b, b, axis=0), h0=h0)


def _dx(g: GraphBuilder, one: Direction, *, dzrs: str, dnews: str) -> str:
    return g.op("MatMul", g.op("Concat", dzrs, dnews, axis=2), one.w)
