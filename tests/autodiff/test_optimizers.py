"""Optimizers against their definitions in numpy, and against Keras; what is done to gradients before them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeml.autodiff import SGD, Adagrad, Adam, Optimizer, RMSprop, Shaping, training_step
from edgeml.errors import UserError
from edgeml_runtime.session import Session
from tests.autodiff.test_losses import F32, VALUES, W, X, a_model

STEPS, LR_VALUE = 12, 0.05
Rule = Callable[[np.ndarray, dict[str, Any], int], np.ndarray]  # gradient, state, step from 1 -> way


def gradient(w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    slope = 2 * (X @ w + b - VALUES) / VALUES.size
    return X.T @ slope, slope.sum(0)


def sgd(momentum: float, nesterov: bool) -> Rule:
    def way(g: np.ndarray, s: dict[str, Any], _t: int) -> np.ndarray:
        s["v"] = momentum * s.get("v", 0) + g
        return g + momentum * s["v"] if nesterov else s["v"]

    return way


def adam(form: str, epsilon: float) -> Rule:
    def way(g: np.ndarray, s: dict[str, Any], t: int) -> np.ndarray:
        s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
        s["v"] = 0.999 * s.get("v", 0) + 0.001 * g * g
        m, v = s["m"] / (1 - 0.9**t), s["v"] / (1 - 0.999**t)
        if form == "corrected":
            return m / (np.sqrt(v) + epsilon)
        return np.sqrt(1 - 0.999**t) * m / (np.sqrt(s["v"]) + epsilon)

    return way


def rmsprop(momentum: float, inside: bool, epsilon: float) -> Rule:
    def way(g: np.ndarray, s: dict[str, Any], _t: int) -> np.ndarray:
        s["s"] = 0.9 * s.get("s", 0) + 0.1 * g * g
        step = g / (np.sqrt(s["s"] + epsilon) if inside else np.sqrt(s["s"]) + epsilon)
        s["v"] = momentum * s.get("v", 0) + step
        return s["v"]

    return way


def adagrad(initial: float, inside: bool, epsilon: float) -> Rule:
    def way(g: np.ndarray, s: dict[str, Any], _t: int) -> np.ndarray:
        s["s"] = s.get("s", initial) + g * g
        return g / (np.sqrt(s["s"] + epsilon) if inside else np.sqrt(s["s"]) + epsilon)

    return way


CASES: dict[str, tuple[Optimizer, Rule]] = {
    "sgd": (SGD(0.0), sgd(0.0, False)),
    "momentum": (SGD(0.9), sgd(0.9, False)),
    "nesterov": (SGD(0.9, nesterov=True), sgd(0.9, True)),
    "adam": (Adam(), adam("corrected", 1e-7)),
    "adam, plain form": (Adam(form="plain", epsilon=1e-3), adam("plain", 1e-3)),
    "rmsprop": (RMSprop(), rmsprop(0.0, False, 1e-7)),
    "rmsprop, inside": (RMSprop(momentum=0.5, form="inside", epsilon=1e-3), rmsprop(0.5, True, 1e-3)),
    "adagrad": (Adagrad(), adagrad(0.0, False, 1e-7)),
    "adagrad, inside": (Adagrad(initial=0.1, form="inside"), adagrad(0.1, True, 1e-7)),
}


def train(optimizer: Optimizer, steps: int = STEPS, **more: Any) -> dict[str, np.ndarray]:
    graph = training_step(a_model(), loss="mse", optimizer=optimizer, **more)
    session, now = Session(graph.data), {**graph.parameters, **graph.state}
    for _ in range(steps):
        got = session.run({**now, "x": X, "target": VALUES, "lr": np.array(LR_VALUE, F32)})
        now = {name: got[f"new.{name}"] for name in now}
    return now


@pytest.mark.parametrize("name", CASES)
def test_every_optimizer_follows_its_definition(name: str) -> None:
    optimizer, rule = CASES[name]
    w, b = W.astype(np.float64), a_start()
    states: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for t in range(1, STEPS + 1):
        dw, db = gradient(w, b)
        w, b = w - LR_VALUE * rule(dw, states[0], t), b - LR_VALUE * rule(db, states[1], t)
    found = train(optimizer)
    np.testing.assert_allclose(found["w"], w, atol=2e-5)
    np.testing.assert_allclose(found["b"], b, atol=2e-5)


def a_start() -> np.ndarray:
    return training_step(a_model(), loss="mse").parameters["b"].astype(np.float64)


def test_decay_shrinks_weights_apart_from_the_gradient() -> None:
    """With gradients of zero only the decay is left (arXiv 1711.05101)."""
    graph = training_step(a_model(), loss="mse", optimizer=Adam(decay=0.1), trainable=["w"])
    exact = X @ W + a_start().astype(F32)
    got = Session(graph.data).run(
        {**graph.parameters, **graph.state, "x": X, "target": exact, "lr": np.array(0.5, F32)}
    )
    plain = training_step(a_model(), loss="mse", optimizer=Adam(), trainable=["w"])
    other = Session(plain.data).run(
        {**plain.parameters, **plain.state, "x": X, "target": exact, "lr": np.array(0.5, F32)}
    )
    np.testing.assert_allclose(other["new.w"] - got["new.w"], 0.05 * W, atol=1e-5)


@pytest.mark.extras
@pytest.mark.parametrize(
    ("ours", "kind", "arguments"),
    [
        (SGD(0.9), "SGD", {"momentum": 0.9}),
        (SGD(0.9, nesterov=True), "SGD", {"momentum": 0.9, "nesterov": True}),
        (Adam(form="plain"), "Adam", {}),
        (Adam(form="plain", decay=0.004), "AdamW", {"weight_decay": 0.004}),
        (RMSprop(form="inside"), "RMSprop", {}),
        (RMSprop(form="inside", momentum=0.9), "RMSprop", {"momentum": 0.9}),
        (Adagrad(form="inside", initial=0.1), "Adagrad", {}),
    ],
)
def test_keras_takes_the_same_steps(ours: Optimizer, kind: str, arguments: dict[str, Any]) -> None:
    keras = pytest.importorskip("keras", reason="needs the tensorflow extra")
    layer = keras.layers.Dense(W.shape[1])
    net = keras.Sequential([keras.layers.Input((3,)), layer])
    layer.set_weights([W, a_start().astype(F32)])
    net.compile(optimizer=getattr(keras.optimizers, kind)(learning_rate=LR_VALUE, **arguments), loss="mse")
    for _ in range(STEPS):
        net.train_on_batch(X, VALUES)
    found = train(ours)
    for theirs, name in zip(layer.get_weights(), ("w", "b"), strict=True):
        np.testing.assert_allclose(found[name], theirs, atol=1e-5)


def test_gradients_are_clipped_together_by_norm_and_one_by_one_by_value() -> None:
    plain = train(SGD(0.0), steps=1)
    ways = {name: (start - plain[name]) / LR_VALUE for name, start in starts().items()}
    norm = np.sqrt(sum((way**2).sum() for way in ways.values()))
    half = train(SGD(0.0), steps=1, shaping=Shaping(clip_norm=float(norm / 2)))
    same = train(SGD(0.0), steps=1, shaping=Shaping(clip_norm=float(norm * 2)))
    cut = train(SGD(0.0), steps=1, shaping=Shaping(clip_value=0.05))
    for name, start in starts().items():
        np.testing.assert_allclose(half[name], start - LR_VALUE * ways[name] / 2, atol=1e-6)
        np.testing.assert_allclose(same[name], plain[name], atol=1e-6)
        np.testing.assert_allclose(cut[name], start - LR_VALUE * np.clip(ways[name], -0.05, 0.05), atol=1e-6)


def starts() -> dict[str, np.ndarray]:
    return {"w": W, "b": a_start().astype(F32)}


def test_penalties_and_control_variates_are_added_to_the_gradient() -> None:
    graph = training_step(
        a_model(), loss="mse", optimizer=SGD(0.0), shaping=Shaping(l2=0.1, proximal=True, control=True)
    )
    anchors = {f"anchor.{name}": 0.5 * value for name, value in starts().items()}
    controls = {f"control.{name}": np.full_like(value, 0.3) for name, value in starts().items()}
    scalars = {"lr": np.array(1.0, F32), "mu": np.array(0.2, F32)}
    got = Session(graph.data).run({**graph.parameters, **anchors, **controls, **scalars, "x": X, "target": VALUES})
    slopes = dict(zip(("w", "b"), gradient(W.astype(np.float64), a_start()), strict=True))
    for name, value in starts().items():
        expected = value - (slopes[name] + 0.1 * value + 0.2 * 0.5 * value + 0.3)
        np.testing.assert_allclose(got[f"new.{name}"], expected, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(1.0), "momentum 1.0"),
        (lambda: SGD(0.0, nesterov=True), "nesterov needs a momentum"),
        (lambda: Adam(beta2=1.5), "beta2 1.5"),
        (lambda: RMSprop(epsilon=0.0), "epsilon 0.0"),
        (lambda: Shaping(clip_norm=0.0), "clip_norm 0.0"),
        (lambda: Shaping(l2=-1.0), "l2 -1.0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
