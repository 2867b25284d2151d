"""Detectors whose timings were published: backbones of published_classifiers with their heads, layer by layer."""

from __future__ import annotations

import numpy as np

from benchmarks.published_classifiers import efficientnet, mobilenet_v1_levels, shufflenet_v2_levels
from benchmarks.published_layers import Zeros


def mobilenet_ssd(net: Zeros) -> str:
    """chuanqi305's MobileNet-SSD: six levels with 3 and 6 boxes of 21 classes."""
    made = mobilenet_v1_levels(net, 1.0)
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
    levels = [net.conv(x, 96, act="") for x in shufflenet_v2_levels(net)]
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
