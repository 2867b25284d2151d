"""What the server makes of an aggregated change: an optimizer of its own, with the change as its gradient.

m = beta1 m + (1 - beta1) change;  w = w + rate * m / (sqrt(v) + tau)        (arXiv 2003.00295, algorithm 2)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml.errors import UserError

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class ServerStep:
    """Which step, and its numbers; `add` takes the change as it is.

    `momentum` (arXiv 1909.06335) is FedAvgM: m = beta1 m + change, without a factor 1 - beta1.
    """

    kind: str = "add"
    rate: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3  # how adaptive: the less, the more

    def __post_init__(self) -> None:
        if self.kind not in STEPS:
            raise UserError(f"unknown server step {self.kind!r}; known: {', '.join(STEPS)}")
        if not self.rate > 0 or not self.tau > 0 or not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1:
            raise UserError(
                f"rate {self.rate} and tau {self.tau} must be above 0, beta1 {self.beta1} and beta2 {self.beta2} "
                f"from 0 up to, not including, 1"
            )


@dataclass(frozen=True)
class Memory:
    """What a step remembers from round to round, float64; empty before the first one."""

    moment: Arrays = field(default_factory=dict)
    square: Arrays = field(default_factory=dict)


def take(step: ServerStep, change: Arrays, memory: Memory) -> tuple[dict[str, np.ndarray], Memory]:
    """Return what is added to the parameters, float32, and the memory for the next round."""
    if step.kind == "add":
        return {name: np.asarray(value * np.float32(step.rate)) for name, value in change.items()}, memory
    wide = {name: value.astype(np.float64) for name, value in change.items()}
    fresh = 1.0 if step.kind == "momentum" else 1 - step.beta1
    moment = {name: step.beta1 * _before(memory.moment, name, d) + fresh * d for name, d in wide.items()}
    if step.kind == "momentum":
        return {name: np.asarray(step.rate * m, np.float32) for name, m in moment.items()}, Memory(moment)
    start = step.tau**2  # v at the beginning
    second = STEPS[step.kind]
    square = {n: second(step, _before(memory.square, n, d, start=start), np.square(d)) for n, d in wide.items()}
    moved = {name: step.rate * m / (np.sqrt(square[name]) + step.tau) for name, m in moment.items()}
    return {name: np.asarray(value, np.float32) for name, value in moved.items()}, Memory(moment, square)


def _before(memory: Arrays, name: str, like: np.ndarray, *, start: float = 0.0) -> np.ndarray:
    return memory[name] if name in memory else np.full(like.shape, start)


def _adagrad(step: ServerStep, v: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.asarray(v + d)


def _adam(step: ServerStep, v: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.asarray(step.beta2 * v + (1 - step.beta2) * d)


def _yogi(step: ServerStep, v: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.asarray(v - (1 - step.beta2) * d * np.sign(v - d))


def _unused(step: ServerStep, v: np.ndarray, d: np.ndarray) -> np.ndarray:
    return v


STEPS: dict[str, Callable[[ServerStep, np.ndarray, np.ndarray], np.ndarray]] = {
    "add": _unused,
    "momentum": _unused,
    "adagrad": _adagrad,
    "adam": _adam,
    "yogi": _yogi,
}
