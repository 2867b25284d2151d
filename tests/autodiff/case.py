"""How the uses of operators are written down: a case, and numbers drawn for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """One use of one operator: float inputs to differentiate for, constants beside them, attributes."""

    inputs: Mapping[str, np.ndarray]
    order: tuple[str, ...] = ()  # of the node's inputs; by default those of `inputs`
    constants: Mapping[str, Any] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    known: tuple[str, ...] = ()  # inputs whose sizes are never symbols: kernels, sizes that a window needs
    outputs: int = 1  # of the node; a gradient comes in for the first
    opsets: tuple[int, ...] = (18, 21)
    dtype: type = np.float64  # float32 where the kernel computes in it whatever comes in


RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape)


def positive(*shape: int) -> np.ndarray:
    return RNG.uniform(0.4, 2.0, size=shape)


def away_from(*edges: float, shape: tuple[int, ...] = (4, 5)) -> np.ndarray:
    """Values at least 0.05 from every edge, where finite differences would straddle a kink."""
    x = RNG.uniform(-2, 2, size=shape)
    for edge in edges:
        x = np.where(abs(x - edge) < 0.05, edge + 0.1, x)
    return x


def off_pixels(height: int, width: int, *, corners: int) -> np.ndarray:
    """A grid (2, 3, 4, 2), beyond the image too, that keeps 0.1 pixels from where a neighbour or a fold begins."""
    pixels = RNG.integers(-4, 9, size=(2, 3, 4, 2)) + RNG.uniform(0.1, 0.4, size=(2, 3, 4, 2))
    sizes = np.array([width, height])
    return 2 * pixels / (sizes - 1) - 1 if corners else (2 * pixels + 1) / sizes - 1


def unary(x: np.ndarray, **attributes: Any) -> list[Case]:
    return [Case({"x": x}, attributes=attributes)]


def binary(**changes: Any) -> list[Case]:
    return [
        Case({"a": positive(3, 4), "b": positive(3, 4)}, **changes),
        Case({"a": positive(3, 4), "b": positive(4)}, **changes),
        Case({"a": positive(1), "b": positive(3, 4)}, **changes),
        Case({"a": positive(3, 1, 4), "b": positive(2, 1)}, **changes),
        Case({"a": positive(2, 3), "b": positive()}, **changes),
    ]


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def distinct(*shape: int) -> np.ndarray:
    """Values that differ by more than a finite difference moves them: no two are ever the same maximum."""
    count = int(np.prod(shape))
    return RNG.permutation(count).reshape(shape) / count * 4 - 2
