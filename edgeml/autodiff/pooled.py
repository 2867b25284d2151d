"""Max pooling whose windows lie side by side, by the phases of the picture: one tensor per place in a window.

onnxruntime's MaxPool takes seven times as long and more when it is asked where each maximum was. With a tensor for each
place, the maximum is one Max, and the first place that equals it, which torch and Keras choose, two comparisons.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from edgeml.autodiff.builder import GraphBuilder, attributes

MOST = 9  # places of a window: with more, the operator's own indices are no slower


@dataclass(frozen=True)
class Blocks:
    """Windows side by side: channels, their kernel, and how many of them there are per axis."""

    channels: int
    kernel: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def rank(self) -> int:
        return len(self.kernel)

    @property
    def count(self) -> int:
        return math.prod(self.kernel)


def blocks_of(g: GraphBuilder, node: NodeProto) -> Blocks | None:
    """Return the windows of the MaxPool `node`, None where they overlap, are padded or of unknown number."""
    options = attributes(node)
    kernel = tuple(options["kernel_shape"])
    known = [*g.shapes.get(node.input[0], (None,) * 3)[1:], *g.shapes.get(node.output[0], (None,) * 3)[2:]]
    plain = options.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID") and not any(options.get("pads", ()))
    if not plain or set(options.get("dilations", [1])) != {1} or tuple(options.get("strides", ())) != kernel:
        return None
    if (len(node.output) > 1 and node.output[1]) or math.prod(kernel) > MOST or options.get("storage_order", 0):
        return None
    if not all(isinstance(size, int) for size in known):
        return None
    channels, *sizes = [int(size or 0) for size in known]
    found = Blocks(channels, kernel, tuple(sizes[: len(kernel)]), tuple(sizes[len(kernel) :]))
    whole = all(n * k <= size for n, k, size in zip(found.after, kernel, found.before, strict=True))  # no ceil_mode
    return found if whole else None


def gradient(g: GraphBuilder, node: NodeProto, blocks: Blocks, *, dy: str) -> str:
    """Return dX, and let the forward pass read the phases, too.

    Where X comes from a Relu, its gate is closed here, where there is less: its greatest answer is 0 if all are.
    """
    x, y = node.input[0], node.output[0]
    gated = any(x in other.output for other in g.forward if other.op_type == "Relu")
    if gated:
        dy = g.op("Mul", dy, g.op("Cast", g.op("Cast", y, to=TensorProto.BOOL), to=g.dtypes[x]))
    parts = _phases(g, blocks, x)
    g.instead[y] = g.op("Max", *parts)
    free: str | None = None
    masks = []
    for part in parts:
        hit = g.op("Equal", part, y)
        masks.append(hit if free is None else g.op("And", hit, free))
        free = g.op("Not", hit) if free is None else g.op("And", free, g.op("Not", hit))
    given = {
        place: g.op("Mul", dy, g.op("Cast", mask, to=g.dtypes[x]))
        for place, mask in zip(np.ndindex(*blocks.kernel), masks, strict=True)
    }
    whole = _together(g, blocks, given)
    rest = [size - n * k for size, n, k in zip(blocks.before, blocks.after, blocks.kernel, strict=True)]
    whole = g.op("Pad", whole, g.ints([0] * (4 + blocks.rank) + rest)) if any(rest) else whole
    if gated:
        g.gated.add(whole)
    return whole


def _together(g: GraphBuilder, blocks: Blocks, parts: dict[tuple[int, ...], str]) -> str:
    """Put the elements at each place of the windows back between each other, the last axis first."""
    sizes = list(blocks.after)
    for axis in reversed(range(blocks.rank)):
        behind = g.ints([3 + axis])
        sizes[axis] *= blocks.kernel[axis]
        merged = {}
        for place in np.ndindex(*blocks.kernel[:axis]):
            row = [g.op("Unsqueeze", parts[*place, index], behind) for index in range(blocks.kernel[axis])]
            merged[place] = g.op("Reshape", g.op("Concat", *row, axis=3 + axis), g.ints([0, 0, *sizes]))
        parts = merged
    return parts[()]


def _phases(g: GraphBuilder, blocks: Blocks, x: str) -> list[str]:
    """Return the elements at each place of the windows, each shaped like the answer.

    A transposition parts the last axis, splits the others: a third of the time of slices that step.
    """
    whole = [n * k for n, k in zip(blocks.after, blocks.kernel, strict=True)]
    if tuple(whole) != blocks.before:
        x = g.op("Slice", x, g.ints([0] * blocks.rank), g.ints(whole), g.ints(range(2, 2 + blocks.rank)))
    *kernel, last = blocks.kernel
    apart = g.op("Transpose", g.op("Reshape", x, g.ints([-1, last])), perm=[1, 0])
    pairs = [n for pair in zip(blocks.after, kernel, strict=False) for n in pair]
    apart = g.op("Reshape", apart, g.ints([last, -1, *pairs, blocks.after[-1]]))
    parts: dict[tuple[int, ...], str] = {
        (place,): part for place, part in enumerate(_split(g, apart, axis=0, count=last))
    }
    for axis, count in enumerate(kernel):
        behind = 3 + 2 * axis
        parts = {
            (*place[:-1], index, place[-1]): part
            for place, whole in parts.items()
            for index, part in enumerate(_split(g, whole, axis=behind, count=count))
        }
    shape = g.ints([-1, blocks.channels, *blocks.after])
    return [g.op("Reshape", parts[place], shape) for place in np.ndindex(*blocks.kernel)]


def _split(g: GraphBuilder, name: str, *, axis: int, count: int) -> tuple[str, ...]:
    return g.ops("Split", name, g.ints([1] * count), outputs=count, axis=axis) if count > 1 else (name,)
