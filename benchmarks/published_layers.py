"""The vocabulary of the published networks: a builder whose weights are zeros, for only shapes matter."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeml.bench.calibrate.blocks import Builder


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


def residual(net: Zeros, x: str, y: str) -> str:
    return net.sum(x, y) if net.shapes[x] == net.shapes[y] else y


def rounded(value: float, divisor: int = 8) -> int:
    """Return `value` rounded as the MobileNets do."""
    found = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return found + divisor if found < 0.9 * value else found


def classified(net: Zeros, x: str, classes: int = 1000) -> str:
    return net.dense(net.pooled(x), classes)
