"""The questions of evaluation, drift and calibration pass the checks of a device: operators, shapes, made-up rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest

from edgeml.artifacts import Rows as Table
from edgeml.quantize import calibration_points
from edgeml.tasks import calibration, drift, evaluation, reference
from edgeml.tasks.evaluation import By
from edgeml.tasks.study import Study
from tests import networks
from tests.runtime.test_rehearsal import pass_all
from tests.tasks.fleet import Rows, answer, sums
from tests.tasks.test_drift import of_numbers, text_model, texts
from tests.tasks.test_evaluation import fitted

IMAGES = np.random.default_rng(0).normal(size=(30, 3, 16, 16)).astype(np.float32)


def an_evaluation(case: str, by: By | None = None) -> tuple[Study, Rows]:
    model, before, rows = fitted(case)
    task = "regression" if case == "regression" else "classification"
    return evaluation(model, task, before=before, by=by), rows


def a_calibration(conv: bool) -> tuple[Study, Rows]:
    model = networks.a_conv_net() if conv else networks.an_mlp()
    graph, tensors = calibration_points(model)
    return calibration(graph, tensors), {"image": IMAGES} if conv else networks.some_rows(60).inputs


STUDIES: Mapping[str, Callable[[], tuple[Study, Rows]]] = {
    "classifier": lambda: an_evaluation("multiclass"),
    "regressor": lambda: an_evaluation("regression"),
    "by range": lambda: an_evaluation("binary", By("numeric", 1, edges=(0.0, 18.0))),
    "numbers": lambda: (drift(of_numbers()[0]), {"numeric": of_numbers()[1]}),
    "texts": lambda: (drift(reference(text_model(), Table(texts()))), texts()),
    "dense": lambda: a_calibration(conv=False),
    "images": lambda: a_calibration(conv=True),
}


@pytest.mark.parametrize("name", STUDIES)
def test_a_device_without_rows_adds_nothing_and_one_with_many_what_its_parts_add(name: str) -> None:
    study, rows = STUDIES[name]()
    task = study.task()
    assert not any(array.any() for array in answer(task, {key: array[:0] for key, array in rows.items()}).values())
    many = {key: np.concatenate([array] * 20) for key, array in rows.items()}  # more than one batch
    once, twenty = answer(task, rows), answer(task, many)
    for output, array in once.items():
        assert np.allclose(twenty[output], 20 * array, rtol=1e-5, atol=1e-6), output


@pytest.mark.parametrize("name", STUDIES)
def test_a_device_runs_every_question(name: str) -> None:
    study, rows = STUDIES[name]()
    layout = {key: (array.shape[1:], array.dtype == object) for key, array in rows.items() if key != "target"}
    while not study.done:
        pass_all(study.task(), layout)
        study = study.take(sums(study.task(), [rows]))
    assert study.result() is not None
