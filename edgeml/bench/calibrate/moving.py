"""Micro-models of what stands between convolutions and products: maps, moves, pools, recurrent layers, trees."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgeml.bench.calibrate.blocks import Builder
from edgeml.bench.calibrate.sizes import CHANNELS, SIZES, Build, Built


def _unary(operator: str, **attributes: Any) -> Build:
    def build(draw: random.Random, swept: int) -> Built:
        shape = picture(draw)
        net = Builder(shape, swept=swept)
        return net.done(net.add(operator, ["x"], shape, **attributes)), shape

    return build


def binary(operator: str, *, broadcast: bool = False, scalar: bool = False, int8: bool = False) -> Build:
    def build(draw: random.Random, swept: int) -> Built:
        shape = picture(draw)
        net = Builder(shape, int8=int8, swept=swept)
        if scalar:
            return net.done(net.add(operator, ["x", net.constant(0.5)], shape)), shape
        if broadcast:
            return net.done(net.add(operator, ["x", net.weight(1, shape[1], 1, 1)], shape)), shape
        if int8 and operator == "Mul":
            both = [net.quantized("x"), net.quantized(net.add("Neg", ["x"], shape))]
            return net.done(net.quantized(net.add("Mul", both, shape))), shape
        if int8:
            return net.done(net.sum(net.quantized("x"), net.activate(net.quantized("x"), "Relu"))), shape
        return net.done(net.add(operator, ["x", net.add("Neg", ["x"], shape)], shape)), shape

    return build


def _pool(operator: str) -> Build:
    def build(draw: random.Random, swept: int) -> Built:
        rows, channels, size, _ = picture(draw)
        net, kernel, stride = (
            Builder((rows, channels, size, size), swept=swept),
            draw.choice((2, 3)),
            draw.choice((1, 2)),
        )
        out = (size - kernel) // stride + 1
        made = net.add(
            operator, ["x"], (rows, channels, out, out), kernel_shape=[kernel, kernel], strides=[stride, stride]
        )
        return net.done(made), net.shapes["x"]

    return build


def _global(draw: random.Random, swept: int) -> Built:
    net = Builder(picture(draw), swept=swept)
    return net.done(net.pooled("x")), net.shapes["x"]


def _plain_global(draw: random.Random, swept: int) -> Built:
    """A mean over the picture outside of the blocked layout, as int8 networks have it."""
    rows, channels, size, _ = picture(draw)
    net = Builder((rows, channels + 1, size, size), swept=swept)  # an uneven count is never blocked
    return net.done(net.pooled("x")), net.shapes["x"]


def _int8_between(draw: random.Random, swept: int) -> Built:
    """What stands between int8 convolutions: pools, activations, a concatenation and a gate by channel."""
    size, channels = draw.choice(SIZES[5:13]), draw.choice(CHANNELS[:10])
    net, shape = Builder((1, channels, size, size), int8=True, swept=swept), (1, channels, size, size)
    left, right = net.conv("x", channels), net.conv("x", channels)
    gate = net.quantized(net.add("Sigmoid", [left], shape))
    gated = net.quantized(net.add("Mul", [left, gate], shape))
    leaky = net.quantized(net.add("LeakyRelu", [right], shape, alpha=0.1))
    both = net.quantized(net.add("Concat", [gated, leaky], (1, 2 * channels, size, size), axis=1))
    half = (1, 2 * channels, size // 2, size // 2)
    window: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2]}
    largest = net.quantized(net.add("MaxPool", [both], half, **window))
    whole: dict[str, Any] = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": [1, 1, 1, 1]}
    mean = net.quantized(net.add("AveragePool", [left], shape, **whole))
    means = net.conv(mean, channels)
    gate = net.quantized(net.add("GlobalAveragePool", [means], (1, channels, 1, 1)))
    scaled = net.quantized(
        net.add("Mul", [means, net.quantized(net.add("Sigmoid", [gate], (1, channels, 1, 1)))], shape)
    )
    return net.done(net.conv(largest, channels), net.conv(scaled, channels)), net.shapes["x"]


def _normalize(draw: random.Random, swept: int) -> Built:
    """A picture with channels last, scaled and shifted by channel before it is transposed, and its mean."""
    size, channels = draw.choice(((160, 3), (96, 3), (128, 1), (64, 8), (28, 64), (14, 96), (7, 256), (4, 512)))
    net = Builder((1, size, size, channels), swept=swept)
    scaled = net.add("Mul", ["x", net.weight(channels)], net.shapes["x"])
    moved = net.add("Sub", [scaled, net.weight(channels)], net.shapes["x"])
    mean = net.add("ReduceMean", [moved], (1, 1, 1, channels), axes=[1, 2], keepdims=1)
    turned = net.add("Transpose", [moved], (1, channels, size, size), perm=[0, 3, 1, 2])
    return net.done(turned, mean), net.shapes["x"]


def _cut(operator: str) -> Build:
    """A picture with a border more, or less."""

    def build(draw: random.Random, swept: int) -> Built:
        rows, channels, size, _ = picture(draw)
        net = Builder((rows, channels, size, size), swept=swept)
        if operator == "Pad":
            net.weights["border"] = np.array([0, 0, 0, 0, 0, 0, 1, 1], np.int64)
            return net.done(net.add("Pad", ["x", "border"], (rows, channels, size + 1, size + 1))), net.shapes["x"]
        net.weights |= {"first": np.array([1, 1]), "last": np.array([size, size]), "axes": np.array([2, 3])}
        return net.done(
            net.add("Slice", ["x", "first", "last", "axes"], (rows, channels, size - 1, size - 1))
        ), net.shapes["x"]

    return build


def _mean_of_picture(draw: random.Random, swept: int) -> Built:
    rows, channels, size, _ = picture(draw)
    net = Builder((rows, channels, size, size), swept=swept)
    return net.done(net.add("ReduceMean", ["x"], (rows, channels, 1, 1), axes=[2, 3], keepdims=1)), net.shapes["x"]


def _blocked(draw: random.Random, swept: int) -> Built:
    """What stands between convolutions: pool, sum, concatenation and a gate by channel, in the layout of theirs."""
    size, channels = draw.choice(SIZES[5:13]), draw.choice(CHANNELS[:10])
    net = Builder((1, channels, size, size), swept=swept)
    left, right = net.conv("x", channels), net.conv("x", channels)
    summed = net.sum(left, right)
    gate = net.add("GlobalAveragePool", [summed], (1, channels, 1, 1))
    gate = net.activate(net.conv(gate, channels, act=""), draw.choice(("Relu", "SiLU")))
    scaled = net.add("Mul", [summed, net.add("Sigmoid", [gate], (1, channels, 1, 1))], (1, channels, size, size))
    half = -(-size // 2)
    pooled = net.add(
        draw.choice(("MaxPool", "AveragePool")),
        [scaled],
        (1, channels, half, half),
        kernel_shape=[3, 3],
        strides=[2, 2],
        pads=[1, 1, 1, 1] if size % 2 else [0, 0, 1, 1],
    )
    both = net.add("Concat", [left, right], (1, 2 * channels, size, size), axis=1)
    return net.done(pooled, net.conv(both, channels)), net.shapes["x"]


def _between(draw: random.Random, swept: int) -> Built:
    """A picture twice as large between two convolutions, in the layout of theirs."""
    size, channels = draw.choice(SIZES[3:11]), draw.choice(CHANNELS[:8])
    net = Builder((1, channels, size, size), swept=swept)
    net.weights["twice"] = np.array([1, 1, 2, 2], np.float32)
    mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    shape = (1, channels, 2 * size, 2 * size)
    larger = net.add("Resize", [net.conv("x", channels), "", "twice"], shape, **mode)
    return net.done(net.conv(larger, channels)), net.shapes["x"]


def _shuffle(int8: bool) -> Build:
    """Channels in pairs, turned: what ShuffleNet does, and a quantized one in bytes."""

    def build(draw: random.Random, swept: int) -> Built:
        size, half = draw.choice((5, 7, 10, 14, 20, 28)), draw.choice((24, 58, 116, 232))
        shape, pairs = (1, 2 * half, size, size), (1, 2, half, size, size)
        net = Builder(shape, swept=swept, int8=int8)
        net.weights |= {"pairs": np.array(pairs), "whole_shape": np.array(shape)}
        step = net.quantized if int8 else str
        made = net.add("Reshape", [net.conv("x", 2 * half) if int8 else "x", "pairs"], pairs)
        made = net.add("Transpose", [step(made)], (1, half, 2, size, size), perm=[0, 2, 1, 3, 4])
        made = step(net.add("Reshape", [step(made), "whole_shape"], shape))
        return net.done(net.conv(made, 2 * half) if int8 else made), shape

    return build


def _shuffle_last(draw: random.Random, swept: int) -> Built:
    """The same with channels last, as onnxruntime turns it when the convolutions around it are in int8."""
    size, half = draw.choice((5, 7, 10, 14, 20, 28)), draw.choice((24, 58, 116, 232))
    shape, pairs = (1, size, size, 2 * half), (1, size, size, 2, half)
    net = Builder(shape, swept=swept, int8=True)
    net.weights |= {"pairs": np.array(pairs), "whole_shape": np.array(shape)}
    made = net.quantized(net.add("Reshape", [net.quantized("x"), "pairs"], pairs))
    made = net.quantized(net.add("Transpose", [made], (1, size, size, half, 2), perm=[0, 1, 2, 4, 3]))
    return net.done(net.add("Reshape", [made, "whole_shape"], shape)), shape


def _concat(draw: random.Random, swept: int) -> Built:
    rows, channels, size, _ = picture(draw)
    net = Builder((rows, channels, size, size), swept=swept)
    other = net.add("Relu", ["x"], net.shapes["x"])
    return net.done(net.add("Concat", ["x", other], (rows, 2 * channels, size, size), axis=1)), net.shapes["x"]


def _resize(draw: random.Random, swept: int) -> Built:
    """A picture twice as large, channels first or last."""
    rows, channels, size, _ = picture(draw)
    last = draw.random() < 0.5
    shape = (rows, size, size, channels) if last else (rows, channels, size, size)
    net = Builder(shape, swept=swept)
    factors = (1, 2, 2, 1) if last else (1, 1, 2, 2)
    net.weights["twice"] = np.array(factors, np.float32)
    made = (rows, *(factor * axis for factor, axis in zip(factors[1:], shape[1:], strict=True)))
    mode = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return net.done(net.add("Resize", ["x", "", "twice"], made, **mode)), net.shapes["x"]


def _transpose(draw: random.Random, swept: int) -> Built:
    rows, channels, height, width = picture(draw)
    net = Builder((rows, channels, height, width), swept=swept)
    return net.done(net.add("Transpose", ["x"], (rows, height, width, channels), perm=[0, 2, 3, 1])), net.shapes["x"]


def _rows(operator: str) -> Build:
    """Along the last axis of a matrix: a softmax, a mean."""

    def build(draw: random.Random, swept: int) -> Built:
        rows, inner = draw.choice((32, 64, 128, 512)), draw.choice((16, 64, 196, 256, 1000))
        net = Builder((rows, inner), swept=swept)
        if operator == "Softmax":
            return net.done(net.add("Softmax", ["x"], (rows, inner), axis=-1)), net.shapes["x"]
        return net.done(net.add(operator, ["x"], (rows, 1), axes=[1], keepdims=1)), net.shapes["x"]

    return build


def _recurrent(operator: str, gates: int) -> Build:
    def build(draw: random.Random, swept: int) -> Built:
        steps, inner, hidden = (
            draw.choice((8, 16, 32, 64)),
            draw.choice((8, 16, 40, 64)),
            draw.choice((16, 32, 64, 128)),
        )
        net = Builder((steps, 1, inner), swept=swept)
        weights = [net.weight(1, gates * hidden, inner), net.weight(1, gates * hidden, hidden)]
        inputs = ["x", *weights, net.weight(1, 2 * gates * hidden)]
        return net.done(net.add(operator, inputs, (steps, 1, 1, hidden), hidden_size=hidden)), net.shapes["x"]

    return build


def _trees(operator: str) -> Build:
    """Whole trees over random features, whose leaves stand for one class in turns, or for a value."""

    def build(draw: random.Random, swept: int) -> Built:
        count, depth, rows = draw.choice((1, 10, 30, 100)), draw.choice((2, 4, 6, 8)), draw.choice((1, 1, 16))
        features, size = draw.choice((8, 16, 32)), 2 ** (depth + 1) - 1
        inner = 2**depth - 1
        net, leaves = (
            Builder((rows, features), swept=swept),
            [(t, i) for t in range(count) for i in range(inner, size)],
        )
        ids = list(range(size))
        attributes: dict[str, Any] = {
            "nodes_treeids": [t for t in range(count) for _ in ids],
            "nodes_nodeids": ids * count,
            "nodes_featureids": [draw.randrange(features) if i < inner else 0 for _ in range(count) for i in ids],
            "nodes_values": [draw.gauss(0, 1) if i < inner else 0.0 for _ in range(count) for i in ids],
            "nodes_modes": ["BRANCH_LEQ" if i < inner else "LEAF" for i in ids] * count,
            "nodes_truenodeids": [2 * i + 1 if i < inner else 0 for i in ids] * count,
            "nodes_falsenodeids": [2 * i + 2 if i < inner else 0 for i in ids] * count,
        }
        prefix, classes = ("class", 3) if operator.endswith("Classifier") else ("target", 1)
        attributes |= {f"{prefix}_treeids": [t for t, _ in leaves], f"{prefix}_nodeids": [i for _, i in leaves]}
        attributes |= {f"{prefix}_ids": [i % classes for _, i in leaves], f"{prefix}_weights": [0.1] * len(leaves)}
        if prefix == "class":
            made = net.trees(operator, "x", (rows, classes), classlabels_int64s=list(range(classes)), **attributes)
        else:
            made = net.trees(operator, "x", (rows, 1), n_targets=1, **attributes)
        return net.done(made), net.shapes["x"]

    return build


def _quantize(draw: random.Random, swept: int) -> Built:
    """To int8 and back, with a move between them that keeps the two apart."""
    rows, channels, height, width = picture(draw)
    net = Builder((rows, channels, height, width), int8=True, swept=swept)
    whole = net.add("QuantizeLinear", ["x", "scale", "middle"], net.shapes["x"])
    moved = net.add("Transpose", [whole], (rows, height, width, channels), perm=[0, 2, 3, 1])
    return net.done(
        net.add("DequantizeLinear", [moved, "scale", "middle"], (rows, height, width, channels))
    ), net.shapes["x"]


def picture(draw: random.Random) -> tuple[int, int, int, int]:
    while True:
        size, channels = draw.choice(SIZES), draw.choice(CHANNELS)
        if 4_000 < size * size * channels < 400_000:
            return 1, channels, size, size


def _table() -> Iterator[tuple[str, int, Build]]:
    yield "mul by channel", 6, binary("Mul", broadcast=True)
    yield "add by channel", 6, binary("Add", broadcast=True)
    yield "mul by scalar", 6, binary("Mul", scalar=True)
    yield "add scalar", 6, binary("Add", scalar=True)
    yield "sub", 3, binary("Sub")
    yield "div", 3, binary("Div", scalar=True)
    yield "int8 between", 12, _int8_between
    yield "normalize", 9, _normalize
    yield "pad", 6, _cut("Pad")
    yield "slice", 6, _cut("Slice")
    yield "mean of picture", 6, _mean_of_picture
    for operator in ("Relu", "Sigmoid", "Tanh", "Erf", "Exp", "Sqrt"):
        yield operator.lower(), 6, _unary(operator)
    yield "leaky relu", 6, _unary("LeakyRelu", alpha=0.1)
    yield "max pool", 6, _pool("MaxPool")
    yield "average pool", 6, _pool("AveragePool")
    yield "global pool", 6, _global
    yield "plain global pool", 6, _plain_global
    yield "blocked", 9, _blocked
    yield "concat", 6, _concat
    yield "resize", 6, _resize
    yield "resize between", 3, _between
    yield "shuffle", 6, _shuffle(int8=False)
    yield "shuffle int8", 6, _shuffle(int8=True)
    yield "shuffle last int8", 6, _shuffle_last
    yield "transpose", 6, _transpose
    yield "softmax", 6, _rows("Softmax")
    yield "mean", 6, _rows("ReduceMean")
    yield "lstm", 9, _recurrent("LSTM", 4)
    yield "gru", 6, _recurrent("GRU", 3)
    yield "quantize", 6, _quantize
    yield "tree classifier", 9, _trees("TreeEnsembleClassifier")
    yield "tree regressor", 9, _trees("TreeEnsembleRegressor")


TABLE = tuple(_table())
