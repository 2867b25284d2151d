"""Micro-models: hundreds of graphs of one operator each, whose times on a device say what its kernels cost.

Sizes are drawn from those that vision, speech and sensor networks have, channels both multiples of the blocked
layout's width and not. Weights are read cold, after something else has filled the caches, as in a network.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from edgeml.bench.calibrate import moving
from edgeml.bench.calibrate.blocks import Activation, Builder
from edgeml.bench.calibrate.sizes import (
    CHANNELS,
    DEPTHWISE,
    LEAST_MACS,
    MOST_COLD,
    MOST_ELEMENTS,
    MOST_MACS,
    MOST_WARM,
    PLAIN,
    SIZES,
    UNEVEN,
    WIDE,
    Build,
    Built,
)
from edgeml.errors import NotFound


@dataclass(frozen=True)
class Kernel:
    """A micro-model that is still to be built: all of them at once would not fit into a small memory."""

    name: str
    swept: int  # bytes that are written and read between two runs of it
    build: Build

    def built(self) -> Built:
        """Return the graph, and the shape of its one float32 input: the same ones for one name."""
        return self.build(random.Random(self.name), self.swept)


def kernels(cache: int, *, names: Collection[str] = ()) -> list[Kernel]:
    """Return the micro-models for a device with a last-level cache of `cache` bytes, `names` of TABLE only if given.

    One third of each kind is run again at once; one with so much touched in between that the nearer caches forgot it;
    one with twice the last cache touched, so that its weights come from memory.
    """
    if unknown := set(names) - {name for name, _, _ in TABLE}:
        raise NotFound(f"no micro-models {', '.join(sorted(unknown))}: there are {', '.join(n for n, _, _ in TABLE)}")
    swept = 0, min(cache // 2, MOST_WARM), min(2 * cache, MOST_COLD)
    return [
        Kernel(f"{name} {index}", swept[index % 3], build)
        for name, count, build in TABLE
        if not names or name in names
        for index in range(count)
    ]


def _conv(kernel: int, stride: int = 1, *, kind: str = "", int8: bool = False, clipped: bool = False) -> Build:
    def build(draw: random.Random, swept: int) -> Built:
        while True:
            size, channels, out = draw.choice(SIZES), draw.choice(CHANNELS), draw.choice(CHANNELS)
            match kind:
                case "depthwise":
                    out = channels = group = draw.choice(DEPTHWISE)
                case "depthwise uneven":
                    out = channels = group = draw.choice(UNEVEN)
                case "few" | "one":
                    size, group = (1 if kind == "one" else draw.choice((2, 3, 4, 5, 6, 7))), 1
                    channels, out = draw.choice(WIDE), draw.choice(WIDE)
                    channels = channels if kind == "few" else draw.choice((8, 24, 32, 48, channels))
                case "plain" | "depthwise plain":
                    channels, out, group = draw.choice(PLAIN), draw.choice(PLAIN), 1
                    if kind != "plain":
                        out = group = channels
                case "uneven":
                    channels, out, group = draw.choice(UNEVEN), draw.choice((*UNEVEN, *CHANNELS)), 1
                case "scale":
                    out = channels = group = draw.choice(WIDE)
                case "first":
                    channels, group, size = draw.choice((1, 3)), 1, draw.choice((32, 49, 64, 96, 128, 160, 224))
                    out = draw.choice((8, 16, 24, 32, 64))
                case "grouped":
                    group = draw.choice((2, 4, 8))
                    channels, out = group * draw.choice((8, 16, 32)), group * draw.choice((8, 16, 32))
                case _:
                    group = 1
            macs = math.ceil(size / stride) ** 2 * out * channels / group * kernel**2
            least = LEAST_MACS / (20 if group > 1 else 100 if kind in ("few", "one") else 1)
            if least < macs < MOST_MACS and size**2 * max(channels, out / stride**2) < MOST_ELEMENTS:
                break
        net = Builder((1, channels, size, size), int8=int8, swept=swept)
        act: Activation = "Clip" if clipped else draw.choice(("", "Relu"))
        made = net.conv("x", out, kernel=kernel, stride=stride, group=group, act=act)
        return net.done(made), net.shapes["x"]

    return build


def _gated(activation: str, *, int8: bool = False) -> Build:
    """A pointwise convolution with an activation that stays an operator of its own."""

    def build(draw: random.Random, swept: int) -> Built:
        size, channels = draw.choice(SIZES[3:13]), draw.choice(CHANNELS[:10])
        net = Builder((1, channels, size, size), int8=int8, swept=swept)
        return net.done(net.conv("x", channels, act=activation)), net.shapes["x"]  # type: ignore[arg-type]

    return build


def _dense(rows: tuple[int, ...], *, int8: bool = False, act: Activation = "") -> Build:
    """A product with a bias, and perhaps an activation."""

    def build(draw: random.Random, swept: int) -> Built:
        count, inner = draw.choice(rows), draw.choice((64, 96, 128, 192, 256, 400, 512, 784, 1024, 1280, 2048))
        out = draw.choice((10, 32, 64, 100, 128, 256, 512, 1000, 1024))
        net = Builder((count, inner), int8=int8, swept=swept)
        return net.done(net.dense("x", out, act=act)), net.shapes["x"]

    return build


def _product(rows: tuple[int, ...], *, int8: bool = False) -> Build:
    """A product without a bias whose answer stays a float, as the last layer of a quantized network has it."""

    def build(draw: random.Random, swept: int) -> Built:
        count, inner = draw.choice(rows), draw.choice((64, 128, 256, 512, 1024, 1280))
        out = draw.choice((10, 64, 100, 256, 1000))
        net = Builder((count, inner), int8=int8, swept=swept)
        x = net.quantized("x") if int8 else "x"
        return net.done(net.add("MatMul", [x, net.fixed(inner, out)], (count, out))), net.shapes["x"]

    return build


def _attention(draw: random.Random, swept: int) -> Built:
    """The two batched products of attention, and its softmax."""
    heads, length, inner = draw.choice((2, 4, 8)), draw.choice((32, 64, 128, 196)), draw.choice((16, 32, 64))
    net = Builder((1, heads, length, inner), swept=swept)
    other = net.add("Transpose", ["x"], (1, heads, inner, length), perm=[0, 1, 3, 2])
    scores = net.add("MatMul", ["x", other], (1, heads, length, length))
    share = net.add("Softmax", [scores], (1, heads, length, length), axis=-1)
    return net.done(net.add("MatMul", [share, "x"], (1, heads, length, inner))), net.shapes["x"]


def _tokens(draw: random.Random, swept: int) -> Built:
    """A product over tokens with a weight, with the norm and the activation that surround it in a transformer."""
    length, inner, out = draw.choice((32, 64, 128, 196)), draw.choice((64, 128, 192, 256)), draw.choice((64, 256, 768))
    net = Builder((1, length, inner), swept=swept)
    normed = net.add("LayerNormalization", ["x", net.weight(inner), net.weight(inner)], (1, length, inner), axis=-1)
    wide = net.add("MatMul", [normed, net.weight(inner, out)], (1, length, out))
    shifted = net.add("Add", [wide, net.weight(out)], (1, length, out))
    scaled = net.add("Div", [shifted, net.constant(math.sqrt(2))], (1, length, out))
    half = net.add("Add", [net.add("Erf", [scaled], (1, length, out)), net.constant(1.0)], (1, length, out))
    product = net.add("Mul", [shifted, half], (1, length, out))
    return net.done(net.add("Mul", [product, net.constant(0.5)], (1, length, out))), net.shapes["x"]


def _table() -> Iterator[tuple[str, int, Build]]:
    for int8 in (False, True):
        word = " int8" if int8 else ""
        yield f"pointwise{word}", 22 - 4 * int8, _conv(1, int8=int8)
        yield f"depthwise 3{word}", 12, _conv(3, kind="depthwise", int8=int8)
        yield f"depthwise 3 strided{word}", 12, _conv(3, 2, kind="depthwise", int8=int8)
        yield f"depthwise 5{word}", 9, _conv(5, kind="depthwise", int8=int8)
        yield f"3x3{word}", 9, _conv(3, int8=int8)
        yield f"3x3 strided{word}", 6, _conv(3, 2, int8=int8)
        yield f"5x5{word}", 3, _conv(5, int8=int8)
        yield f"pointwise few{word}", 12, _conv(1, kind="few", int8=int8)
        yield f"pointwise one{word}", 9, _conv(1, kind="one", int8=int8)
        yield f"3x3 few{word}", 9, _conv(3, kind="few", int8=int8)
        yield f"pointwise uneven{word}", 9, _conv(1, kind="uneven", int8=int8)
        yield f"3x3 uneven{word}", 6, _conv(3, kind="uneven", int8=int8)
        for kernel, stride in ((3, 1), (3, 2), (5, 1), (5, 2), (7, 1), (7, 2)):
            name = f"depthwise uneven {kernel}{' strided' * (stride > 1)}{word}"
            yield name, 3, _conv(kernel, stride, kind="depthwise uneven", int8=int8)
        if not int8:
            yield "pointwise clipped", 9, _conv(1, clipped=True)
            yield "depthwise 3 clipped", 6, _conv(3, kind="depthwise", clipped=True)
            yield "depthwise 3 strided clipped", 3, _conv(3, 2, kind="depthwise", clipped=True)
            yield "pointwise few clipped", 3, _conv(1, kind="few", clipped=True)
            yield "pointwise plain", 9, _conv(1, kind="plain")
            yield "3x3 plain", 3, _conv(3, kind="plain")
            for kernel, stride in ((3, 1), (3, 2), (5, 1), (5, 2), (7, 2)):
                yield (
                    f"depthwise plain {kernel}{' strided' * (stride > 1)}",
                    3,
                    _conv(kernel, stride, kind="depthwise plain"),
                )
        yield f"first{word}", 9, _conv(3, 2, kind="first", int8=int8)
        yield f"first whole{word}", 6, _conv(3, kind="first", int8=int8)
        yield f"first wide{word}", 6, _conv(7, 2, kind="first", int8=int8)
        yield f"scale{word}", 6, _conv(1, kind="scale", int8=int8)
        yield f"grouped{word}", 6, _conv(3, kind="grouped", int8=int8)
        yield f"vector product{word}", 9, _dense((1,), int8=int8)
        yield f"matrix product{word}", 6, _dense((8, 32, 64), int8=int8)
        yield f"vector product relu{word}", 3, _dense((1,), int8=int8, act="Relu")
        yield f"bare vector product{word}", 6, _product((1,), int8=int8)
        yield f"bare matrix product{word}", 6, _product((8, 32, 64), int8=int8)
        yield f"silu{word}", 6, _gated("SiLU", int8=int8)
        yield f"hard-swish{word}", 6, _gated("HardSwish", int8=int8)
        yield f"add{word}", 6, moving.binary("Add", int8=int8)
        yield f"mul{word}", 6, moving.binary("Mul", int8=int8)
    yield "attention", 6, _attention
    yield "tokens", 6, _tokens
    yield from moving.TABLE


TABLE = tuple(_table())
