"""Every question of every kind of study loads on the oldest onnxruntime, and is answered there as it is here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_iris
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import RobustScaler

from edgeml import convert
from edgeml.artifacts import OnnxModel, Rows
from edgeml.graph import opsets
from edgeml.quantize import calibration_points
from edgeml.tasks import calibration, drift, evaluation, reference, study
from edgeml.tasks.study import Study
from edgeml_runtime.session import Session
from tests import networks
from tests.runtimes.test_oldest import keep, replayed

pytestmark = pytest.mark.runtimes
X, Y = load_iris(return_X_y=True)
X = X.astype(np.float32)
LACKING = np.where(np.arange(600).reshape(150, 4) % 17 == 0, np.float32(np.nan), X)
BOOSTED = HistGradientBoostingClassifier(max_iter=2, max_depth=3, max_bins=31)
HELD = {"x": X, "numeric": X, "target": Y.astype(np.int64)}


def a_model() -> OnnxModel:
    fitted = LogisticRegression(C=0.01).fit(X, Y)
    model: OnnxModel = convert.open_room("sklearn").convert(fitted, {"numeric": 4}, source="test")
    return convert.fit_runtimes(model, [opsets.OLDEST])


def a_calibration() -> Study:
    graph, tensors = calibration_points(convert.fit_runtimes(networks.an_mlp(), [opsets.OLDEST]))
    return calibration(graph, tensors)


STUDIES: dict[str, Callable[[], Study]] = {
    "ridge": lambda: study(Ridge(), features=4),
    "logistic": lambda: study(LogisticRegression(), features=4, classes=(0, 1, 2)),
    "robust": lambda: study(RobustScaler(), features=4),
    "boosting": lambda: study(BOOSTED, features=4, classes=(0, 1, 2)),
    "evaluation": lambda: evaluation(a_model(), "classification", before=a_model()),
    "drift": lambda: drift(reference(a_model(), Rows({"numeric": X}))),
    "calibration": a_calibration,
}
ROWS = {
    "ridge": HELD | {"target": Y.astype(np.float64)},
    "boosting": HELD | {"x": LACKING},
    "calibration": {"numeric": networks.some_rows(60).inputs["numeric"]},
}


@pytest.mark.parametrize("name", STUDIES)
def test_every_question_is_answered_alike(name: str, old_python: Path, tmp_path: Path) -> None:
    current, asked, held = STUDIES[name](), 0, ROWS.get(name, HELD)
    while not current.done:
        task = current.task()
        session = Session(task.data)
        wanted = {spec.name for spec in session.inputs}
        rows = Rows({**{key: array for key, array in held.items() if key in wanted}, **task.parameters})
        keep(tmp_path, f"question{asked}", OnnxModel(task.data, ""), rows)
        current, asked = current.take(session.run(rows.inputs)), asked + 1
    found = replayed(old_python, tmp_path)["found"]
    wrong = {question: far for question, far in found.items() if isinstance(far, str) or far > 1e-9}
    assert len(found) == asked and not wrong
