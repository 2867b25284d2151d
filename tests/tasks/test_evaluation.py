"""A model judged over uneven devices is judged as on the pooled rows, by the metrics that the gates use."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import confusion_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgeml import metrics, verify
from edgeml.artifacts import OnnxModel
from edgeml.artifacts import Rows as Table
from edgeml.convert import open_room
from edgeml.errors import DataError, UserError
from edgeml.tasks.evaluation import By, Evaluation, evaluation
from edgeml.tasks.evaluation.intervals import Sums, of_mean
from tests.tasks.fleet import Rows, conclude, split, sums

CLASSIFIER = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
WEAK = make_pipeline(make_column_transformer(("passthrough", [0, 1])), LogisticRegression())
CASES: dict[str, tuple[Any, Any, Any]] = {
    "binary": (load_breast_cancer, CLASSIFIER, WEAK),
    "multiclass": (load_iris, CLASSIFIER, WEAK),
    "forest": (load_iris, RandomForestClassifier(5, max_depth=2, random_state=0), WEAK),
    "regression": (load_diabetes, LinearRegression(), make_pipeline(StandardScaler(), LinearRegression())),
}
every_case = pytest.mark.parametrize("case", CASES)


@functools.cache
def fitted(case: str) -> tuple[OnnxModel, OnnxModel, Rows]:
    """Return a model, one before it, and labelled rows, learned from every third of them."""
    load, one, other = CASES[case]
    x, y = load(return_X_y=True)
    x = x.astype(np.float32)
    whole = case != "regression"
    models = []
    for estimator in (one, other):
        learned = estimator.fit(x[::3], y[::3])
        models.append(open_room("sklearn").convert(learned, {"numeric": x.shape[1]}, source=case))
    return models[0], models[1], {"numeric": x, "target": y.astype(np.int64 if whole else np.float64)}


def task_of(case: str) -> Any:
    return "regression" if case == "regression" else "classification"


def judged(case: str, **options: Any) -> Evaluation:
    model, _, rows = fitted(case)
    found: Evaluation = conclude(evaluation(model, task_of(case), **options), split(rows)).result()
    return found


@every_case
def test_metrics_over_ten_devices_are_those_of_the_pooled_rows(case: str) -> None:
    model, _, rows = fitted(case)
    answers = verify.run_answers(model, Table({"numeric": rows["numeric"]}), task_of(case))
    expected = metrics.evaluate(task_of(case), rows["target"], answers)
    found = judged(case)
    for name, value in expected.items():
        if name == "average_precision" or (name == "roc_auc" and case != "binary"):
            continue  # needs the order of all scores
        tolerance = 2e-3 if name == "roc_auc" else 1e-6
        assert found.metric(name).value == pytest.approx(value, rel=tolerance, abs=tolerance), name
        assert found.metric(name).low <= found.metric(name).value <= found.metric(name).high, name
    if task_of(case) == "classification":
        assert np.array_equal(found.groups["all"].confusion, confusion_matrix(rows["target"], answers.labels))


@every_case
def test_the_sums_of_ten_devices_are_those_of_one(case: str) -> None:
    model, before, rows = fitted(case)
    task = evaluation(model, task_of(case), before=before).task()
    fleet, pooled = sums(task, split(rows)), sums(task, [rows])
    for name in task.outputs:
        if not name.startswith("device.") and name != "group.devices":
            rounded = name.startswith("value") or name == "calibration"  # a float32 model's answers depend on the batch
            assert np.allclose(fleet[name], pooled[name], rtol=1e-6 if rounded else 0, atol=1e-6 if rounded else 0), (
                name
            )


@every_case
def test_a_gain_is_that_between_the_two_models_on_the_same_rows(case: str) -> None:
    _, before, _ = fitted(case)
    model, _, rows = fitted(case)
    found = judged(case, before=before)
    scores = [
        metrics.evaluate(
            task_of(case), rows["target"], verify.run_answers(m, Table({"numeric": rows["numeric"]}), task_of(case))
        )
        for m in (model, before)
    ]
    for name, gain in found.gains.items():
        expected = metrics.drop(name, scores[0][name], scores[1][name])
        assert gain.value == pytest.approx(expected, abs=1e-5), name
        assert found.before[name].value == pytest.approx(scores[1][name], rel=1e-5), name
        assert gain.low <= gain.value + 1e-12 and gain.value - 1e-12 <= gain.high
    if case == "binary":
        assert found.is_better("accuracy") and not found.is_worse("accuracy")
    if case == "regression":
        assert not found.is_better("rmse") and not found.is_worse("rmse")


def test_groups_by_class_by_range_and_by_text_add_up_to_all_rows() -> None:
    model, _, rows = fitted("multiclass")
    by_class = judged("multiclass", by=By())
    assert list(by_class.groups) == ["all", "0", "1", "2"]
    middle = float(np.median(rows["numeric"][:, 1]))
    by_range = judged("multiclass", by=By("numeric", 1, edges=(middle,)))
    low = rows["numeric"][:, 1] <= middle
    answers = verify.run_answers(model, Table({"numeric": rows["numeric"]}), "classification")
    assert by_range.groups[f"<= {middle:g}"].rows == low.sum()
    expected = np.mean(answers.labels[low] == rows["target"][low])
    assert by_range.metric("accuracy", f"<= {middle:g}").value == pytest.approx(expected)
    for found in (by_class, by_range):
        parts = [group for name, group in found.groups.items() if name != "all"]
        assert sum(group.rows for group in parts) == found.rows
        assert np.array_equal(np.sum([group.confusion for group in parts], axis=0), found.groups["all"].confusion)


def test_rows_without_a_target_are_left_out_and_counted() -> None:
    model, _, rows = fitted("binary")
    target = rows["target"].copy()
    target[:9] = -1
    found = conclude(evaluation(model, "classification"), [{**rows, "target": target}]).result()
    assert (found.rows, found.left_out) == (len(target) - 9, 9)
    with pytest.raises(DataError, match="no device has a row"):
        conclude(evaluation(model, "classification"), [{**rows, "target": np.full_like(target, -1)}])


def test_the_interval_over_devices_is_that_of_the_devices_own_sums() -> None:
    rng = np.random.default_rng(0)
    n = rng.integers(5, 50, 60)
    s = rng.binomial(n, rng.uniform(0.5, 1, 60))
    found = of_mean(Sums(n.sum(), s.sum(), s.sum(), 60, (s * s).sum(), (s * n).sum(), (n * n).sum()), share=True)
    draws = rng.integers(0, 60, (4000, 60))
    resampled = s[draws].sum(axis=1) / n[draws].sum(axis=1)
    assert found.over_devices is not None
    assert np.allclose(found.over_devices, np.quantile(resampled, [0.025, 0.975]), atol=0.01)
    assert found.cautious[0] < found.low and found.cautious[1] > found.high  # devices differ more than rows do


def test_where_single_answers_are_not_seen_there_is_no_interval_over_devices() -> None:
    model, before, rows = fitted("binary")
    study, fleet = evaluation(model, "classification", before=before), split(rows)
    masked = study.take(sums(study.task(), fleet)).result()
    seen = study.take(sums(study.task(), fleet, study=study)).result()
    assert masked.metric("accuracy").over_devices is None and masked.groups["all"].devices == 0
    assert seen.metric("accuracy").over_devices is not None and seen.groups["all"].devices == 9
    assert masked.metric("accuracy").value == seen.metric("accuracy").value
    assert masked.gains["accuracy"].cautious == (masked.gains["accuracy"].low, masked.gains["accuracy"].high)


def test_what_cannot_be_judged_is_said() -> None:
    model, _, _ = fitted("binary")
    iris, _, _ = fitted("multiclass")
    with pytest.raises(DataError, match="2 classes, the one before 3"):
        evaluation(model, "classification", before=iris)
    with pytest.raises(UserError, match="no input 'colour'"):
        evaluation(model, "classification", by=By("colour", values=("red",)))
    with pytest.raises(UserError, match="either values"):
        evaluation(model, "classification", by=By("numeric"))
    with pytest.raises(UserError, match="not made of sums"):
        judged("binary").metric("average_precision")
