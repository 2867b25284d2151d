"""Five reference nets, timed end to end on a device: what the sum of its kernels is set right by.

From 0.1 to 120 million multiply-accumulates: the families of MLPerf Tiny, and what phones and detectors run.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeml.bench.calibrate.blocks import Activation, Builder

Net = Callable[[bool], tuple[bytes, tuple[int, ...]]]  # int8 -> model, shape of its input


def mobilenet_v1(int8: bool) -> tuple[bytes, tuple[int, ...]]:
    """Return MobileNetV1 0.5 at 160 (arXiv 1704.04861)."""
    net = Builder((1, 3, 160, 160), int8=int8)
    x = net.conv("x", 16, kernel=3, stride=2)
    for out, stride in ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (256, 2), *[(256, 1)] * 5, (512, 2), (512, 1)):
        x = net.conv(x, net.shapes[x][1], kernel=3, stride=stride, group=net.shapes[x][1])
        x = net.conv(x, out)
    return net.done(net.dense(net.pooled(x), 100)), net.shapes["x"]


def mobilenet_v2(int8: bool) -> tuple[bytes, tuple[int, ...]]:
    """Return MobileNetV2 1.0 at 128 (arXiv 1801.04381), ReLU for ReLU6."""
    net = Builder((1, 3, 128, 128), int8=int8)
    x = net.conv("x", 32, kernel=3, stride=2)
    for expand, out, repeat, first in (
        *((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)),
    ):
        for i in range(repeat):
            x = _inverted(net, x, out, expand=expand, stride=first if i == 0 else 1)
    return net.done(net.dense(net.pooled(net.conv(x, 1280)), 100)), net.shapes["x"]


def _inverted(net: Builder, x: str, out: int, *, expand: int, stride: int) -> str:
    wide = net.shapes[x][1] * expand
    y = net.conv(x, wide) if expand > 1 else x
    y = net.conv(net.conv(y, wide, kernel=3, stride=stride, group=wide), out, act="")
    return net.sum(x, y) if net.shapes[x] == net.shapes[y] else y


def resnet8(int8: bool) -> tuple[bytes, tuple[int, ...]]:
    """Return MLPerf Tiny's image classifier, ResNet-8, twice as wide and at 64."""
    net = Builder((1, 3, 64, 64), int8=int8)
    x = net.conv("x", 32, kernel=3)
    for out, stride in ((32, 1), (64, 2), (128, 2)):
        y = net.conv(net.conv(x, out, kernel=3, stride=stride), out, kernel=3, act="")
        skip = x if stride == 1 else net.conv(x, out, stride=stride, act="")
        x = net.activate(net.sum(skip, y), "Relu")
    return net.done(net.dense(net.pooled(x), 10)), net.shapes["x"]


def ds_cnn(int8: bool) -> tuple[bytes, tuple[int, ...]]:
    """Return MLPerf Tiny's keyword spotter: DS-CNN over 49 by 10 (arXiv 1711.07128), square kernels."""
    net = Builder((1, 1, 49, 10), int8=int8)
    x = net.conv("x", 64, kernel=5, stride=2)
    for _ in range(4):
        x = net.conv(net.conv(x, 64, kernel=3, group=64), 64)
    return net.done(net.dense(net.pooled(x), 12)), net.shapes["x"]


def csp(int8: bool) -> tuple[bytes, tuple[int, ...]]:
    """Return a backbone like YOLOX's at 224 (arXiv 2107.08430): depthwise CSP blocks with SiLU."""
    net = Builder((1, 3, 224, 224), int8=int8)
    x = net.conv("x", 24, kernel=3, stride=2, act="SiLU")
    for out, repeat in ((48, 1), (96, 3), (192, 3), (384, 1)):
        x = _separable(net, x, out, stride=2)
        rows, channels, *size = net.shapes[x]
        left, right = (net.conv(x, channels // 2, act="SiLU") for _ in range(2))
        for _ in range(repeat):
            left = net.sum(left, _separable(net, net.conv(left, channels // 2, act="SiLU"), channels // 2))
        joined = net.add("Concat", [left, right], (rows, channels, *size), axis=1)
        x = net.conv(joined, channels, act="SiLU")
    return net.done(net.dense(net.pooled(x), 80)), net.shapes["x"]


def _separable(net: Builder, x: str, out: int, *, stride: int = 1, act: Activation = "SiLU") -> str:
    channels = net.shapes[x][1]
    return net.conv(net.conv(x, channels, kernel=3, stride=stride, group=channels, act=act), out, act=act)


REFERENCES: dict[str, Net] = {
    "mobilenet-v1-0.5-160": mobilenet_v1,
    "mobilenet-v2-1.0-128": mobilenet_v2,
    "resnet8-64": resnet8,
    "ds-cnn": ds_cnn,
    "csp-224": csp,
}
