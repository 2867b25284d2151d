"""The networks whose timings were published, as graphs with zero weights, and their work by class.

    PYTHONPATH=. python benchmarks/published_networks.py          writes edgeml/bench/predict/published_works.csv

Each is written from the table of its paper or its published definition. NETWORKS has the multiply-accumulates that
those state in millions, 0 where they state nothing comparable; the script refuses a graph that is more than 6 % and a
million away. Borders are padded evenly, so that AlexNet and SqueezeNet take pictures a little smaller than 227. Left
out of the ncnn tables are networks without a public table of layers that could be checked that way (blazeface, the
YOLO-fastest family, squeezenet_ssd, vision_transformer, ...).
"""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from edgeml import graph
from edgeml.bench.calibrate.blocks import Builder
from edgeml.bench.predict.works import Work, work_of

WORKS = Path(__file__).resolve().parents[1] / "edgeml/bench/predict/published_works.csv"
CLOSE = 0.06  # pools, squeeze gates and dense heads are counted by some papers and not by others
Net = Builder


class Zeros(Builder):
    """A builder whose weights are zeros: only shapes matter here."""

    def weight(self, *shape: int, scale: float = 0.05) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = np.zeros(shape, np.float32)
        return name

    def pool(self, x: str, *, kernel: int = 3, stride: int = 2) -> str:
        rows, channels, height, width = self.shapes[x]
        shape = (rows, channels, -(-height // stride), -(-width // stride))
        window: dict[str, Any] = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "auto_pad": "SAME_UPPER"}
        return self.add("MaxPool", [x], shape, **window)

    def join(self, *parts: str, axis: int = 1) -> str:
        shape = list(self.shapes[parts[0]])
        shape[axis] = sum(self.shapes[part][axis] for part in parts)
        return self.add("Concat", list(parts), tuple(shape), axis=axis)

    def depth(self, x: str, *, kernel: int = 3, stride: int = 1, act: Any = "Relu") -> str:
        channels = self.shapes[x][1]
        return self.conv(x, channels, kernel=kernel, stride=stride, group=channels, act=act)

    def gate(self, x: str, inner: int) -> str:
        """Squeeze and excite."""
        rows, channels, *_ = self.shapes[x]
        mean = self.add("GlobalAveragePool", [x], (rows, channels, 1, 1))
        wide = self.conv(self.conv(mean, inner), channels, act="")
        return self.add("Mul", [x, self.add("HardSigmoid", [wide], self.shapes[wide])], self.shapes[x])

    def upsample(self, x: str, like: str) -> str:
        rows, channels, *_ = self.shapes[x]
        height, width = self.shapes[like][2:]
        name = f"size{len(self.weights)}"
        self.weights[name] = np.array([rows, channels, height, width], np.int64)
        return self.add("Resize", [x, "", "", name], (rows, channels, height, width), mode="nearest")

    def half(self, x: str) -> tuple[str, str]:
        """Split the channels in two."""
        rows, channels, height, width = self.shapes[x]
        parts = []
        for first in (0, channels // 2):
            names = [f"s{len(self.weights) + i}" for i in range(3)]
            values = ([first], [first + channels // 2], [1])
            self.weights |= {n: np.array(v, np.int64) for n, v in zip(names, values, strict=True)}
            parts.append(self.add("Slice", [x, *names], (rows, channels // 2, height, width)))
        return parts[0], parts[1]

    def shuffled(self, x: str, groups: int) -> str:
        rows, channels, height, width = self.shapes[x]
        split, name = (rows, groups, channels // groups, height * width), f"r{len(self.weights)}"
        self.weights |= {name: np.array(split, np.int64), f"{name}b": np.array(self.shapes[x], np.int64)}
        turned = (rows, channels // groups, groups, height * width)
        y = self.add("Transpose", [self.add("Reshape", [x, name], split)], turned, perm=[0, 2, 1, 3])
        return self.add("Reshape", [y, f"{name}b"], self.shapes[x])


def _sum(net: Zeros, x: str, y: str) -> str:
    return net.sum(x, y) if net.shapes[x] == net.shapes[y] else y


def _round(value: float, divisor: int = 8) -> int:
    """Return `value` rounded as the MobileNets do."""
    found = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return found + divisor if found < 0.9 * value else found


def mobilenet_v1(net: Zeros, width: float = 1.0) -> str:
    """arXiv 1704.04861, table 1."""
    return _head(net, _mobilenet_v1(net, width)[-1])


def _mobilenet_v1(net: Zeros, width: float) -> list[str]:
    x, made = net.conv("x", int(32 * width), kernel=3, stride=2), []
    early = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    for out, stride in [*early, *[(512, 1)] * 5, (1024, 2), (1024, 1)]:
        x = net.conv(net.depth(x, stride=stride), int(out * width))
        made.append(x)
    return made


def _head(net: Zeros, x: str, classes: int = 1000) -> str:
    return net.dense(net.pooled(x), classes)


def mobilenet_v2(net: Zeros, width: float = 1.0) -> str:
    """arXiv 1801.04381, table 2."""
    x = net.conv("x", _round(32 * width), kernel=3, stride=2)
    for expand, out, repeat, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for i in range(repeat):
            x = _inverted(net, x, (_round(out * width), expand, 3), stride=stride if i == 0 else 1)
    return _head(net, net.conv(x, _round(1280 * max(1.0, width))))


def _inverted(
    net: Zeros, x: str, size: tuple[int, float, int], *, stride: int = 1, gate: float = 0.0, act: Any = "Relu"
) -> str:
    """Add an inverted bottleneck of (channels out, expansion, kernel); `gate` is the squeeze's share of its input."""
    out, expand, kernel = size
    inputs = net.shapes[x][1]
    y = net.conv(x, round(inputs * expand), act=act) if expand != 1 else x
    y = net.depth(y, kernel=kernel, stride=stride, act=act)
    y = net.gate(y, max(1, int(inputs * gate))) if gate else y
    return _sum(net, x, net.conv(y, out, act="")) if stride == 1 else net.conv(y, out, act="")


LARGE = (  # kernel, wide, out, gate, hard swish, stride: arXiv 1905.02244, table 1
    *((3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1), (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1)),
    *((5, 120, 40, 1, 0, 1), (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1)),
    *((3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1), (5, 672, 160, 1, 1, 2)),
    *((5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)),
)
SMALL = (  # the same, table 2
    *((3, 16, 16, 1, 0, 2), (3, 72, 24, 0, 0, 2), (3, 88, 24, 0, 0, 1), (5, 96, 40, 1, 1, 2), (5, 240, 40, 1, 1, 1)),
    *((5, 240, 40, 1, 1, 1), (5, 120, 48, 1, 1, 1), (5, 144, 48, 1, 1, 1), (5, 288, 96, 1, 1, 2)),
    *((5, 576, 96, 1, 1, 1), (5, 576, 96, 1, 1, 1)),
)


def mobilenet_v3(net: Zeros, rows: Any = LARGE, *, width: float = 1.0, minimal: bool = False) -> str:
    """arXiv 1905.02244; the minimalistic form has neither 5x5 windows, gates nor hard swish."""
    x = net.conv("x", _round(16 * width), kernel=3, stride=2, act="Relu" if minimal else "HardSwish")
    before = 16
    for kernel, wide, out, gate, swish, stride in rows:
        act: Any = "HardSwish" if swish and not minimal else "Relu"
        inputs = net.shapes[x][1]
        y = net.conv(x, _round(wide / before * inputs), act=act) if wide != before or before != 16 else x
        y = net.depth(y, kernel=3 if minimal else kernel, stride=stride, act=act)
        y = net.gate(y, _round(net.shapes[y][1] / 4)) if gate and not minimal else y
        y = net.conv(y, _round(out * width), act="")
        x, before = (_sum(net, x, y) if stride == 1 else y), out
    last, wide = (960, 1280) if rows is LARGE else (576, 1024)
    x = net.conv(x, _round(last * width), act="Relu" if minimal else "HardSwish")
    rows_, channels, *_ = net.shapes[x]
    mean = net.add("GlobalAveragePool", [x], (rows_, channels, 1, 1))
    x = net.conv(mean, wide, act="Relu" if minimal else "HardSwish")
    return net.conv(x, 1000, act="")


B0 = (  # expansion, kernel, stride, out, repeats: arXiv 1905.11946, table 1
    *((1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3), (6, 5, 2, 192, 4)),
    (6, 3, 1, 320, 1),
)


def efficientnet(
    net: Zeros, width: float = 1.0, depth: float = 1.0, *, lite: bool = False, head: bool = True
) -> str | list[str]:
    """arXiv 1905.11946; the lite form has neither gates nor swish and keeps its first and last stage."""
    act: Any = "Relu" if lite else "SiLU"
    x, levels = net.conv("x", 32 if lite else _round(32 * width), kernel=3, stride=2, act=act), []
    for index, (expand, kernel, stride, out, repeat) in enumerate(B0):
        fixed = lite and index in (0, len(B0) - 1)
        count = repeat if fixed else int(np.ceil(repeat * depth))
        for i in range(count):
            size = (_round(out * width), expand, kernel)
            x = _inverted(net, x, size, stride=stride if i == 0 else 1, gate=0.0 if lite else 0.25, act=act)
        levels.append(x)
    if not head:
        return [levels[2], levels[4], levels[6]]
    return _head(net, net.conv(x, 1280 if lite else _round(1280 * width), act=act))


def efficientnet_v2_b0(net: Zeros) -> str:
    """arXiv 2104.00298; the table of keras.applications' EfficientNetV2B0."""
    x = net.conv("x", 32, kernel=3, stride=2, act="SiLU")
    for expand, first, out, repeat in ((1, 1, 16, 1), (4, 2, 32, 2), (4, 2, 48, 2)):
        for i in range(repeat):
            stride = first if i == 0 else 1
            if expand == 1:
                x = net.conv(x, out, kernel=3, act="SiLU")
                continue
            wide = net.conv(x, net.shapes[x][1] * expand, kernel=3, stride=stride, act="SiLU")
            x = _sum(net, x, net.conv(wide, out, act=""))
    for expand, stride, out, repeat in ((4, 2, 96, 3), (6, 1, 112, 5), (6, 2, 192, 8)):
        for i in range(repeat):
            x = _inverted(net, x, (out, expand, 3), stride=stride if i == 0 else 1, gate=0.25, act="SiLU")
    return _head(net, net.conv(x, 1280, act="SiLU"))


def mnasnet(net: Zeros) -> str:
    """MnasNet-B1 (arXiv 1807.11626; torchvision's mnasnet1_0)."""
    x = net.conv(net.depth(net.conv("x", 32, kernel=3, stride=2)), 16, act="")
    for expand, kernel, stride, out, repeat in (
        *((3, 3, 2, 24, 3), (3, 5, 2, 40, 3), (6, 5, 2, 80, 3), (6, 3, 1, 96, 2), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
    ):
        for i in range(repeat):
            x = _inverted(net, x, (out, expand, kernel), stride=stride if i == 0 else 1)
    return _head(net, net.conv(x, 1280))


def proxyless(net: Zeros) -> str:
    """ProxylessNAS mobile (arXiv 1812.00332, figure 4)."""
    x = net.conv(net.depth(net.conv("x", 32, kernel=3, stride=2)), 16, act="")
    stages = (
        *((32, ((3, 5), (3, 3))), (40, ((3, 7), (3, 3), (3, 5), (3, 5))), (80, ((6, 7), (3, 5), (3, 5), (3, 5)))),
        *((96, ((6, 5), (3, 5), (3, 5), (3, 5))), (192, ((6, 7), (6, 7), (3, 7), (3, 7))), (320, ((6, 7),))),
    )
    for out, blocks in stages:
        for i, (expand, kernel) in enumerate(blocks):
            x = _inverted(net, x, (out, expand, kernel), stride=2 if i == 0 and out not in (96, 320) else 1)
    return _head(net, net.conv(x, 1280))


def squeezenet(net: Zeros) -> str:
    """SqueezeNet 1.1 (arXiv 1602.07360)."""
    x = _cut(net, net.conv("x", 64, kernel=3, stride=2), 56)
    for index, (squeeze, expand) in enumerate(
        ((16, 64), (16, 64), (32, 128), (32, 128), (48, 192), (48, 192), (64, 256), (64, 256))
    ):
        small = net.conv(x, squeeze)
        x = net.join(net.conv(small, expand), net.conv(small, expand, kernel=3))
        x = net.pool(x) if index in (1, 3) else x
    return net.pooled(net.conv(x, 1000))


def shufflenet_v1(net: Zeros) -> str:
    """ShuffleNet 1x with three groups (arXiv 1707.01083, table 1)."""
    x = net.pool(net.conv("x", 24, kernel=3, stride=2))
    for out, repeat in ((240, 4), (480, 8), (960, 4)):
        for i in range(repeat):
            inputs = net.shapes[x][1]
            y = net.conv(x, out // 4, group=3 if inputs > 24 else 1)
            y = net.depth(net.shuffled(y, 3), stride=2 if i == 0 else 1, act="")
            y = net.conv(y, out - (inputs if i == 0 else 0), group=3, act="")
            x = net.join(net.pool(x), y) if i == 0 else net.sum(x, y)
    return _head(net, x)


def shufflenet_v2(net: Zeros) -> str:
    """ShuffleNetV2 1x (arXiv 1807.11164, table 5)."""
    return _head(net, net.conv(_shufflenet_v2(net)[-1], 1024))


def _shufflenet_v2(net: Zeros) -> list[str]:
    x, levels = net.pool(net.conv("x", 24, kernel=3, stride=2)), []
    for out, repeat in ((116, 4), (232, 8), (464, 4)):
        for i in range(repeat):
            left, right = (x, x) if i == 0 else net.half(x)
            if i == 0:
                left = net.conv(net.depth(left, stride=2, act=""), out // 2)
            right = net.depth(net.conv(right, out // 2), stride=2 if i == 0 else 1, act="")
            x = net.shuffled(net.join(left, net.conv(right, out // 2)), 2)
        levels.append(x)
    return levels


def regnety(net: Zeros) -> str:
    """RegNetY-400MF (arXiv 2003.13678, table 12 and its design space: groups of 8)."""
    x = net.conv("x", 32, kernel=3, stride=2)
    for out, repeat in ((48, 1), (104, 3), (208, 6), (440, 6)):
        for i in range(repeat):
            inputs, stride = net.shapes[x][1], 2 if i == 0 else 1
            y = net.conv(net.conv(x, out), out, kernel=3, stride=stride, group=out // 8)
            y = net.conv(net.gate(y, inputs // 4), out, act="")
            skip = x if stride == 1 else net.conv(x, out, stride=2, act="")
            x = net.activate(net.sum(skip, y), "Relu")
    return _head(net, x)


def googlenet(net: Zeros) -> str:
    """GoogLeNet (arXiv 1409.4842, table 1)."""
    x = net.pool(net.conv("x", 64, kernel=7, stride=2))
    x = net.pool(net.conv(net.conv(x, 64), 192, kernel=3))
    for index, (a, b, c, d, e, f) in enumerate(
        (
            *((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64)),
            *((160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64)),
            *((256, 160, 320, 32, 128, 128), (256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
        )
    ):
        parts = [net.conv(x, a), net.conv(net.conv(x, b), c, kernel=3), net.conv(net.conv(x, d), e, kernel=5)]
        x = net.join(*parts, net.conv(net.pool(x, stride=1), f))
        x = net.pool(x) if index in (1, 6) else x
    return _head(net, x)


def resnet18(net: Zeros) -> str:
    """arXiv 1512.03385, table 1."""
    x = net.pool(net.conv("x", 64, kernel=7, stride=2))
    for out in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and out > 64 else 1
            y = net.conv(net.conv(x, out, kernel=3, stride=stride), out, kernel=3, act="")
            skip = x if net.shapes[x] == net.shapes[y] else net.conv(x, out, stride=stride, act="")
            x = net.activate(net.sum(skip, y), "Relu")
    return _head(net, x)


def resnet50(net: Zeros, *, late: bool = False) -> str:
    """arXiv 1512.03385, table 1; the stride in the first 1x1 convolution, or `late` in the 3x3 (v1.5, MLPerf's)."""
    x = net.pool(net.conv("x", 64, kernel=7, stride=2))
    for inner, repeats in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(repeats):
            stride = 2 if block == 0 and inner > 64 else 1
            y = net.conv(x, inner, stride=1 if late else stride)
            y = net.conv(net.conv(y, inner, kernel=3, stride=stride if late else 1), 4 * inner, act="")
            skip = x if net.shapes[x] == net.shapes[y] else net.conv(x, 4 * inner, stride=stride, act="")
            x = net.activate(net.sum(skip, y), "Relu")
    return _head(net, x)


def alexnet(net: Zeros) -> str:
    """BVLC's AlexNet, two groups in the second, fourth and fifth layer."""
    x = _cut(net, net.conv("x", 96, kernel=11, stride=4), 27)
    x = _cut(net, net.conv(x, 256, kernel=5, group=2), 13)
    x = net.conv(net.conv(x, 384, kernel=3), 384, kernel=3, group=2)
    return _dense(net, _cut(net, net.conv(x, 256, kernel=3, group=2), 6), (4096, 4096, 1000))


def _cut(net: Zeros, x: str, side: int) -> str:
    """Pool down to `side` pixels a side, whatever the borders were."""
    rows, channels, *_ = net.shapes[x]
    name = f"size{len(net.weights)}"
    net.weights[name] = np.array([rows, channels, side, side], np.int64)
    return net.add("Resize", [x, "", "", name], (rows, channels, side, side), mode="nearest")


def _dense(net: Zeros, x: str, sizes: tuple[int, ...]) -> str:
    rows, channels, height, width = net.shapes[x]
    x = net.add("Flatten", [x], (rows, channels * height * width))
    for size in sizes:
        x = net.dense(x, size)
    return x


def vgg16(net: Zeros) -> str:
    """arXiv 1409.1556, configuration D."""
    x = "x"
    for out, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(repeats):
            x = net.conv(x, out, kernel=3)
        x = net.pool(x, kernel=2)
    return _dense(net, x, (4096, 4096, 1000))


def mobilenet_ssd(net: Zeros) -> str:
    """chuanqi305's MobileNet-SSD: six levels with 3 and 6 boxes of 21 classes."""
    made = _mobilenet_v1(net, 1.0)
    levels = [made[10], made[12]]
    for small, out in ((256, 512), (128, 256), (128, 256), (64, 128)):
        levels.append(net.conv(net.conv(levels[-1], small), out, kernel=3, stride=2))
    heads = [net.conv(x, boxes * 25, act="") for x, boxes in zip(levels, (3, 6, 6, 6, 6, 6), strict=True)]
    return _flat(net, heads)


def _flat(net: Zeros, parts: list[str]) -> str:
    flat = []
    for part in parts:
        rows, *rest = net.shapes[part]
        flat.append(net.add("Flatten", [part], (rows, int(np.prod(rest)))))
    return net.join(*flat)


def yolo_v4_tiny(net: Zeros) -> str:
    """YOLOv4-tiny (arXiv 2011.08036; darknet's yolov4-tiny.cfg, 80 classes)."""
    x = net.conv(net.conv("x", 32, kernel=3, stride=2), 64, kernel=3, stride=2)
    for out in (64, 128, 256):
        x = net.conv(x, out, kernel=3)
        a = net.conv(net.half(x)[1], out // 2, kernel=3)
        c = net.conv(net.join(net.conv(a, out // 2, kernel=3), a), out)
        x = net.pool(net.join(x, c), kernel=2)
    low = net.conv(net.conv(x, 512, kernel=3), 256)
    first = net.conv(net.conv(low, 512, kernel=3), 255, act="")
    up = net.conv(low, 128)
    second = net.conv(net.conv(net.join(net.upsample(up, c), c), 256, kernel=3), 255, act="")
    return _flat(net, [first, second])


def nanodet_m(net: Zeros) -> str:
    """NanoDet-m (RangiLyu/nanodet): ShuffleNetV2 1x, PAN of 96 channels, two separable layers a head, 80 classes."""
    levels = [net.conv(x, 96, act="") for x in _shufflenet_v2(net)]
    for i in (1, 0):
        levels[i] = net.sum(levels[i], net.upsample(levels[i + 1], levels[i]))
    for i in (1, 2):
        levels[i] = net.sum(levels[i], net.pool(levels[i - 1]))
    heads = []
    for x in levels:
        for _ in range(2):
            x = net.conv(net.depth(x), 96)
        heads.append(net.conv(x, 112, act=""))
    return _flat(net, heads)


DET = {  # EfficientDet-Lite: backbone width and depth, channels, layers of the pyramid, layers of the heads
    0: (320, 1.0, 1.0, 64, 3, 3),
    1: (384, 1.0, 1.1, 88, 4, 3),
    2: (448, 1.1, 1.2, 112, 5, 3),
    3: (512, 1.2, 1.4, 160, 6, 4),
    4: (640, 1.4, 1.8, 224, 7, 4),
}


def efficientdet(net: Zeros, size: int) -> str:
    """EfficientDet-Lite (arXiv 1911.09070 with EfficientNet-Lite backbones; google/automl), 90 classes, 9 anchors."""
    _, width, depth, channels, layers, heads = DET[size]
    levels = [net.conv(x, channels, act="") for x in efficientnet(net, width, depth, lite=True, head=False)]
    for _ in range(2):
        levels.append(net.pool(levels[-1]))
    for _ in range(layers):
        levels = _pyramid(net, levels)
    made = []
    for boxes in (9 * 90, 9 * 4):
        for x in levels:
            for _ in range(heads):
                x = net.conv(net.depth(x, act=""), channels)
            made.append(net.conv(net.depth(x, act=""), boxes, act=""))
    return _flat(net, made)


def _pyramid(net: Zeros, levels: list[str]) -> list[str]:
    """One layer of the two-way pyramid: down, then up, a separable convolution after each sum."""

    def after(*parts: str) -> str:
        x = parts[0]
        for part in parts[1:]:
            x = net.sum(x, part)
        return net.conv(net.depth(x, act=""), net.shapes[x][1])

    down = list(levels)
    for i in range(len(levels) - 2, -1, -1):
        down[i] = after(levels[i], net.upsample(down[i + 1], levels[i]))
    up = [down[0]]
    for i in range(1, len(levels)):
        inner = [down[i]] if i < len(levels) - 1 else []
        up.append(after(levels[i], *inner, net.pool(up[-1])))
    return up


def yolox(net: Zeros, depth: float, width: float, *, separable: bool = False) -> str:
    """YOLOX (arXiv 2107.08430): CSPDarknet, two-way pyramid, heads with two branches, 80 classes."""
    base, act = int(64 * width), "SiLU"

    def conv(x: str, out: int, *, kernel: int = 3, stride: int = 1) -> str:
        if separable and kernel > 1:
            return net.conv(net.depth(x, kernel=kernel, stride=stride, act="SiLU"), out, act="SiLU")
        return net.conv(x, out, kernel=kernel, stride=stride, act="SiLU")

    def csp(x: str, out: int, *, count: int, add: bool = True) -> str:
        left, right = net.conv(x, out // 2, act="SiLU"), net.conv(x, out // 2, act="SiLU")
        for _ in range(max(1, round(count * depth))):
            y = conv(net.conv(left, out // 2, act="SiLU"), out // 2)
            left = net.sum(left, y) if add else y
        return net.conv(net.join(left, right), out, act="SiLU")

    x, levels = net.conv(_focus(net), base, kernel=3, act="SiLU"), []
    for index, (out, count) in enumerate(((2, 3), (4, 9), (8, 9), (16, 3))):
        x = conv(x, base * out, stride=2)
        if index == 3:
            y = net.conv(x, base * 8, act="SiLU")
            x = net.conv(net.join(y, *(net.pool(y, kernel=k, stride=1) for k in (5, 9, 13))), base * 16, act="SiLU")
        x = csp(x, base * out, count=count, add=index < 3)
        levels.append(x)
    c3, c4, c5 = levels[1:]
    p5 = net.conv(c5, base * 8, act="SiLU")
    p4 = csp(net.join(net.upsample(p5, c4), c4), base * 8, count=3, add=False)
    small = net.conv(p4, base * 4, act="SiLU")
    p3 = csp(net.join(net.upsample(small, c3), c3), base * 4, count=3, add=False)
    n4 = csp(net.join(conv(p3, base * 4, stride=2), small), base * 8, count=3, add=False)
    n5 = csp(net.join(conv(n4, base * 8, stride=2), p5), base * 16, count=3, add=False)
    made = []
    for level in (p3, n4, n5):
        stem = net.conv(level, base * 4, act=act)  # type: ignore[arg-type]
        kinds, places = (conv(conv(stem, base * 4), base * 4) for _ in range(2))
        made += [net.conv(kinds, 80, act=""), net.conv(places, 4, act=""), net.conv(places, 1, act="")]
    return _flat(net, made)


def _focus(net: Zeros) -> str:
    """Put four neighbouring pixels into channels."""
    rows, channels, height, width = net.shapes["x"]
    return net.add("SpaceToDepth", ["x"], (rows, 4 * channels, height // 2, width // 2), blocksize=2)


Build = Callable[[Zeros], Any]
NETWORKS: dict[str, tuple[int, Build, float]] = {  # name -> side of the picture, layers, published MACs in millions
    "squeezenet": (225, squeezenet, 0),
    "mobilenet": (224, mobilenet_v1, 569),
    "mobilenet_v2": (224, mobilenet_v2, 300),
    "mobilenet_v3": (224, mobilenet_v3, 219),
    "shufflenet": (224, shufflenet_v1, 137),
    "shufflenet_v2": (224, shufflenet_v2, 146),
    "mnasnet": (224, mnasnet, 315),
    "proxylessnasnet": (224, proxyless, 320),
    "efficientnet_b0": (224, efficientnet, 390),
    "efficientnetv2_b0": (224, efficientnet_v2_b0, 720),
    "regnety_400m": (224, regnety, 400),
    "googlenet": (224, googlenet, 1580),
    "resnet18": (224, resnet18, 1814),
    "alexnet": (220, alexnet, 724),
    "vgg16": (224, vgg16, 15470),
    "resnet50": (224, resnet50, 3858),
    "resnet50-v1.5": (224, partial(resnet50, late=True), 4089),
    "mobilenet_ssd": (300, mobilenet_ssd, 1150),
    "yolov4-tiny": (416, yolo_v4_tiny, 3455),
    "nanodet_m": (320, nanodet_m, 360),
    "yolox-nano": (416, partial(yolox, depth=0.33, width=0.25, separable=True), 540),
    "yolox-tiny": (416, partial(yolox, depth=0.33, width=0.375), 3225),
    "yolox-s": (640, partial(yolox, depth=0.33, width=0.5), 13400),
    "yolox-m": (640, partial(yolox, depth=0.67, width=0.75), 36900),
    "yolox-l": (640, partial(yolox, depth=1.0, width=1.0), 77800),
}
V1 = {0.25: (14, 21, 30, 41), 0.5: (49, 77, 110, 149), 0.75: (104, 162, 233, 317), 1.0: (186, 291, 418, 569)}
V2 = {
    0.35: (11, 20, 30, 43, 59),
    0.5: (18, 32, 50, 71, 97),
    0.75: (39, 69, 107, 153, 209),
    1.0: (56, 99, 154, 221, 300),
    1.3: (0, 0, 0, 0, 509),
    1.4: (0, 0, 0, 0, 582),
}
for _width, _published in V1.items():
    for _side, _macs in zip((128, 160, 192, 224), _published, strict=True):
        NETWORKS[f"mobilenet-v1-{_width}-{_side}"] = (_side, partial(mobilenet_v1, width=_width), _macs)
for _width, _published2 in V2.items():
    for _side, _macs in zip((96, 128, 160, 192, 224), _published2, strict=True):
        if _macs:
            NETWORKS[f"mobilenet-v2-{_width}-{_side}"] = (_side, partial(mobilenet_v2, width=_width), _macs)
for _name, _rows, _width, _minimal, _macs in (
    ("large", LARGE, 1.0, False, 219),
    ("large", LARGE, 0.75, False, 155),
    ("large-minimalistic", LARGE, 1.0, True, 209),
    ("small", SMALL, 1.0, False, 56),
    ("small", SMALL, 0.75, False, 44),
    ("small-minimalistic", SMALL, 1.0, True, 0),
):
    _build = partial(mobilenet_v3, rows=_rows, width=_width, minimal=_minimal)
    NETWORKS[f"mobilenet-v3-{_name}_224_{_width}"] = (224, _build, _macs)
for _size, (_side, _width, _depth, _macs) in enumerate(
    ((224, 1.0, 1.0, 407), (240, 1.0, 1.1, 631), (260, 1.1, 1.2, 899), (280, 1.2, 1.4, 1440), (300, 1.4, 1.8, 2640))
):
    NETWORKS[f"efficientnet-lite{_size}"] = (_side, partial(efficientnet, width=_width, depth=_depth, lite=True), _macs)
for _size in DET:
    NETWORKS[f"EfficientDet-lite{_size}"] = (DET[_size][0], partial(efficientdet, size=_size), 0)


def work(name: str) -> Work:
    """Return the work of a published network."""
    side, build, _ = NETWORKS[name]
    net = Zeros((1, 3, side, side))
    made = build(net)
    return work_of(graph.cost(net.done(made)))


def main() -> None:
    wanted = re.compile(sys.argv[1] if len(sys.argv) > 1 else ".")
    far, rows = [], []
    for name, (_, _, published) in NETWORKS.items():
        if not wanted.search(name):
            continue
        found = work(name)
        macs = found.macs / 1e6
        off = macs / published - 1 if published else 0.0
        far += [name] if abs(off) > CLOSE and abs(macs - published) > 1 else []
        print(f"{name:40} {macs:9.1f} M, published {published:9.1f}, {off:+.1%}")
        rows.append({"model": name, **found.plain()})
    if far:
        raise SystemExit(f"not what was published: {', '.join(far)}")
    with WORKS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
