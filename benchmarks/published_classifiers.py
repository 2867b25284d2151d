"""Classifiers whose timings were published, and the backbones that detectors take from them, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.published_layers import Zeros, classified, residual, rounded


def mobilenet_v1(net: Zeros, width: float = 1.0) -> str:
    """arXiv 1704.04861, table 1."""
    return classified(net, mobilenet_v1_levels(net, width)[-1])


def mobilenet_v1_levels(net: Zeros, width: float) -> list[str]:
    x, made = net.conv("x", int(32 * width), kernel=3, stride=2), []
    early = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    for out, stride in [*early, *[(512, 1)] * 5, (1024, 2), (1024, 1)]:
        x = net.conv(net.depth(x, stride=stride), int(out * width))
        made.append(x)
    return made


def mobilenet_v2(net: Zeros, width: float = 1.0) -> str:
    """arXiv 1801.04381, table 2."""
    x = net.conv("x", rounded(32 * width), kernel=3, stride=2)
    for expand, out, repeat, stride in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for i in range(repeat):
            x = _inverted(net, x, (rounded(out * width), expand, 3), stride=stride if i == 0 else 1)
    return classified(net, net.conv(x, rounded(1280 * max(1.0, width))))


def _inverted(
    net: Zeros, x: str, size: tuple[int, float, int], *, stride: int = 1, gate: float = 0.0, act: Any = "Relu"
) -> str:
    """Add an inverted bottleneck of (channels out, expansion, kernel); `gate` is the squeeze's share of its input."""
    out, expand, kernel = size
    inputs = net.shapes[x][1]
    y = net.conv(x, round(inputs * expand), act=act) if expand != 1 else x
    y = net.depth(y, kernel=kernel, stride=stride, act=act)
    y = net.gate(y, max(1, int(inputs * gate))) if gate else y
    return residual(net, x, net.conv(y, out, act="")) if stride == 1 else net.conv(y, out, act="")


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
    x = net.conv("x", rounded(16 * width), kernel=3, stride=2, act="Relu" if minimal else "HardSwish")
    before = 16
    for kernel, wide, out, gate, swish, stride in rows:
        act: Any = "HardSwish" if swish and not minimal else "Relu"
        inputs = net.shapes[x][1]
        y = net.conv(x, rounded(wide / before * inputs), act=act) if wide != before or before != 16 else x
        y = net.depth(y, kernel=3 if minimal else kernel, stride=stride, act=act)
        y = net.gate(y, rounded(net.shapes[y][1] / 4)) if gate and not minimal else y
        y = net.conv(y, rounded(out * width), act="")
        x, before = (residual(net, x, y) if stride == 1 else y), out
    last, wide = (960, 1280) if rows is LARGE else (576, 1024)
    x = net.conv(x, rounded(last * width), act="Relu" if minimal else "HardSwish")
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
    x, levels = net.conv("x", 32 if lite else rounded(32 * width), kernel=3, stride=2, act=act), []
    for index, (expand, kernel, stride, out, repeat) in enumerate(B0):
        fixed = lite and index in (0, len(B0) - 1)
        count = repeat if fixed else int(np.ceil(repeat * depth))
        for i in range(count):
            size = (rounded(out * width), expand, kernel)
            x = _inverted(net, x, size, stride=stride if i == 0 else 1, gate=0.0 if lite else 0.25, act=act)
        levels.append(x)
    if not head:
        return [levels[2], levels[4], levels[6]]
    return classified(net, net.conv(x, 1280 if lite else rounded(1280 * width), act=act))


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
            x = residual(net, x, net.conv(wide, out, act=""))
    for expand, stride, out, repeat in ((4, 2, 96, 3), (6, 1, 112, 5), (6, 2, 192, 8)):
        for i in range(repeat):
            x = _inverted(net, x, (out, expand, 3), stride=stride if i == 0 else 1, gate=0.25, act="SiLU")
    return classified(net, net.conv(x, 1280, act="SiLU"))


def mnasnet(net: Zeros) -> str:
    """MnasNet-B1 (arXiv 1807.11626; torchvision's mnasnet1_0)."""
    x = net.conv(net.depth(net.conv("x", 32, kernel=3, stride=2)), 16, act="")
    for expand, kernel, stride, out, repeat in (
        *((3, 3, 2, 24, 3), (3, 5, 2, 40, 3), (6, 5, 2, 80, 3), (6, 3, 1, 96, 2), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)),
    ):
        for i in range(repeat):
            x = _inverted(net, x, (out, expand, kernel), stride=stride if i == 0 else 1)
    return classified(net, net.conv(x, 1280))


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
    return classified(net, net.conv(x, 1280))


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
    return classified(net, x)


def shufflenet_v2(net: Zeros) -> str:
    """ShuffleNetV2 1x (arXiv 1807.11164, table 5)."""
    return classified(net, net.conv(shufflenet_v2_levels(net)[-1], 1024))


def shufflenet_v2_levels(net: Zeros) -> list[str]:
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
    return classified(net, x)


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
    return classified(net, x)


def resnet18(net: Zeros) -> str:
    """arXiv 1512.03385, table 1."""
    x = net.pool(net.conv("x", 64, kernel=7, stride=2))
    for out in (64, 128, 256, 512):
        for block in range(2):
            stride = 2 if block == 0 and out > 64 else 1
            y = net.conv(net.conv(x, out, kernel=3, stride=stride), out, kernel=3, act="")
            skip = x if net.shapes[x] == net.shapes[y] else net.conv(x, out, stride=stride, act="")
            x = net.activate(net.sum(skip, y), "Relu")
    return classified(net, x)


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
    return classified(net, x)


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
