"""VJP rules of convolutions, of any number of spatial axes, strides, dilations, pads and groups.

dX is a transposed convolution of dY. dW has three forms: a convolution of X with dY, axes swapped; a product per tap
of the kernel (`taps`); banded matrices for depthwise layers (`banded`), for dX, too. Which is fastest depends on the
shape: benchmarks/conv_gradient.py measures them, and `form_of` chooses.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

from onnx import NodeProto

from edgeml.autodiff import banded, taps
from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.rules import Grads, vjp
from edgeml.autodiff.window import Layer, Tensors, Window, kernel_of, layer_of, window
from edgeml.errors import UnsupportedModel

Form = Literal["swapped", "taps", "banded"]
Back = Literal["spread", "turned", "banded"]
Make = Callable[[GraphBuilder, Layer, Tensors], str]
FEW, SMALL, MANY = 3, 16, 25  # channels in, positions, taps: up to (from) so many one convolution beats a product a tap


@vjp("Conv", refuses="a kernel of unknown size; automatic padding of unknown sizes")
def conv(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, w = node.input[:2]
    move = window(g, node, kernel_of(g, node))
    layer = layer_of(g, (x, node.output[0]), weight=w, move=move)
    dx = dw = None
    if x in g.active:
        ends = (x, node.output[0])
        dx = BACKS[back_of(layer)](g, layer, (x, dy, w)) if layer else spread_back(g, ends, dy, weight=w, move=move)
    if w in g.active:
        inner = int(g.shapes[w][1] or 0)
        dw = FORMS[form_of(layer)](g, layer, (x, dy, w)) if layer else exchanged(g, x, dy, move=move, inner=inner)
    db = g.op("ReduceSum", dy, g.ints([0, *move.axes]), keepdims=0) if len(node.input) > 2 else None
    if layer and w in g.active and banded.price(layer) < _alone(layer):
        _go_forward_banded(g, layer, node)
    return (dx, dw, db)[: len(node.input)]


def _go_forward_banded(g: GraphBuilder, layer: Layer, node: NodeProto) -> None:
    """onnxruntime is fast at depthwise convolutions of constant weights alone: others take up to ten times as long."""
    made = banded.forward(g, layer, (node.input[0], "", node.input[1]))
    if len(node.input) > 2 and node.input[2]:
        made = g.op("Add", made, g.op("Reshape", node.input[2], g.ints([-1, 1, 1])))
    g.instead[node.output[0]] = made


def form_of(layer: Layer) -> Form:
    """Return the form of dW that is fastest for `layer`."""
    move = layer.move
    if banded.price(layer) < _by_taps(layer):
        return "banded"
    if move.group > 1 or math.prod(move.kernel) == 1:
        return "taps"
    small = layer.inner <= FEW or math.prod(layer.after) <= SMALL
    return "swapped" if small or max(move.strides) > 1 or math.prod(move.kernel) >= MANY else "taps"


def back_of(layer: Layer) -> Back:
    """Return the form of dX that is fastest for `layer`."""
    if banded.price(layer) < _alone(layer):
        return "banded"
    return "turned" if turns(layer) and math.prod(layer.move.kernel) == 1 else "spread"


def _by_taps(layer: Layer) -> float:
    """Return what dW takes tap by tap where every channel is alone: nanoseconds for each number of Y, as measured."""
    move = layer.move
    grid = [n + (k - 1) * d for n, k, d in zip(layer.after, move.kernel, move.dilations, strict=True)]
    each = 1 + 0.3 * math.prod(move.kernel) + 15 * (max(move.strides) > 1)
    return each * math.prod(grid) / math.prod(layer.after)


def _alone(layer: Layer) -> float:
    """Return what the operator takes where every channel is alone: nanoseconds for each number of Y, as measured."""
    return 300 / math.prod(layer.after) + math.prod(layer.move.kernel) * (0.2 + 2 / layer.after[-1])


def _swapped(g: GraphBuilder, layer: Layer, tensors: Tensors) -> str:
    return exchanged(g, tensors[0], tensors[1], move=layer.move, inner=layer.inner)


def _spread(g: GraphBuilder, layer: Layer, tensors: Tensors) -> str:
    """A transposed convolution of dY, filled or cut to the sizes of X where windows do not end at its end."""
    _, dy, weight = tensors
    move, rank = layer.move, layer.move.rank
    options = _options(move)
    reach = [
        (o - 1) * s + d * (k - 1) + 1
        for o, s, d, k in zip(layer.after, move.strides, move.dilations, move.kernel, strict=True)
    ]
    begins, ends = move.pads[:rank], move.pads[rank:]
    left = [n + a + b - r for n, a, b, r in zip(layer.before, begins, ends, reach, strict=True)]
    if all(0 <= n < max(s, d) for n, s, d in zip(left, move.strides, move.dilations, strict=True)):
        return g.op("ConvTranspose", dy, weight, **options, pads=move.pads, output_padding=left)
    full = g.op("ConvTranspose", dy, weight, **options)
    after = [n + a - r for n, a, r in zip(layer.before, begins, reach, strict=True)]
    return g.op("Pad", full, g.ints([0, 0, *(-pad for pad in begins), 0, 0, *after]))


def _turned(g: GraphBuilder, layer: Layer, tensors: Tensors) -> str:
    """Where every window is one step further, dX is a convolution of dY with the kernel turned around."""
    _, dy, weight = tensors
    move, rank, group = layer.move, layer.move.rank, layer.move.group
    each, inner = layer.outer // group, layer.inner
    parts = g.op("Reshape", weight, g.ints([group, each, inner, *move.kernel]))
    parts = g.op("Transpose", parts, perm=[0, 2, 1, *range(3, 3 + rank)])
    kernel = g.op("Reshape", parts, g.ints([group * inner, each, *move.kernel]))
    if max(move.kernel) > 1:
        back = g.ints([-1] * rank)
        kernel = g.op("Slice", kernel, back, g.ints([-(2**31)] * rank), g.ints(move.axes), back)
    room = [(k - 1) * d for k, d in zip(move.kernel, move.dilations, strict=True)] * 2
    pads = [n - pad for n, pad in zip(room, move.pads, strict=True)]
    return g.op("Conv", dy, kernel, dilations=move.dilations, group=group, pads=pads, kernel_shape=move.kernel)


FORMS: dict[Form, Make] = {"swapped": _swapped, "taps": taps.by_taps, "banded": banded.weight_gradient}
BACKS: dict[Back, Make] = {"spread": _spread, "turned": _turned, "banded": banded.input_gradient}


def turns(layer: Layer) -> bool:
    """Whether dX of `layer` can be a convolution with the kernel turned around."""
    room = [(k - 1) * d for k, d in zip(layer.move.kernel, layer.move.dilations, strict=True)] * 2
    return set(layer.move.strides) == {1} and all(pad <= n for pad, n in zip(layer.move.pads, room, strict=True))


def _options(move: Window) -> dict[str, Any]:
    return {"strides": move.strides, "dilations": move.dilations, "group": move.group, "kernel_shape": move.kernel}


def spread_back(g: GraphBuilder, ends: tuple[str, str], dy: str, *, weight: str, move: Window) -> str:
    """Return the transposed convolution of `dy` with `weight`, cut or filled up to the sizes of the first of `ends`.

    `ends` are input and output of the convolution, whose gradient `dy` is; their sizes may be known at run time only.
    """
    if layer := layer_of(g, ends, weight=weight, move=move):
        return _spread(g, layer, (ends[0], dy, weight))
    rank, pads = move.rank, move.pads
    full = g.op("ConvTranspose", dy, weight, **_options(move))
    begins, none = g.ints([-pad for pad in pads[:rank]]), g.ints([0, 0])
    room = g.op("Add", g.dims(ends[0], (2, 2 + rank)), g.ints(pads[:rank]))
    after = g.op("Sub", room, g.op("Slice", g.op("Shape", full), g.ints([2]), g.ints([2 + rank]), g.ints([0])))
    return g.op("Pad", full, g.op("Concat", none, begins, none, after, axis=0))


def exchanged(g: GraphBuilder, x: str, dy: str, *, move: Window, inner: int) -> str:
    """A convolution of X with dY as its kernel, rows as channels; what strides leave over is cut off."""
    rank, group, spatial = move.rank, move.group, move.axes
    if group == 1:
        turned = g.op("Transpose", x, perm=[1, 0, *spatial])
    else:
        parts = g.op("Reshape", x, g.dims(x, 0, group, inner, (2, 2 + rank)))
        swapped = g.op("Transpose", parts, perm=[2, 1, 0, *(axis + 1 for axis in spatial)])
        turned = g.op("Reshape", swapped, g.dims(x, inner, -1, (2, 2 + rank)))
    kernel = g.op("Transpose", dy, perm=[1, 0, *spatial])
    made = g.op("Conv", turned, kernel, strides=move.dilations, dilations=move.strides, pads=move.pads, group=group)
    cut = g.op("Slice", made, g.ints([0] * rank), g.ints(move.kernel), g.ints(spatial))
    return g.op("Transpose", cut, perm=[1, 0, *spatial])


@vjp("ConvTranspose", refuses="auto_pad and output_shape; a kernel of unknown size")
def conv_transpose(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    """A transposed convolution is the gradient of a convolution, so its own gradients are convolutions."""
    x, w = node.input[:2]
    if attributes(node).get("output_shape") or attributes(node).get("auto_pad", b"NOTSET") != b"NOTSET":
        raise UnsupportedModel(f"{describe(node)}: give pads and output_padding in place of auto_pad or output_shape")
    move = window(g, node, kernel_of(g, node))
    options = {"strides": move.strides, "dilations": move.dilations, "pads": move.pads, "group": move.group}
    dx = None
    if x in g.active:
        made = g.op("Conv", dy, w, **options)
        dx = g.op("Slice", made, g.ints([0] * move.rank), g.dims(x, (2, 2 + move.rank)), g.ints(move.axes))
    dw = _transposed_weight(g, node, dy, move=move) if w in g.active else None
    db = g.op("ReduceSum", dy, g.ints([0, *move.axes]), keepdims=0) if len(node.input) > 2 else None
    return (dx, dw, db)[: len(node.input)]


def _transposed_weight(g: GraphBuilder, node: NodeProto, dy: str, *, move: Window) -> str:
    """Here dY is what the kernel moves over, and X what it is correlated with: (in, out / groups, kernel)."""
    x, w = node.input[:2]
    layer = layer_of(g, (node.output[0], x), weight=w, move=move)
    inner = int(g.shapes[w][1] or 0)
    return taps.by_taps(g, layer, (dy, x, w)) if layer else exchanged(g, dy, x, move=move, inner=inner)
