"""Optimizers: what a gradient makes of a parameter and its state, as ONNX nodes.

All state starts at zero. `velocity.w`, `moment.w`, `square.w` and `average.w` have the shape of `w`; `moments.steps`
is a scalar that all parameters share. Schedules are the caller's: `lr` is an input of every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from edgeml.autodiff.builder import GraphBuilder
from edgeml.errors import UserError

LR, STEPS = "lr", "moments.steps"
STATES = ("velocity.", "moment.", "square.", "average.", "moments.")  # how the names of states begin


class Optimizer(Protocol):
    """What `training_step` asks of an optimizer."""

    def states(self, parameter: str, value: np.ndarray) -> Mapping[str, np.ndarray]:
        """Return the state that `parameter` needs, by name, at its start: zeros."""
        ...

    def update(self, g: GraphBuilder, parameter: str, gradient: str) -> dict[str, str]:
        """Return the tensors that hold the new value of `parameter` and of its state, by name."""
        ...

    @property
    def words(self) -> str:
        """Its name and numbers, for people."""
        ...


@dataclass(frozen=True)
class SGD:
    """Stochastic gradient descent: v = momentum * v + gradient; w = w - lr * v.

    With `nesterov`, w = w - lr * (gradient + momentum * v), as torch.optim.SGD has it.
    """

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        _within("momentum", self.momentum)
        if self.nesterov and not self.momentum:
            raise UserError("nesterov needs a momentum above 0")

    @property
    def words(self) -> str:
        return f"sgd(momentum={self.momentum:g}{', nesterov' * self.nesterov})"

    def states(self, parameter: str, value: np.ndarray) -> Mapping[str, np.ndarray]:
        return {f"velocity.{parameter}": np.zeros_like(value)} if self.momentum else {}

    def update(self, g: GraphBuilder, parameter: str, gradient: str) -> dict[str, str]:
        if not self.momentum:
            return {parameter: _moved(g, parameter, gradient)}
        state, rate = f"velocity.{parameter}", g.const(self.momentum)
        velocity = g.op("Add", g.op("Mul", state, rate), gradient)
        way = g.op("Add", gradient, g.op("Mul", velocity, rate)) if self.nesterov else velocity
        return {parameter: _moved(g, parameter, way), state: velocity}


@dataclass(frozen=True)
class Adam:
    """Adam (arXiv 1412.6980): w = w - lr * m^ / (sqrt(v^) + epsilon), with m^ and v^ corrected for their start.

    `form` says where epsilon is added: to the corrected sqrt(v^) as in torch.optim ("corrected"), or to the plain
    sqrt(v) as in Keras ("plain"); gradients near epsilon move differently. `decay` is AdamW's (arXiv 1711.05101):
    w shrinks by lr * decay beforehand, apart from the gradient.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7
    form: Literal["corrected", "plain"] = "corrected"
    decay: float = 0.0

    def __post_init__(self) -> None:
        _within("beta1", self.beta1)
        _within("beta2", self.beta2)
        _above("epsilon", self.epsilon)
        if self.decay < 0:
            raise UserError(f"decay {self.decay}: choose 0 or more")

    @property
    def words(self) -> str:
        decay = f", decay={self.decay:g}" if self.decay else ""
        return f"adam{'w' * bool(self.decay)}({self.beta1:g}, {self.beta2:g}, {self.epsilon:g} {self.form}{decay})"

    def states(self, parameter: str, value: np.ndarray) -> Mapping[str, np.ndarray]:
        zero = np.zeros_like(value)
        return {f"moment.{parameter}": zero, f"square.{parameter}": zero, STEPS: np.zeros((), value.dtype)}

    def update(self, g: GraphBuilder, parameter: str, gradient: str) -> dict[str, str]:
        first, second = f"moment.{parameter}", f"square.{parameter}"
        moment = _average(g, first, gradient, rate=self.beta1)
        square = _average(g, second, g.op("Mul", gradient, gradient), rate=self.beta2)
        steps = g.op("Add", STEPS, g.const(1.0))
        one, epsilon = g.const(1.0), g.const(self.epsilon)
        short, long = (g.op("Sub", one, g.op("Pow", g.const(beta), steps)) for beta in (self.beta1, self.beta2))
        if self.form == "plain":
            rate = g.op("Div", g.op("Sqrt", long), short)
            way = g.op("Div", g.op("Mul", rate, moment), g.op("Add", g.op("Sqrt", square), epsilon))
        else:
            root = g.op("Add", g.op("Sqrt", g.op("Div", square, long)), epsilon)
            way = g.op("Div", g.op("Div", moment, short), root)
        start = parameter
        if self.decay:
            keep = g.op("Sub", one, g.op("Mul", LR, g.const(self.decay)))
            start = g.op("Mul", parameter, keep)
        return {parameter: _moved(g, start, way), first: moment, second: square, STEPS: steps}


@dataclass(frozen=True)
class RMSprop:
    """RMSprop: s = rho * s + (1 - rho) * gradient^2; w = w - lr * v, v = momentum * v + gradient / root of s.

    `form` "outside": sqrt(s) + epsilon as in torch.optim; "inside": sqrt(s + epsilon) as in Keras.
    """

    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-7
    form: Literal["outside", "inside"] = "outside"

    def __post_init__(self) -> None:
        _within("rho", self.rho)
        _within("momentum", self.momentum)
        _above("epsilon", self.epsilon)

    @property
    def words(self) -> str:
        return f"rmsprop(rho={self.rho:g}, momentum={self.momentum:g}, {self.epsilon:g} {self.form})"

    def states(self, parameter: str, value: np.ndarray) -> Mapping[str, np.ndarray]:
        names = [f"square.{parameter}", *([f"velocity.{parameter}"] if self.momentum else [])]
        return {name: np.zeros_like(value) for name in names}

    def update(self, g: GraphBuilder, parameter: str, gradient: str) -> dict[str, str]:
        state = f"square.{parameter}"
        square = _average(g, state, g.op("Mul", gradient, gradient), rate=self.rho)
        way = g.op("Div", gradient, _root(g, square, self.epsilon, inside=self.form == "inside"))
        if not self.momentum:
            return {parameter: _moved(g, parameter, way), state: square}
        velocity = g.op("Add", g.op("Mul", f"velocity.{parameter}", g.const(self.momentum)), way)
        return {parameter: _moved(g, parameter, velocity), state: square, f"velocity.{parameter}": velocity}


@dataclass(frozen=True)
class Adagrad:
    """Adagrad (Duchi 2011): s = s + gradient^2; w = w - lr * gradient / root of s, which starts at `initial`.

    `form` "outside": sqrt(s) + epsilon as in torch.optim; "inside": sqrt(s + epsilon) as in Keras.
    """

    initial: float = 0.0
    epsilon: float = 1e-7
    form: Literal["outside", "inside"] = "outside"

    def __post_init__(self) -> None:
        _above("epsilon", self.epsilon)
        if self.initial < 0:
            raise UserError(f"initial {self.initial}: choose 0 or more")

    @property
    def words(self) -> str:
        return f"adagrad(initial={self.initial:g}, {self.epsilon:g} {self.form})"

    def states(self, parameter: str, value: np.ndarray) -> Mapping[str, np.ndarray]:
        return {f"average.{parameter}": np.zeros_like(value)}

    def update(self, g: GraphBuilder, parameter: str, gradient: str) -> dict[str, str]:
        state = f"average.{parameter}"
        total = g.op("Add", state, g.op("Mul", gradient, gradient))
        whole = g.op("Add", total, g.const(self.initial)) if self.initial else total
        way = g.op("Div", gradient, _root(g, whole, self.epsilon, inside=self.form == "inside"))
        return {parameter: _moved(g, parameter, way), state: total}


def _moved(g: GraphBuilder, start: str, way: str) -> str:
    return g.op("Sub", start, g.op("Mul", LR, way))


def _average(g: GraphBuilder, state: str, value: str, *, rate: float) -> str:
    """Return rate * state + (1 - rate) * value."""
    return g.op("Add", g.op("Mul", state, g.const(rate)), g.op("Mul", value, g.const(1 - rate)))


def _root(g: GraphBuilder, square: str, epsilon: float, *, inside: bool) -> str:
    if inside:
        return g.op("Sqrt", g.op("Add", square, g.const(epsilon)))
    return g.op("Add", g.op("Sqrt", square), g.const(epsilon))


def _within(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{name} {value}: choose a number from 0 up to, not including, 1")


def _above(name: str, value: float) -> None:
    if not value > 0:
        raise UserError(f"{name} {value}: choose a number above 0")


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(momentum=0.0),
    "momentum": SGD(),
    "nesterov": SGD(nesterov=True),
    "adam": Adam(),
    "adamw": Adam(decay=0.01),
    "rmsprop": RMSprop(),
    "adagrad": Adagrad(),
}


def optimizer_of(asked: Optimizer | str) -> Optimizer:
    """Return the optimizer itself, or the one of that name with its usual numbers; raises UserError."""
    if not isinstance(asked, str):
        return asked
    if asked not in OPTIMIZERS:
        raise UserError(f"no optimizer {asked!r}: choose one of {', '.join(OPTIMIZERS)}")
    return OPTIMIZERS[asked]
