"""What the server makes of an aggregated change: an optimizer of its own, with the change as its gradient.

m = beta1 m + (1 - beta1) change;  w = w + rate * m / (sqrt(v) + tau)        (arXiv 2003.00295, algorithm 2)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml.errors import UserError

Arrays = Mapping[str, np.ndarray]
Second = Callable[["ServerStep", np.ndarray, np.ndarray], np.ndarray]  # of square and squared change


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


Moved = tuple[Arrays, Memory]


def take(step: ServerStep, change: Arrays, memory: Memory) -> tuple[dict[str, np.ndarray], Memory]:
    """Return what is added to the parameters, float32, and the memory for the next round."""
    way, after = STEPS[step.kind](step, {name: value.astype(np.float64) for name, value in change.items()}, memory)
    return {name: np.asarray(step.rate * value, np.float32) for name, value in way.items()}, after


def _add(step: ServerStep, change: Arrays, memory: Memory) -> Moved:
    return change, memory


def _momentum(step: ServerStep, change: Arrays, memory: Memory) -> Moved:
    moment = {name: step.beta1 * _before(memory.moment, name, d) + d for name, d in change.items()}
    return moment, Memory(moment)


def _adaptive(second: Second) -> Callable[[ServerStep, Arrays, Memory], Moved]:
    """Return the step whose square is moved on by `second`; it starts at tau^2."""

    def way(step: ServerStep, change: Arrays, memory: Memory) -> Moved:
        fresh, start = 1 - step.beta1, step.tau**2
        moment = {n: step.beta1 * _before(memory.moment, n, d) + fresh * d for n, d in change.items()}
        square = {n: second(step, _before(memory.square, n, d, start=start), d * d) for n, d in change.items()}
        moved = {n: m / (np.sqrt(square[n]) + step.tau) for n, m in moment.items()}
        return moved, Memory(moment, square)

    return way


def _before(memory: Arrays, name: str, like: np.ndarray, *, start: float = 0.0) -> np.ndarray:
    return memory[name] if name in memory else np.full(like.shape, start)


STEPS: dict[str, Callable[[ServerStep, Arrays, Memory], Moved]] = {
    "add": _add,
    "momentum": _momentum,
    "adagrad": _adaptive(lambda step, v, d: v + d),
    "adam": _adaptive(lambda step, v, d: step.beta2 * v + (1 - step.beta2) * d),
    "yogi": _adaptive(lambda step, v, d: v - (1 - step.beta2) * d * np.sign(v - d)),
}
