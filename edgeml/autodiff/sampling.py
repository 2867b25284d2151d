"""VJP rule of GridSample (spatial transformers, arXiv 1506.02025): pixels take back what was read from them.

Along each axis a place is where the grid says, put back inside by the padding, and a few taps around it: pixels with
weights that change with the place. Gradients go to the pixels by the weights, to the grid by how those change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.rules import Grads, vjp
from edgeml.errors import UnsupportedModel

_MODES = (b"linear", b"bilinear", b"nearest")


@dataclass(frozen=True)
class _Tap:
    """A pixel beside every place, along one axis: tensors (rows, places)."""

    pixel: str  # its number, int64, within the image
    weight: str  # 0 for a pixel that is not there
    slope: str  # of the weight, for the grid's coordinate


@vjp("GridSample", refuses="cubic interpolation; three spatial axes")
def grid_sample(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    x, grid = node.input
    options = attributes(node)
    if options.get("mode", b"linear") not in _MODES or len(g.shape(x, node)) != 4:
        raise UnsupportedModel(
            f"{describe(node)}: mode {options.get('mode', b'linear').decode()!r} over {len(g.shape(x, node)) - 2} axes "
            f"has no gradient rule; sample images, linearly or the nearest pixel"
        )
    across, down = (_taps(g, x, grid, axis=axis, options=options) for axis in (3, 2))
    width, flat = g.dims(x, (3, 4)), g.ints([0, 0, -1])
    pixels, arrived, into = (g.op("Reshape", name, flat) for name in (x, dy, g.zeros(x)))
    along, below = [], []
    for row in down:
        for column in across:
            place = g.op("Add", g.op("Mul", row.pixel, width), column.pixel)
            place = g.op("Expand", g.op("Unsqueeze", place, g.ints([1])), g.op("Shape", arrived))
            weight = g.op("Unsqueeze", g.op("Mul", row.weight, column.weight), g.ints([1]))
            into = g.op("ScatterElements", into, place, g.op("Mul", arrived, weight), axis=2, reduction="add")
            seen = g.op("Mul", g.op("GatherElements", pixels, place, axis=2), arrived)
            seen = g.op("ReduceSum", seen, g.ints([1]), keepdims=0)
            along.append(g.op("Mul", seen, g.op("Mul", column.slope, row.weight)))
            below.append(g.op("Mul", seen, g.op("Mul", column.weight, row.slope)))
    ways = [g.op("Unsqueeze", g.op("Sum", *ways), g.ints([2])) for ways in (along, below)]
    way = g.op("Concat", *ways, axis=2)
    return g.op("Reshape", into, g.op("Shape", x)), g.op("Reshape", way, g.op("Shape", grid))


def _taps(g: GraphBuilder, x: str, grid: str, *, axis: int, options: dict[str, Any]) -> list[_Tap]:
    zero, half, one = (g.const(value, like=x) for value in (0, 0.5, 1))
    size = g.op("Cast", g.op("Reshape", g.dims(x, (axis, axis + 1)), g.ints([])), to=g.dtypes[x])
    edge = g.op("Sub", size, one)
    reach = edge if options.get("align_corners", 0) else size  # from -1 to 1 in the grid
    slope = g.op("Mul", reach, half)
    given = g.op("Gather", g.op("Reshape", grid, g.ints([0, -1, 2])), g.const(3 - axis, dtype=np.int64), axis=2)
    place = g.op("Add", g.op("Mul", given, slope), g.op("Mul", edge, half))
    padding = options.get("padding_mode", b"zeros")
    if padding == b"border":
        inside = g.op("Min", g.op("Max", place, zero), edge)
        slope = g.op("Where", g.op("Equal", inside, place), slope, zero)
        place = inside
    elif padding == b"reflection":
        place, way = _reflected(g, place, reach, low=g.op("Mul", g.op("Sub", edge, reach), half))
        slope = g.op("Mul", slope, way)
    nearest = options.get("mode") == b"nearest"
    low = g.op("Round" if nearest else "Floor", place)
    share, still = g.op("Sub", place, low), g.op("Mul", place, zero)
    taps = [
        (low, g.op("Sub", one, share), g.op("Sub", still, slope)),
        (g.op("Add", low, one), share, g.op("Add", still, slope)),
    ]
    made = []
    for pixel, weight, change in [(low, g.op("Add", still, one), still)] if nearest else taps:
        inside = g.op("Min", g.op("Max", pixel, zero), edge)
        there = g.op("Equal", inside, pixel)
        if padding == b"zeros":
            weight, change = (g.op("Where", there, value, zero) for value in (weight, change))
        made.append(_Tap(g.op("Cast", inside, to=TensorProto.INT64), weight, change))
    return made


def _reflected(g: GraphBuilder, place: str, reach: str, *, low: str) -> tuple[str, str]:
    """Return the place folded back into the image, as often as it takes, and the sign of its way: 1 or -1."""
    way = g.op("Sub", place, low)
    beyond = g.op("Sub", g.op("Mod", g.op("Abs", way), g.op("Add", reach, reach), fmod=1), reach)
    folded = g.op("Add", low, g.op("Sub", reach, g.op("Abs", beyond)))
    return folded, g.op("Neg", g.op("Mul", g.op("Sign", way), g.op("Sign", beyond)))
