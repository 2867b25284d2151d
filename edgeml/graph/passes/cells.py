"""The cells of ONNX's recurrent operators in numpy, and the search for the one that a step is.

Formulas and gate orders are those of the operators RNN, GRU and LSTM of the ONNX specification, opset 14; Keras keeps
the gates of an LSTM in the order i, f, c, o, ONNX in i, o, f, c. Weights are
read as Keras lays them out: kernels (d, gates * u) and (u, gates * u).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Step = Callable[[Array, list[Array]], list[Array]]
TOLERANCE = 1e-5
ROWS = 16


def _sigmoid(x: Array) -> Array:
    return np.asarray(1.0 / (1.0 + np.exp(-x)))


@dataclass(frozen=True)
class Activation:
    """A function by its name in ONNX; alpha and beta where the operator wants them."""

    name: str
    of: Callable[[Array], Array]
    alpha: float | None = None
    beta: float | None = None


ACTIVATIONS = (
    Activation("Sigmoid", _sigmoid),
    Activation("Tanh", np.tanh),
    Activation("HardSigmoid", lambda x: np.clip(x / 6 + 0.5, 0, 1), 1 / 6, 0.5),  # Keras 3
    Activation("HardSigmoid", lambda x: np.clip(0.2 * x + 0.5, 0, 1), 0.2, 0.5),  # Keras 2
    Activation("Relu", lambda x: np.maximum(x, 0)),
    Activation("Affine", lambda x: x, 1.0, 0.0),
    Activation("Softsign", lambda x: x / (1 + np.abs(x))),
    Activation("Elu", lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))), 1.0),
    Activation("Softplus", lambda x: np.logaddexp(x, 0)),
)


@dataclass(frozen=True)
class Cell:
    """A recurrent operator with everything but its hidden size u; weights W (1, gates*u, d), R and B (1, 2*gates*u)."""

    operator: str
    weights: tuple[Array, Array, Array]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Weights:
    """Kernels and the two biases of a cell, float64, in the order of Keras's gates."""

    kernel: Array
    recurrent: Array
    bias: Array  # (2, gates * u): of the input, of the state


@dataclass(frozen=True)
class Kind:
    """One row of the table of cells."""

    operator: str
    gates: int
    order: tuple[int, ...]  # gates of ONNX, counted as Keras counts them
    step: Callable[[Array, list[Array], tuple[Weights, tuple[Activation, ...]]], list[Array]]
    functions: int
    attributes: Mapping[str, int]


Given = tuple[Weights, tuple[Activation, ...]]


def _rnn(x: Array, states: list[Array], given: Given) -> list[Array]:
    w, (f,) = given
    return [f.of(x @ w.kernel + states[0] @ w.recurrent + w.bias.sum(axis=0))]


def _gru_after(x: Array, states: list[Array], given: Given) -> list[Array]:
    w, (f, g) = given
    h = states[0]
    xz, xr, xh = np.split(x @ w.kernel + w.bias[0], 3, axis=1)
    hz, hr, hh = np.split(h @ w.recurrent + w.bias[1], 3, axis=1)
    z, r = f.of(xz + hz), f.of(xr + hr)
    return [(1 - z) * g.of(xh + r * hh) + z * h]


def _gru_before(x: Array, states: list[Array], given: Given) -> list[Array]:
    w, (f, g) = given
    h, units = states[0], states[0].shape[1]
    xz, xr, xh = np.split(x @ w.kernel + w.bias.sum(axis=0), 3, axis=1)
    hz, hr = np.split(h @ w.recurrent[:, : 2 * units], 2, axis=1)
    z, r = f.of(xz + hz), f.of(xr + hr)
    return [(1 - z) * g.of(xh + (r * h) @ w.recurrent[:, 2 * units :]) + z * h]


def _lstm(x: Array, states: list[Array], given: Given) -> list[Array]:
    w, (f, g) = given
    h, c = states
    i, forget, new, o = np.split(x @ w.kernel + h @ w.recurrent + w.bias.sum(axis=0), 4, axis=1)
    carry = f.of(forget) * c + f.of(i) * g.of(new)
    return [f.of(o) * g.of(carry), carry]


KINDS = (
    Kind("GRU", 3, (0, 1, 2), _gru_after, 2, {"linear_before_reset": 1}),
    Kind("GRU", 3, (0, 1, 2), _gru_before, 2, {"linear_before_reset": 0}),
    Kind("RNN", 1, (0,), _rnn, 1, {}),
    Kind("LSTM", 4, (0, 3, 1, 2), _lstm, 2, {}),
)


def find_cell(step: Step, constants: Mapping[str, Array], units: int) -> Cell | None:
    """Return the cell that answers as `step` does on random rows and states, or None."""
    rng = np.random.default_rng(0)
    for kind, weights in _candidates(constants, units):
        x = rng.normal(0, 2, (ROWS, weights.kernel.shape[0])).astype(np.float32)
        states = [
            rng.normal(0, 1, (ROWS, units)).astype(np.float32) for _ in range(2 if kind.operator == "LSTM" else 1)
        ]
        try:
            wanted = step(x, states)
        except (ValueError, TypeError, KeyError, IndexError, RuntimeError):  # other shapes than this candidate's
            continue
        if len(wanted) != len(states):
            continue
        for functions in itertools.product(ACTIVATIONS, repeat=kind.functions):
            with np.errstate(over="ignore"):
                found = kind.step(x.astype(np.float64), [s.astype(np.float64) for s in states], (weights, functions))
            if all(np.allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE) for a, b in zip(found, wanted, strict=True)):
                return _cell(kind, weights, functions)
    return None


def _candidates(constants: Mapping[str, Array], units: int) -> Iterator[tuple[Kind, Weights]]:
    """Yield every way in which the constants can be the kernels and the bias of a cell."""
    floats = [value.astype(np.float64) for value in constants.values() if value.dtype == np.float32]
    for kind in KINDS:
        width = kind.gates * units
        kernels = [value for value in floats if value.ndim == 2 and value.shape[1] == width]
        zero = np.zeros((2, width))
        biases = [value for value in floats if value.shape == (2, width)]
        biases += [np.stack([value, np.zeros(width)]) for value in floats if value.shape == (width,)]
        for kernel, recurrent in itertools.permutations(kernels, 2):
            if recurrent.shape[0] == units:
                yield from ((kind, Weights(kernel, recurrent, bias)) for bias in [*biases, zero])


def _cell(kind: Kind, weights: Weights, functions: tuple[Activation, ...]) -> Cell:
    def turned(array: Array) -> Array:
        gates = np.split(array, kind.gates, axis=-1)
        return np.concatenate([gates[number] for number in kind.order], axis=-1)

    bias = np.concatenate([turned(weights.bias[0]), turned(weights.bias[1])])
    arrays = (turned(weights.kernel).T, turned(weights.recurrent).T, bias)
    chosen = [*functions, functions[-1]] if kind.operator == "LSTM" else list(functions)
    attributes: dict[str, Any] = {**kind.attributes, "activations": [one.name for one in chosen]}
    for parameter in ("alpha", "beta"):
        values = [getattr(one, parameter) for one in chosen if getattr(one, parameter) is not None]
        if values:
            attributes[f"activation_{parameter}"] = [float(value) for value in values]
    return Cell(kind.operator, tuple(a[None].astype(np.float32) for a in arrays), attributes)  # type: ignore[arg-type]
