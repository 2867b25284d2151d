"""A depthwise convolution and its gradients as products with banded matrices, one per channel.

The rows of a picture lie in tiles. Within one the kernel is a matrix T (what the tile sees, what it makes), which holds
w[tap] wherever that tap leads from one to the other; with a constant `taps` of ones and zeros that says where,

    T = w taps      Y = X T      dX = dY T, tiles of X made      dT = X' dY, dW = dT taps'

A channel alone has too little to multiply: its nine numbers per position cost more to bring together than to add. The
products do many times the work, and are still faster where rows are short (benchmarks/conv_gradient.py). Pictures have
two axes here, their sizes known but for the rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.window import Layer, Tensors

MOST = 2**18  # elements of `taps`, which a session holds
LANES = 16  # floats that a product works on at a time
LARGE = 4096  # elements of a matrix that does not stay near the processor


@dataclass(frozen=True)
class Side:
    """Tiles of the pictures on one side of a layer: `core` rows that are a tile's own, and some of its neighbours'."""

    rows: int  # of the picture
    width: int
    core: int
    count: int
    before: int = 0  # rows of the tile before that are seen, too
    behind: int = 0

    @property
    def places(self) -> range:
        return range(-self.before, self.core + self.behind)

    @property
    def size(self) -> int:
        return len(self.places) * self.width


@dataclass(frozen=True)
class Tiling:
    """What is read and what is made, tile by tile; `back` for dX, which is made from dY."""

    layer: Layer
    seen: Side
    made: Side
    back: bool

    def taps(self) -> tuple[np.ndarray, np.ndarray]:
        """Return where each row and each column of the kernel leads: (kernel, seen, made), ones and zeros."""
        places = self.seen.places, range(self.made.core)
        rows = meetings(self.layer, 0, places[::-1] if self.back else places)
        columns = meetings(self.layer, 1, (range(self.layer.before[1]), range(self.layer.after[1])))
        return (rows.swapaxes(1, 2), columns.swapaxes(1, 2)) if self.back else (rows, columns)

    @property
    def fits(self) -> bool:
        beyond = max(self.seen.before, self.seen.behind) > self.seen.core
        return not beyond and math.prod(self.layer.move.kernel) * self.seen.size * self.made.size <= MOST

    @property
    def price(self) -> float:
        """Nanoseconds for each number made, as measured: the product, and laying tiles side by side."""
        seen, made = self.seen, self.made
        rate = 0.03 if seen.size * made.size < LARGE else 0.045  # for each multiplication
        work = rate * seen.size * -(-made.size // LANES) * LANES / made.size
        copies = 3 * seen.size / (seen.core * seen.width) - 2  # what neighbours share is cut out first
        pieces = 10 / made.size if made.count > 1 else 0.0
        uneven = any(side.rows % side.core for side in (seen, made))
        return work + 0.2 * copies + pieces + 0.4 + 0.4 * uneven


def meetings(layer: Layer, axis: int, ends: tuple[range, range]) -> np.ndarray:
    """Return for each place of the kernel on `axis` which of X's places it takes to which of Y's: (kernel, X, Y)."""
    move, (xs, ys) = layer.move, ends
    places = np.arange(move.kernel[axis])[:, None] * move.dilations[axis] - move.pads[axis]
    met = places + np.array(ys)[None] * move.strides[axis]
    return np.asarray(np.array(xs)[None, :, None] == met[:, None, :])


def tiling(layer: Layer, height: int, *, back: bool = False) -> Tiling:
    """Return the tiling by `height` rows of Y, or the rows of X that belong to them."""
    x, y = (*layer.before, height * layer.move.strides[0]), (*layer.after, height)
    (rows, width, core), (made_rows, made_width, own) = (y, x) if back else (x, y)
    count = -(-made_rows // own)
    if count == 1:
        return Tiling(layer, Side(rows, width, rows, 1), Side(made_rows, made_width, made_rows, 1), back)
    reach = layer.move.kernel[0] * layer.move.dilations[0]
    far = range(-reach, core + reach)
    met_by = meetings(layer, 0, (range(own), far) if back else (far, range(own)))
    hit = met_by.any((0, 1) if back else (0, 2))
    met = np.array(far)[hit] if hit.any() else np.zeros(1, int)
    before, behind = max(0, -int(met.min())), max(0, int(met.max()) + 1 - core)
    return Tiling(layer, Side(rows, width, core, count, before, behind), Side(made_rows, made_width, own, count), back)


@lru_cache
def height_of(layer: Layer) -> int:
    """Return how many rows of Y make the best tiles for all three products, 0 where none can be."""
    move = layer.move
    if move.group != layer.outer or layer.inner != 1 or move.rank != 2:
        return 0
    fit = {}
    for height in range(1, layer.after[0] + 1):
        both = [tiling(layer, height, back=back) for back in (False, True)]
        if all(one.fits for one in both):
            fit[height] = both[0].price
    return min(fit, key=fit.__getitem__, default=0)


def weight_gradient(g: GraphBuilder, layer: Layer, tensors: Tensors, *, height: int = 0) -> str:
    """Return dW, (channels, 1, kernel); `height` rows of Y make a tile, 0 for what `height_of` says."""
    x, dy, _ = tensors
    tiles = tiling(layer, height or height_of(layer))
    made = g.op("Transpose", _tiled(g, dy, tiles.made), perm=[0, 2, 1])
    product = g.op("MatMul", made, _tiled(g, x, tiles.seen))  # dT turned around is faster to come by
    taps = g.op("Transpose", _taps(g, tiles, like=x, turned=True), perm=[1, 0])
    sums = g.op("MatMul", g.op("Reshape", product, g.ints([layer.outer, -1])), taps)
    return g.op("Reshape", sums, g.ints([layer.outer, 1, *layer.move.kernel]))


def input_gradient(g: GraphBuilder, layer: Layer, tensors: Tensors, *, height: int = 0) -> str:
    """Return dX, (rows, channels, height, width)."""
    return _made(g, tiling(layer, height or height_of(layer), back=True), tensors[1], weight=tensors[2])


def forward(g: GraphBuilder, layer: Layer, tensors: Tensors, *, height: int = 0) -> str:
    """Return Y without a bias, (rows, channels, height out, width out)."""
    return _made(g, tiling(layer, height or height_of(layer)), tensors[0], weight=tensors[2])


def _made(g: GraphBuilder, tiles: Tiling, name: str, *, weight: str) -> str:
    """Return what the tiles of `name` make, as pictures."""
    channels, made = tiles.layer.outer, tiles.made
    matrix = g.op("MatMul", g.op("Reshape", weight, g.ints([channels, -1])), _taps(g, tiles, like=weight))
    matrix = g.op("Reshape", matrix, g.ints([channels, tiles.seen.size, made.size]))
    product = g.op("MatMul", _tiled(g, name, tiles.seen), matrix)
    pictures = g.op("Reshape", product, g.ints([channels, -1, made.count * made.core, made.width]))
    if made.count * made.core > made.rows:
        pictures = g.op("Slice", pictures, g.ints([0]), g.ints([made.rows]), g.ints([2]))
    return g.op("Transpose", pictures, perm=[1, 0, 2, 3])


def _taps(g: GraphBuilder, tiles: Tiling, *, like: str, turned: bool = False) -> str:
    """Return (kernel, seen x made), or made x seen: onnxruntime makes it of rows and columns once, as it loads."""
    rows, columns = (part.swapaxes(1, 2) if turned else part for part in tiles.taps())
    rows, columns = rows[:, None, :, None, :, None], columns[None, :, None, :, None]
    whole = g.op("Mul", g.const(rows, like=like), g.const(columns, like=like))
    return g.op("Reshape", whole, g.ints([math.prod(tiles.layer.move.kernel), -1]))


def _tiled(g: GraphBuilder, name: str, side: Side) -> str:
    """Return the tiles of `name`, channels first: (channels, pictures x tiles, what each holds)."""
    blocks = max(side.count, -(-side.rows // side.core))
    if extra := blocks * side.core - side.rows:
        name = g.op("Pad", name, g.ints([0] * 6 + [extra, 0]))
    whole, wide = g.op("Transpose", name, perm=[1, 0, 2, 3]), side.core * side.width
    if blocks > 1:
        whole = g.op("Reshape", whole, g.ints([0, -1, blocks, wide]))
    parts = [whole if blocks == side.count else _cut(g, whole, tiles=(0, side.count), places=(0, wide))]
    if side.before:
        part = _cut(g, whole, tiles=(0, side.count - 1), places=(wide - side.before * side.width, wide))
        parts.insert(0, g.op("Pad", part, g.ints([0, 0, 1, 0, 0, 0, 0, 0])))
    if side.behind:
        part = _cut(g, whole, tiles=(1, side.count + 1), places=(0, side.behind * side.width))
        parts.append(part if blocks > side.count else g.op("Pad", part, g.ints([0, 0, 0, 0, 0, 0, 1, 0])))
    seen = g.op("Concat", *parts, axis=3) if len(parts) > 1 else parts[0]
    return g.op("Reshape", seen, g.ints([0, -1, side.size]))


def _cut(g: GraphBuilder, name: str, *, tiles: tuple[int, int], places: tuple[int, int]) -> str:
    starts, ends = zip(tiles, places, strict=True)
    return g.op("Slice", name, g.ints(starts), g.ints(ends), g.ints([2, 3]))


def price(layer: Layer) -> float:
    """Return nanoseconds for each number of Y, infinite where `layer` cannot be written so."""
    height = height_of(layer)
    return tiling(layer, height).price if height else math.inf
