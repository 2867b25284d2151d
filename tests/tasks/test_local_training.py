"""FedProx, SCAFFOLD, FedPer, Ditto and decaying rates inside the task graph, against the same written in numpy."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from edgeml.artifacts import Task
from edgeml.autodiff import SGD, Adam, training_step
from edgeml.autodiff.shaping import Shaping
from edgeml.errors import UserError
from edgeml.tasks import Local, training
from edgeml_runtime.session import Session
from tests.tasks import trajectory
from tests.tasks.test_training_task import LAYERS, MEAN, SCALE, SCALER, WEIGHTS, a_model, loss_and_gradients, some_rows

F32 = np.float32
EPOCHS, BATCH, RATE, SEED = 3, 8, 0.1, 11
MODEL = a_model(
    [*SCALER, *LAYERS],
    constants={**WEIGHTS, "mean": MEAN, "scale": SCALE},
    inputs={"x": (TensorProto.FLOAT, 4)},
)
X, Y = some_rows(37)
STEPS = EPOCHS * 5
Arrays = dict[str, Any]
trained = functools.partial(trajectory.trained, rows=(X, Y), epochs=EPOCHS, batch_size=BATCH, rate=RATE, seed=SEED)


def a_task(shaping: Shaping, local: Local, *, optimizer: Any = None) -> Task:
    graph = training_step(MODEL, optimizer=optimizer or SGD(momentum=local.momentum), shaping=shaping)
    return training(graph, epochs=EPOCHS, batch_size=BATCH, local=local)


def run(task: Task, *, kept: Mapping[str, np.ndarray] | None = None, **given: Any) -> Arrays:
    """Run `task` as a device does: its memory is zeros until it kept something."""
    session = Session(task.data)
    fed: Arrays = {**task.parameters, **task.controls, "x": X, "target": Y, "seed": np.array(SEED)}
    fed |= {name: np.asarray(value, F32) for name, value in {"lr": RATE, **given}.items()}
    for spec in session.inputs:
        if spec.name.startswith("kept."):
            fed[spec.name] = (kept or {}).get(spec.name.removeprefix("kept."), np.zeros(spec.shape, F32))
    assert fed.keys() == {spec.name for spec in session.inputs}
    return session.run(fed)


def memory(answers: Arrays) -> dict[str, np.ndarray]:
    return {name.removeprefix("keep."): value for name, value in answers.items() if name.startswith("keep.")}


def some_controls(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (0.1 * rng.normal(size=value.shape)).astype(F32) for name, value in WEIGHTS.items()}


def close(got: Any, expected: Any) -> None:
    np.testing.assert_allclose(got, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_the_proximal_term_pulls_towards_the_parameters_of_the_round(mu: float) -> None:
    task = a_task(Shaping(proximal=True), Local(momentum=0.9))
    assert task.scalars == ("lr", "seed", "mu") and not task.controls
    got, expected = run(task, mu=mu), trained(WEIGHTS, mu=mu, momentum=0.9)
    for name in WEIGHTS:
        close(got[f"delta.{name}"], expected[name] - WEIGHTS[name])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_control_variates_correct_every_step_and_move_on(momentum: float) -> None:
    """c - c_i is added to every gradient; c_i+ = c_i - c + (x - y) / (what the gradients weigh together)."""
    task = a_task(Shaping(control=True), Local(momentum=momentum))
    c, mine = some_controls(1), some_controls(2)
    sent = {f"control.{name}": value for name, value in c.items()}
    got = run(task, kept={f"variate.{name}": value for name, value in mine.items()}, **sent)
    expected = trained(WEIGHTS, control={name: c[name] - mine[name] for name in c}, momentum=momentum)
    weight = RATE * sum((1 - momentum**k) / (1 - momentum) for k in range(1, STEPS + 1))
    assert got["steps"] == STEPS and task.controls.keys() == sent.keys()
    for name in WEIGHTS:
        close(got[f"delta.{name}"], expected[name] - WEIGHTS[name])
        new = mine[name] - c[name] + (WEIGHTS[name] - expected[name]) / weight
        close(memory(got)[f"variate.{name}"], new)
        close(got[f"delta.control.{name}"], new - mine[name])


def test_a_control_variate_is_the_mean_gradient_where_the_steps_are_one_batch_each() -> None:
    """With one step per task, option II of the paper is its option I: the gradient at the round's parameters."""
    graph = training_step(MODEL, optimizer=SGD(momentum=0), shaping=Shaping(control=True))
    task = training(graph, epochs=1, batch_size=len(X))
    got = run(task, **{f"control.{name}": value for name, value in some_controls(1).items()})
    slopes = loss_and_gradients(X, Y, WEIGHTS)[1]
    for name in WEIGHTS:
        close(memory(got)[f"variate.{name}"], slopes[name])


def test_a_decaying_rate_is_an_input() -> None:
    task = a_task(Shaping(), Local(decay=True))
    assert task.scalars == ("lr", "seed", "lr.decay")
    got, expected = run(task, **{"lr.decay": 0.5}), trained(WEIGHTS, decay=0.5)
    for name in WEIGHTS:
        close(got[f"delta.{name}"], expected[name] - WEIGHTS[name])
    corrected = run(a_task(Shaping(control=True), Local(decay=True)), **{"lr.decay": 0.5})
    weight = RATE * 5 * (1 + 0.5 + 0.25)
    close(memory(corrected)["variate.w1"], (WEIGHTS["w1"] - expected["w1"]) / weight)


def test_personal_parameters_stay_and_go_on_where_they_were() -> None:
    """FedPer: two rounds of one device; what left moves as the server says, the head goes on by itself."""
    task = a_task(Shaping(), Local(personal=("w2", "b2")))
    assert list(task.parameters) == ["w1", "b1"]
    first = run(task)
    assert not {"delta.w2", "delta.b2"} & first.keys()
    expected = trained(WEIGHTS)
    close(memory(first)["w2"], expected["w2"])
    moved = {name: WEIGHTS[name] + 0.25 for name in ("w1", "b1")}
    second = run(task, kept=memory(first), **moved)
    start = {**moved, **{name: memory(first)[name] for name in ("w2", "b2")}}
    expected = trained(start)
    for name in ("w1", "b1"):
        close(second[f"delta.{name}"], expected[name] - moved[name])
    for name in ("w2", "b2"):
        close(memory(second)[name], expected[name])
    held = loss_and_gradients(X, Y, start)[0]
    assert second["loss.before"] == pytest.approx(held, rel=1e-5)


def test_a_second_model_is_drawn_to_the_shared_one_and_never_leaves() -> None:
    """Ditto: the shared model trains as in FedAvg, the personal one from its own parameters with the anchor w."""
    task = a_task(Shaping(proximal=True), Local(copy=True, momentum=0.9))
    first = run(task, mu=0.5)
    shared, own = trained(WEIGHTS, momentum=0.9), trained(WEIGHTS, mu=0.5, momentum=0.9)
    close(first["delta.w1"], shared["w1"] - WEIGHTS["w1"])
    close(memory(first)["personal.w1"], own["w1"])
    moved = {name: value + 0.25 for name, value in WEIGHTS.items()}
    second = run(task, kept=memory(first), mu=0.5, **moved)
    kept = {name: memory(first)[f"personal.{name}"] for name in WEIGHTS}
    own = trained(kept, anchor=moved, mu=0.5, momentum=0.9)
    for name in WEIGHTS:
        close(memory(second)[f"personal.{name}"], own[name])
    assert second["loss.personal"] == pytest.approx(loss_and_gradients(X, Y, own)[0], rel=1e-5)


EVERY = [
    (Shaping(proximal=True), Local()),
    (Shaping(control=True), Local()),
    (Shaping(proximal=True), Local(copy=True)),
    (Shaping(), Local(personal=("w2", "b2"), decay=True)),
]


@pytest.mark.parametrize(("shaping", "local"), EVERY)
def test_memory_goes_in_as_it_came_out_and_no_shape_depends_on_the_rows(shaping: Shaping, local: Local) -> None:
    session = Session(a_task(shaping, local).data)
    goes = {spec.name.removeprefix("kept."): spec for spec in session.inputs if spec.name.startswith("kept.")}
    comes = {spec.name.removeprefix("keep."): spec for spec in session.outputs if spec.name.startswith("keep.")}
    assert goes.keys() == comes.keys() and all(axis >= 0 for spec in session.outputs for axis in spec.shape)
    for name, spec in goes.items():
        assert (spec.dtype, spec.shape) == (comes[name].dtype, comes[name].shape)
    changes = [spec for spec in session.outputs if spec.name.startswith("delta.")]
    given = {spec.name: spec.shape for spec in session.inputs}
    assert all(given[spec.name.removeprefix("delta.")] == spec.shape for spec in changes)


@pytest.mark.parametrize(
    ("shaping", "local", "optimizer", "message"),
    [
        (Shaping(), Local(personal=("w9",)), None, "'w9', no parameter; known: w1"),
        (Shaping(), Local(personal=tuple(WEIGHTS)), None, "nothing is left to learn together"),
        (Shaping(), Local(copy=True), None, "proximal=True"),
        (Shaping(control=True), Local(personal=("w2",)), None, "not together with personal"),
        (Shaping(control=True), Local(), Adam(), "use SGD without nesterov"),
        (Shaping(control=True), Local(), SGD(momentum=0.9), "momentum=0.9"),
        (Shaping(control=True), Local(momentum=0.9), SGD(momentum=0.9, nesterov=True), "use SGD without nesterov"),
        (Shaping(control=True), Local(momentum=0.9, decay=True), None, "choose one"),
    ],
)
def test_what_cannot_go_together_is_refused(shaping: Shaping, local: Local, optimizer: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        a_task(shaping, local, optimizer=optimizer)
