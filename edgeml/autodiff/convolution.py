"""VJP rules of convolutions, of any number of spatial axes, strides, dilations, pads and groups.

dX is a transposed convolution of dY. dW has two forms: a convolution of X with dY, axes swapped; or a product per
tap of the kernel. Which is faster depends on the shape (benchmarks/training_step.py), and `by_taps` says which.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.rules import Grads, vjp
from edgeml.autodiff.shapes import Shape
from edgeml.errors import UnsupportedModel

FEW_CHANNELS, SMALL_PLANE = 4, 16  # below: the swapped convolution is faster


@dataclass(frozen=True)
class Window:
    """How a kernel moves over a picture: one entry per spatial axis, `pads` begins then ends."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]
    group: int

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def axes(self) -> list[int]:
        return list(range(2, 2 + self.rank))


def window(g: GraphBuilder, node: NodeProto, kernel: tuple[int, ...]) -> Window:
    """Return the window of `node`; raise UnsupportedModel where padding depends on sizes that are not known."""
    options, rank = attributes(node), len(kernel)
    strides, dilations = (tuple(options.get(name, [1] * rank)) for name in ("strides", "dilations"))
    pads = tuple(options.get("pads", [0] * 2 * rank))
    if (auto := options.get("auto_pad", b"NOTSET")) in (b"SAME_UPPER", b"SAME_LOWER"):
        before, after = (_sizes(g.shape(name, node)[2:], node) for name in (node.input[0], node.output[0]))
        total = [
            max(0, (after[i] - 1) * strides[i] + (kernel[i] - 1) * dilations[i] + 1 - before[i]) for i in range(rank)
        ]
        small, large = [half // 2 for half in total], [half - half // 2 for half in total]
        pads = (*small, *large) if auto == b"SAME_UPPER" else (*large, *small)
    return Window(kernel, strides, dilations, pads, int(options.get("group", 1)))


def _sizes(shape: Shape, node: NodeProto) -> list[int]:
    known = [size for size in shape if isinstance(size, int)]
    if len(known) < len(shape):
        raise UnsupportedModel(f"{describe(node)}: the spatial sizes {shape} must be known to differentiate it")
    return known


def kernel_of(g: GraphBuilder, node: NodeProto) -> tuple[int, ...]:
    """Return the sizes of the kernel of a convolution."""
    return tuple(_sizes(g.shape(node.input[1], node)[2:], node))


@vjp("Conv")
def conv(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, w = node.input[:2]
    move = window(g, node, kernel_of(g, node))
    dx = spread_back(g, (x, node.output[0]), dy, weight=w, move=move) if x in g.active else None
    dw = None
    if w in g.active:
        dw = _by_taps(g, node, dy, move=move) if by_taps(g, node, move) else _correlated(g, x, dy, move=move, weight=w)
    db = g.op("ReduceSum", dy, g.ints([0, *move.axes]), keepdims=0) if len(node.input) > 2 else None
    return (dx, dw, db)[: len(node.input)]


def spread_back(g: GraphBuilder, ends: tuple[str, str], dy: str, *, weight: str, move: Window) -> str:
    """Return the transposed convolution of `dy` with `weight`, cut or filled up to the sizes of the first of `ends`.

    `ends` are input and output of the convolution, whose gradient `dy` is.
    """
    options = {"strides": move.strides, "dilations": move.dilations, "group": move.group, "kernel_shape": move.kernel}
    rank, pads, left = move.rank, move.pads, _left_over(g, ends, move)
    if left and all(0 <= n < max(s, d) for n, s, d in zip(left, move.strides, move.dilations, strict=True)):
        return g.op("ConvTranspose", dy, weight, **options, pads=pads, output_padding=left)
    full = g.op("ConvTranspose", dy, weight, **options)
    begins, none = g.ints([-pad for pad in pads[:rank]]), g.ints([0, 0])
    room = g.op("Add", g.dims(ends[0], (2, 2 + rank)), g.ints(pads[:rank]))
    after = g.op("Sub", room, g.op("Slice", g.op("Shape", full), g.ints([2]), g.ints([2 + rank]), g.ints([0])))
    return g.op("Pad", full, g.op("Concat", none, begins, none, after, axis=0))


def _left_over(g: GraphBuilder, ends: tuple[str, str], move: Window) -> list[int]:
    """Return how much of the padded input no window reaches, by axis; nothing where sizes are not known."""
    before, after = (g.shapes.get(name, (None, None, None))[2:] for name in ends)
    left = []
    for i, (size, out) in enumerate(zip(before, after, strict=True)):
        if not isinstance(size, int) or not isinstance(out, int):
            return []
        reach = (out - 1) * move.strides[i] + move.dilations[i] * (move.kernel[i] - 1) + 1
        left.append(size + move.pads[i] + move.pads[move.rank + i] - reach)
    return left


def by_taps(g: GraphBuilder, node: NodeProto, move: Window) -> bool:
    """Return whether the weight's gradient is faster as a product per tap than as a swapped convolution."""
    x, y = g.shapes[node.input[0]], g.shapes.get(node.output[0], ())
    if not all(isinstance(size, int) for size in (*x[1:], *y[1:])) or not y:
        return False
    channels, plane = int(x[1] or 0), math.prod(int(size or 0) for size in y[2:])
    if math.prod(move.kernel) == 1:
        return True
    return channels >= FEW_CHANNELS and plane >= SMALL_PLANE


def _by_taps(g: GraphBuilder, node: NodeProto, dy: str, *, move: Window) -> str:
    """One slice of X and one product with dY for each position in the kernel."""
    x, w = node.input[:2]
    shape, rank, group = [int(size or 0) for size in g.shapes[w]], move.rank, move.group
    out = [int(size or 0) for size in g.shapes[node.output[0]][2:]]
    plane, each, inner = math.prod(out), shape[0] // group, shape[1]
    if any(move.pads):
        x = g.op("Pad", x, g.ints([0, 0, *move.pads[:rank], 0, 0, *move.pads[rank:]]))
    slices = []
    for tap in np.ndindex(*move.kernel):
        first = [int(t) * d for t, d in zip(tap, move.dilations, strict=True)]
        last = [a + (o - 1) * s + 1 for a, o, s in zip(first, out, move.strides, strict=True)]
        cut = g.op("Slice", x, g.ints(first), g.ints(last), g.ints(move.axes), g.ints(move.strides))
        slices.append(cut)
    if inner == 1 and each == 1:  # depthwise: nothing to multiply matrices of
        axes = g.ints([0, *move.axes])
        taps = [g.op("ReduceSum", g.op("Mul", dy, cut), axes, keepdims=0) for cut in slices]
    else:
        turned = g.op("Reshape", dy, g.ints([0, group, each, plane]))
        taps = []
        for cut in slices:
            columns = g.op("Transpose", g.op("Reshape", cut, g.ints([0, group, inner, plane])), perm=[0, 1, 3, 2])
            taps.append(g.op("ReduceSum", g.op("MatMul", turned, columns), g.ints([0]), keepdims=0))
    places = [g.op("Unsqueeze", tap, g.ints([-1])) for tap in taps]
    whole = g.op("Concat", *places, axis=-1) if len(places) > 1 else places[0]
    return g.op("Reshape", whole, g.ints(shape))


def _correlated(g: GraphBuilder, x: str, dy: str, *, move: Window, weight: str) -> str:
    """A convolution of X with dY as its kernel, rows as channels; what strides leave over is cut off."""
    rank, group, spatial = move.rank, move.group, move.axes
    if group == 1:
        turned = g.op("Transpose", x, perm=[1, 0, *spatial])
    else:
        inner = g.shapes[weight][1]
        parts = g.op("Reshape", x, g.dims(x, 0, group, int(inner or 0), (2, 2 + rank)))
        swapped = g.op("Transpose", parts, perm=[2, 1, 0, *(axis + 1 for axis in spatial)])
        turned = g.op("Reshape", swapped, g.dims(x, int(inner or 0), -1, (2, 2 + rank)))
    kernel = g.op("Transpose", dy, perm=[1, 0, *spatial])
    made = g.op("Conv", turned, kernel, strides=move.dilations, dilations=move.strides, pads=move.pads, group=group)
    cut = g.op("Slice", made, g.ints([0] * rank), g.ints(move.kernel), g.ints(spatial))
    return g.op("Transpose", cut, perm=[1, 0, *spatial])


@vjp("ConvTranspose")
def conv_transpose(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """A transposed convolution is the gradient of a convolution, so its own gradients are convolutions."""
    x, w = node.input[:2]
    if attributes(node).get("output_shape") or attributes(node).get("auto_pad", b"NOTSET") != b"NOTSET":
        raise UnsupportedModel(f"{describe(node)}: give pads and output_padding in place of auto_pad or output_shape")
    move = window(g, node, kernel_of(g, node))
    options = {"strides": move.strides, "dilations": move.dilations, "pads": move.pads, "group": move.group}
    made = g.op("Conv", dy, w, **options)
    dx = g.op("Slice", made, g.ints([0] * move.rank), g.dims(x, (2, 2 + move.rank)), g.ints(move.axes))
    dw = _transposed_weight(g, node, dy, move=move) if w in g.active else None
    db = g.op("ReduceSum", dy, g.ints([0, *move.axes]), keepdims=0) if len(node.input) > 2 else None
    return (dx, dw, db)[: len(node.input)]


def _transposed_weight(g: GraphBuilder, node: NodeProto, dy: str, *, move: Window) -> str:
    """Here dY is what the kernel moves over, and X what it is correlated with: (in, out / groups, kernel)."""
    return _correlated(g, dy, node.input[0], move=move, weight=node.input[1])
