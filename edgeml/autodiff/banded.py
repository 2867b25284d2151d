"""Gradients of a depthwise convolution as products with banded matrices, one per channel.

Along the last axis a kernel is a band of a matrix T (W_out, W_in), T[v, u] = w[u - s v + pad]; along the others it is a
few shifts of dY, laid side by side in B:

    dX = B T          dT = B' X, and dW sums the diagonals of dT

A channel alone has too little to multiply: its nine numbers per position cost more to bring together than to add. The
products do W / kernel times the work, and are still faster where W is not large (benchmarks/conv_gradient.py). Pictures
have two axes here, their sizes known but for the rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.window import Layer, Tensors


@dataclass(frozen=True)
class Bands:
    """Where each row of the kernel falls: row s y + i d - pad of X is row y + q, phase r, of s rows side by side."""

    layer: Layer

    @cached_property
    def places(self) -> list[tuple[int, int]]:
        """(q, r) of each row of the kernel."""
        move = self.layer.move
        return [divmod(i * move.dilations[0] - move.pads[0], move.strides[0]) for i in range(move.kernel[0])]

    @cached_property
    def shifts(self) -> list[int]:
        return sorted({q for q, _ in self.places})

    @property
    def stride(self) -> int:
        return self.layer.move.strides[0]

    @property
    def rows(self) -> int:
        """Of X, `stride` of them side by side."""
        return -(-self.layer.before[0] // self.stride)

    @property
    def reach(self) -> int:
        """What the windows of one row reach, the padding before it included."""
        move = self.layer.move
        return (self.layer.after[1] - 1) * move.strides[1] + (move.kernel[1] - 1) * move.dilations[1] + 1


def weight_gradient(g: GraphBuilder, layer: Layer, tensors: Tensors) -> str:
    """Return dW, (channels, 1, kernel)."""
    x, dy, _ = tensors
    bands, move, channels = Bands(layer), layer.move, layer.outer
    width, out, step = layer.before[1], layer.after[1], move.strides[1]
    side = g.op("Reshape", _side(g, bands, x), g.ints([channels, -1, bands.stride * width]))
    parts = [g.op("MatMul", g.op("Transpose", part, perm=[0, 2, 1]), side) for part in shifted(g, bands, dy)]
    made = g.op("Concat", *parts, axis=1) if len(parts) > 1 else parts[0]
    count = len(bands.shifts)
    made = g.op("Reshape", made, g.ints([channels, count, out, bands.stride, width]))
    if bands.stride > 1:
        made = g.op("Transpose", made, perm=[0, 1, 3, 2, 4])
    ends = g.ints([0, 0, 0, 0, move.pads[1], 0, 0, 0, 0, bands.reach - move.pads[1] - width])
    made = g.op("Reshape", g.op("Pad", made, ends), g.ints([channels, count * bands.stride, out * bands.reach]))
    made = g.op("Pad", made, g.ints([0, 0, 0, 0, 0, out * step]))  # a row longer by the stride: diagonals stand upright
    made = g.op("Reshape", made, g.ints([channels, count * bands.stride, out, bands.reach + step]))
    sums = g.op("ReduceSum", made, g.ints([2]), keepdims=0)
    last = (move.kernel[1] - 1) * move.dilations[1] + 1
    sums = g.op("Slice", sums, g.ints([0]), g.ints([last]), g.ints([2]), g.ints([move.dilations[1]]))
    places = [bands.shifts.index(q) * bands.stride + r for q, r in bands.places]
    if places != list(range(count * bands.stride)):
        sums = g.op("Gather", sums, g.ints(places), axis=1)
    return g.op("Reshape", sums, g.ints([channels, 1, *move.kernel]))


def input_gradient(g: GraphBuilder, layer: Layer, tensors: Tensors) -> str:
    """Return dX, (rows, channels, height, width)."""
    _, dy, weight = tensors
    bands, channels, width = Bands(layer), layer.outer, layer.before[1]
    made = _summed(g, shifted(g, bands, dy), _band(g, bands, weight), rows=layer.after[1])
    made = g.op("Reshape", made, g.ints([channels, -1, bands.rows * bands.stride, width]))
    made = g.op("Transpose", made, perm=[1, 0, 2, 3])
    if bands.rows * bands.stride == layer.before[0]:
        return made
    return g.op("Slice", made, g.ints([0]), g.ints([layer.before[0]]), g.ints([2]))


def forward(g: GraphBuilder, layer: Layer, tensors: Tensors) -> str:
    """Return Y without a bias, (rows, channels, height out, width out), from X shifted instead of dY."""
    x, _, weight = tensors
    bands, channels = Bands(layer), layer.outer
    side = _side(g, bands, x)  # (channels, pictures, rows, stride x W_in)
    parts = _moved(g, side, [-q for q in bands.shifts], size=bands.rows, wanted=layer.after[0])
    wide = bands.stride * layer.before[1]
    parts = [g.op("Reshape", part, g.ints([channels, -1, wide])) for part in parts]
    made = _summed(g, parts, _band(g, bands, weight, upright=True), rows=wide)
    made = g.op("Reshape", made, g.ints([channels, -1, *layer.after]))
    return g.op("Transpose", made, perm=[1, 0, 2, 3])


def _side(g: GraphBuilder, bands: Bands, x: str) -> str:
    """Return X channels first, `stride` rows side by side: (channels, pictures, rows, stride x W_in)."""
    layer = bands.layer
    if extra := bands.rows * bands.stride - layer.before[0]:
        x = g.op("Pad", x, g.ints([0] * 6 + [extra, 0]))
    side = g.op("Transpose", x, perm=[1, 0, 2, 3])
    if bands.stride == 1:
        return side
    return g.op("Reshape", side, g.ints([layer.outer, -1, bands.rows, bands.stride * layer.before[1]]))


def shifted(g: GraphBuilder, bands: Bands, dy: str) -> list[str]:
    """Return the parts of B: dY by each of the shifts, (channels, rows of all pictures, W_out)."""
    layer = bands.layer
    turned = g.op("Transpose", dy, perm=[1, 0, 2, 3])
    parts = _moved(g, turned, bands.shifts, size=layer.after[0], wanted=bands.rows)
    return [g.op("Reshape", part, g.ints([layer.outer, -1, layer.after[1]])) for part in parts]


def _summed(g: GraphBuilder, parts: Sequence[str], matrix: str, *, rows: int) -> str:
    """Return the parts side by side times `matrix`, of which each takes `rows` rows: laying them so would cost more."""
    if len(parts) == 1:
        return g.op("MatMul", parts[0], matrix)
    own = g.ops("Split", matrix, g.ints([rows] * len(parts)), outputs=len(parts), axis=1)
    return g.op("Sum", *(g.op("MatMul", part, rest) for part, rest in zip(parts, own, strict=True)))


def _moved(g: GraphBuilder, name: str, shifts: Sequence[int], *, size: int, wanted: int) -> list[str]:
    """Return `name`, whose third axis has `size`, moved along it by each of `shifts`, zeros where nothing is.

    One Pad and a Slice each: a Pad that also cuts takes five times as long.
    """
    front, back = max(0, *shifts), max(0, *(wanted - size - q for q in shifts))
    wide = g.op("Pad", name, g.ints([0, 0, front, 0, 0, 0, back, 0])) if front or back else name
    axis = g.ints([2])
    return [
        g.op("Slice", wide, g.ints([front - q]), g.ints([front - q + wanted]), axis) if q or wanted != size else name
        for q in shifts
    ]


def _band(g: GraphBuilder, bands: Bands, weight: str, *, upright: bool = False) -> str:
    """Return T, (channels, shifts x W_out, stride x W_in): every row the one above, moved by the stride.

    `upright` turns the last axes: (channels, shifts x stride x W_in, W_out).
    """
    layer, move = bands.layer, bands.layer.move
    channels, out, step = layer.outer, layer.after[1], move.strides[1]
    rows = g.op("Reshape", weight, g.ints([channels, *move.kernel]))
    wanted = [(q, r) for q in bands.shifts for r in range(bands.stride)]
    if bands.places != wanted:
        absent = move.kernel[0]
        order = [bands.places.index(place) if place in bands.places else absent for place in wanted]
        if absent in order:
            rows = g.op("Pad", rows, g.ints([0, 0, 0, 0, 1, 0]))
        rows = g.op("Gather", rows, g.ints(order), axis=1)
    rows = g.op("Pad", rows, g.ints([0, 0, 0, 0, 0, bands.reach + step - move.kernel[1]]))
    rows = g.op("Unsqueeze", rows, g.ints([2]))
    many = g.op("Expand", rows, g.ints([channels, len(wanted), out, bands.reach + step]))
    flat = g.op("Reshape", many, g.ints([channels, len(wanted), out * (bands.reach + step)]))
    flat = g.op("Slice", flat, g.ints([0]), g.ints([out * bands.reach]), g.ints([2]))
    matrix = g.op("Reshape", flat, g.ints([channels, len(wanted), out, bands.reach]))
    pad, width = move.pads[1], layer.before[1]
    ends = [0, 0, 0, -pad, 0, 0, 0, pad + width - bands.reach]  # the padding before, and what no window reaches
    matrix = g.op("Pad", matrix, g.ints(ends)) if any(ends) else matrix
    shape = [channels, len(bands.shifts), bands.stride, out, width]
    matrix = g.op("Reshape", matrix, g.ints(shape))
    if upright:
        matrix = g.op("Transpose", matrix, perm=[0, 1, 2, 4, 3])
        return g.op("Reshape", matrix, g.ints([channels, len(bands.shifts) * bands.stride * width, out]))
    if bands.stride > 1:
        matrix = g.op("Transpose", matrix, perm=[0, 1, 3, 2, 4])
    return g.op("Reshape", matrix, g.ints([channels, len(bands.shifts) * out, bands.stride * width]))


def fits(layer: Layer) -> bool:
    """Whether `layer` is a depthwise one of pictures, one kernel per channel, without gaps in the kernel's rows."""
    move = layer.move
    if move.group != layer.outer or layer.inner != 1 or move.rank != 2 or move.dilations[1] != 1:
        return False
    bands = Bands(layer)
    return all(-layer.after[0] <= q <= bands.rows for q in bands.shifts)  # a shift keeps at least an edge of dY
