"""The gradient of a convolution's weight as products over one long axis: rows and positions together.

X and dY are laid out channels first, every picture on one grid, so that a position of the kernel (a tap) is a shift
along that axis: dW[:, :, tap] = dY X[shifted]'. dY is zero where the grid has no output, so what wraps around counts
nothing. A stride s parts the grid into s phases per axis; a tap lies in one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.window import Layer, Tensors

FEW = 8  # channels of a group: up to so many, all taps are one product
END = 2**62


@dataclass(frozen=True)
class _Tap:
    phase: int
    shift: int


def by_taps(g: GraphBuilder, layer: Layer, tensors: Tensors) -> str:
    """Return dW of `layer`, whose sizes are all known but for the rows."""
    x, dy, _ = tensors
    move, group = layer.move, layer.move.group
    reach = [
        (o - 1) * s + (k - 1) * d + 1
        for o, s, k, d in zip(layer.after, move.strides, move.kernel, move.dilations, strict=True)
    ]
    grid = [-(-r // s) for r, s in zip(reach, move.strides, strict=True)]
    steps = [math.prod(grid[axis + 1 :]) for axis in range(move.rank)]
    taps = []
    for place in np.ndindex(*move.kernel):
        parts = [divmod(int(t) * d, s) for t, d, s in zip(place, move.dilations, move.strides, strict=True)]
        phase = 0
        for (_, rest), s in zip(parts, move.strides, strict=True):
            phase = phase * s + rest
        taps.append(_Tap(phase, sum(whole * step for (whole, _), step in zip(parts, steps, strict=True))))
    last = max(tap.shift for tap in taps)
    phases = _phases(g, layer, x, grid=grid)
    turned = _turned(g, layer, dy, grid=grid)
    turned = _cut(g, turned, start=0, last=last)
    in_turn = (_cut(g, phases[tap.phase], start=tap.shift, last=last) for tap in taps)  # each makes room for the next
    each, inner = layer.outer // group, layer.inner
    if inner > FEW or (group > 1 and inner == each == 1):
        return _sum_by_tap(g, layer, turned=turned, cuts=in_turn)
    cuts = list(in_turn)
    if inner > 1:  # (group, inner, taps, K): taps inside channels, as a kernel has them
        cuts = [g.op("Unsqueeze", cut, g.ints([2])) for cut in cuts]
    columns = g.op("Concat", *cuts, axis=min(inner, 2)) if len(cuts) > 1 else cuts[0]
    columns = g.op("Reshape", columns, g.ints([group, inner * len(taps), -1]))
    if group == 1:
        made = g.op("Gemm", _matrix(g, turned, each), _matrix(g, columns, inner * len(taps)), transB=1)
    else:
        made = g.op("MatMul", turned, g.op("Transpose", columns, perm=[0, 2, 1]))
    return g.op("Reshape", made, g.ints([layer.outer, inner, *move.kernel]))


def _sum_by_tap(g: GraphBuilder, layer: Layer, *, turned: str, cuts: Iterable[str]) -> str:
    """One product for each tap: (group, each, K) with (group, inner, K)."""
    group, each, inner = layer.move.group, layer.outer // layer.move.group, layer.inner
    made = []
    for cut in cuts:
        if group == 1:
            product = g.op("Gemm", _matrix(g, turned, each), _matrix(g, cut, inner), transB=1)
        else:
            product = g.op("MatMul", turned, g.op("Transpose", cut, perm=[0, 2, 1]))
        made.append(g.op("Unsqueeze", product, g.ints([-1])))
    whole = g.op("Concat", *made, axis=-1) if len(made) > 1 else made[0]
    return g.op("Reshape", whole, g.ints([layer.outer, inner, *layer.move.kernel]))


def _matrix(g: GraphBuilder, name: str, rows: int) -> str:
    return g.op("Reshape", name, g.ints([rows, -1]))


def _cut(g: GraphBuilder, name: str, *, start: int, last: int) -> str:
    """Return what lies `start` further on, all cuts of one length."""
    if not last:
        return name
    end = start - last if start < last else END
    return g.op("Slice", name, g.ints([start]), g.ints([end]), g.ints([2]))


def _phases(g: GraphBuilder, layer: Layer, x: str, *, grid: list[int]) -> list[str]:
    """Return the phases of X, each (group, inner, rows x grid)."""
    move, rank = layer.move, layer.move.rank
    before = move.pads[:rank]
    sizes = [n * s for n, s in zip(grid, move.strides, strict=True)]
    after = [size - b - n for size, b, n in zip(sizes, before, layer.before, strict=True)]
    x = _padded(g, x, before=before, after=after)
    count, shape = math.prod(move.strides), [move.group, layer.inner, -1]
    if count == 1:
        swapped = g.op("Transpose", x, perm=[1, 0, *move.axes])
        return [g.op("Reshape", swapped, g.ints(shape))]
    pairs = [n for pair in zip(grid, move.strides, strict=True) for n in pair]
    parted = g.op("Reshape", x, g.ints([0, move.group * layer.inner, *pairs]))
    inside = [2 + 2 * axis for axis in range(rank)]
    order = [*(axis + 1 for axis in inside), 1, 0, *inside]
    whole = g.op("Reshape", g.op("Transpose", parted, perm=order), g.ints([count, *shape]))
    return [g.op("Gather", whole, g.const(phase, dtype=np.int64), axis=0) for phase in range(count)]


def _turned(g: GraphBuilder, layer: Layer, dy: str, *, grid: list[int]) -> str:
    """Return dY on the grid, (group, each, rows x grid)."""
    move = layer.move
    more = [n - o for n, o in zip(grid, layer.after, strict=True)]
    dy = _padded(g, dy, before=[0] * move.rank, after=more)
    swapped = g.op("Transpose", dy, perm=[1, 0, *move.axes])
    return g.op("Reshape", swapped, g.ints([move.group, layer.outer // move.group, -1]))


def _padded(g: GraphBuilder, name: str, *, before: Sequence[int], after: Sequence[int]) -> str:
    """Return `name` with that many more (or less) on its spatial axes."""
    if not any((*before, *after)):
        return name
    return g.op("Pad", name, g.ints([0, 0, *before, 0, 0, *after]))
