"""Every task that edgeml itself makes passes the checks of a device: its operators, its shapes, its rehearsal."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from onnx import helper
from sklearn.datasets import load_diabetes, load_wine
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgeml import tasks
from edgeml.artifacts import Rows as Table
from edgeml.artifacts import Task
from edgeml.autodiff import SGD, Shaping, training_step
from edgeml.convert import open_room
from edgeml.graph import random_rows
from edgeml.quantize import calibration_points
from edgeml.tasks import Local, boosting
from edgeml.tasks.statistics import FAMILIES, begin
from edgeml.tasks.study import Study
from edgeml_runtime.errors import TaskRefused
from edgeml_runtime.rehearsal import SORTS, Layout, Play, rehearse
from edgeml_runtime.session import Session
from edgeml_runtime.task import Limits, check_graph
from edgeml_runtime.vetting import Allowed, vet
from tests.networks import an_mlp
from tests.runtime.graphs import FLOAT, mlp, model
from tests.runtime.hostile_kit import UPDATES, WIDTH
from tests.runtime.test_agent_rounds import softmax_regression
from tests.tasks.fleet import Rows, split, sums
from tests.tasks.pooled import CASES
from tests.tasks.test_boosting import CASES as BOOSTED
from tests.tasks.test_boosting import columns_of
from tests.tasks.test_drift import of_numbers, text_model, texts
from tests.tasks.test_evaluation import fitted

LIMITS = Limits(update=16 << 20)
PROXIMAL, CONTROL = Shaping(proximal=True), Shaping(control=True)
LOCALS = {
    "plain": (Local(), Shaping()),
    "fedprox": (Local(), PROXIMAL),
    "scaffold": (Local(), CONTROL),
    "fedper": (Local(personal=["w2", "b2"]), Shaping()),
    "ditto": (Local(copy=True), PROXIMAL),
    "decay": (Local(decay=True), Shaping()),
}


def pass_all(task: Task, layout: Layout, *, scalars: Mapping[str, float] | None = None) -> None:
    """Raise TaskRefused when a device would not run `task`."""
    vet(task.data, Allowed())
    session = Session(task.data)
    check_graph(session.inputs, session.outputs, kind=task.kind, limits=LIMITS)
    rehearse(Play(session, task.kind, scalars or {}, {**task.parameters, **task.controls}, layout))


@pytest.mark.parametrize("name", LOCALS)
def test_training_of_every_form_passes(name: str) -> None:
    local, shaping = LOCALS[name]
    step = training_step(mlp(), loss="softmax_cross_entropy", optimizer=SGD(momentum=local.momentum), shaping=shaping)
    task = tasks.training(step, epochs=2, batch_size=16, local=local)
    pass_all(task, {"numeric": ((64,), False)}, scalars={"lr": 0.1, "seed": 3.0, "mu": 0.1, "lr.decay": 0.9})


def pass_rounds(study: Study, rows: Rows, rounds: int) -> None:
    """Take the first `rounds` of `study` over devices that hold `rows`, as long as they would run its tasks."""
    layout = {name: (array.shape[1:], array.dtype == object) for name, array in rows.items() if name != "target"}
    fleet = [part for part in split(rows) if len(next(iter(part.values())))]
    for _ in range(rounds):
        if not study.done:
            task = study.task()
            pass_all(task, layout)
            study = study.take(sums(task, fleet))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_statistics_of_every_family_pass(name: str) -> None:
    family, case = FAMILIES[name], CASES[name][0]
    pass_rounds(begin(case.estimator, case.shape(family.target)), case.rows(family.target), 2)


@pytest.mark.parametrize("case", ["regression, missing", "multiclass"])
def test_boosting_passes_from_its_edges_to_its_second_tree(case: str) -> None:
    estimator, rows, _ = BOOSTED[case]
    pass_rounds(boosting.begin(estimator, columns_of(case)), rows, 12)


@pytest.mark.parametrize("case", ["binary", "forest", "regression"])
def test_evaluations_pass(case: str) -> None:
    judged, _, rows = fitted(case)
    pass_rounds(tasks.evaluation(judged, "regression" if case == "regression" else "classification"), rows, 1)


def test_drift_passes_for_numbers_and_for_text() -> None:
    known, x = of_numbers()
    pass_rounds(tasks.drift(known), {"numeric": x}, 1)
    pass_rounds(tasks.drift(tasks.reference(text_model(), Table(texts()))), texts(), 1)


def test_calibration_passes_in_each_of_its_rounds() -> None:
    """Its outputs are marks: in which part of the range the extremes of a device are."""
    graph, tensors = calibration_points(an_mlp())
    pass_rounds(tasks.calibration(graph, tensors), random_rows(an_mlp(), 200), 5)


@pytest.mark.parametrize(
    ("load", "loss", "hidden"), [(load_wine, "softmax_cross_entropy", (2,)), (load_diabetes, "mae", (32, 16, 8))]
)
def test_networks_that_are_done_learning_pass_on_rows_like_those_of_their_release(
    load: Any, loss: Any, hidden: tuple[int, ...]
) -> None:
    """Most rows no longer move a trained, narrow or deep net: its rehearsal must not take that for a theft."""
    x, y = load(return_X_y=True)
    network = (MLPClassifier if load is load_wine else MLPRegressor)(
        hidden_layer_sizes=hidden, max_iter=300, random_state=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it might learn on
        learned = make_pipeline(StandardScaler(), network).fit(x, y)
    judged = open_room("sklearn").convert(learned, {"numeric": x.shape[1]}, source="test")
    task = tasks.training(training_step(judged, loss=loss, optimizer=SGD(momentum=0.9)), epochs=2, batch_size=16)
    examples = {"numeric": x[:: len(x) // 16][:16].astype(np.float32)}
    layout: Layout = {"numeric": (x.shape[1:], False)}
    rehearse(Play(Session(task.data), "training", {"lr": 0.05, "seed": 1.0}, task.parameters, layout, examples))


def far_from_nought() -> Task:
    """Return the training of a linear model whose columns are near a million, where the model looks for them."""
    nodes = [
        helper.make_node("Sub", ["numeric", "mean"], ["z"]),
        helper.make_node("MatMul", ["z", "w"], ["prediction"]),
    ]
    weights = {"mean": np.full(8, 1e6, np.float32), "w": np.zeros((8, 1), np.float32)}
    inputs, outputs = [("numeric", FLOAT, ["rows", 8])], [("prediction", FLOAT, ["rows", 1])]
    step = training_step(
        model(nodes, inputs, outputs=outputs, weights=weights), loss="mse", optimizer=SGD(), trainable=["w"]
    )
    return tasks.training(step, epochs=30, batch_size=8)


def test_rows_are_made_up_of_the_columns_of_the_release_where_others_would_make_training_diverge() -> None:
    task = far_from_nought()
    rows = (1e6 + np.random.default_rng(0).normal(size=(16, 8))).astype(np.float32)
    play = Play(Session(task.data), "training", {"lr": 0.01, "seed": 0.0}, task.parameters, {"numeric": ((8,), False)})
    with pytest.raises(TaskRefused, match="does not run on made-up rows: training diverged"):
        rehearse(play)
    rehearse(replace(play, examples={"numeric": rows}))


def test_a_loss_that_is_a_cell_is_found_on_small_whole_numbers_too() -> None:
    """Where a cell has four values, it stands still between two sets of rows once in four times."""
    weights = {"w": np.ones((WIDTH, 10), np.float32)}
    stolen = Session(UPDATES["a loss that is a cell"][0])
    play = Play(stolen, "training", {"lr": 0.1}, weights, {"numeric": ((WIDTH,), False)})
    whole = [sort for sort in SORTS if float(sort.numbers(np.random.default_rng(0), (64,)).max()) == 3.0]
    assert len(whole) == 1
    with pytest.raises(TaskRefused, match=r"'loss\.before' follows single rows"):
        rehearse(play, whole)


def test_a_loss_that_only_rounding_moves_is_no_theft() -> None:
    """Of zero weights the squared error is the same for all rows, but for the order in which float32 adds it."""
    weights = {"w": np.zeros((64, 10), np.float32)}
    play = Play(Session(softmax_regression()), "training", {"lr": 0.1}, weights, {"numeric": ((64,), False)})
    for _ in range(10):
        rehearse(play, SORTS[2:3])
