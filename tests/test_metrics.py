"""Metrics against scikit-learn, on whole tables and on the corners."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk

from edgeml import metrics
from edgeml.artifacts import Answers
from edgeml.errors import UserError

Y = np.array([0, 0, 0, 1, 0, 1, 0, 0, 1, 0])
P = np.array([0.1, 0.4, 0.6, 0.9, 0.2, 0.45, 0.3, 0.05, 0.7, 0.55])


def binary(p: np.ndarray = P) -> Answers:
    return Answers((p > 0.5).astype(np.int64), np.column_stack([1 - p, p]))


def three_classes() -> tuple[np.ndarray, Answers]:
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(3), 60)
    return rng.integers(0, 3, 60), Answers(scores.argmax(axis=1), scores)


def test_binary_metrics_are_those_of_scikit_learn_with_the_rarer_class_as_positive():
    found = metrics.evaluate("classification", Y, binary())
    labels = P > 0.5
    assert found["accuracy"] == sk.accuracy_score(Y, labels)
    assert found["f1"] == sk.f1_score(Y, labels)
    assert found["precision"] == sk.precision_score(Y, labels)
    assert found["recall"] == sk.recall_score(Y, labels)
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(Y, P))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(Y, P))
    assert found["log_loss"] == pytest.approx(sk.log_loss(Y, P))
    assert found["brier"] == pytest.approx(sk.brier_score_loss(Y, P))


def test_swapping_the_classes_changes_no_binary_metric():
    swapped = Answers(1 - binary().labels, binary().scores[:, ::-1])
    assert metrics.evaluate("classification", 1 - Y, swapped) == pytest.approx(
        metrics.evaluate("classification", Y, binary())
    )


def test_a_given_positive_class_is_kept_even_where_it_is_the_more_frequent_one():
    answers = binary()
    recall = metrics.METRICS["recall"].score(Y, answers.labels, answers.scores, positive=0)
    assert recall == sk.recall_score(Y, answers.labels, pos_label=0)


def test_multiclass_metrics_are_means_over_the_classes():
    y, answers = three_classes()
    found = metrics.evaluate("classification", y, answers)
    assert found["f1"] == pytest.approx(sk.f1_score(y, answers.labels, average="macro"))
    assert found["roc_auc"] == pytest.approx(sk.roc_auc_score(y, answers.scores, multi_class="ovr"))
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, answers.labels))


def test_a_class_missing_from_the_target_does_not_break_a_multiclass_metric():
    y, answers = three_classes()
    some = y != 2
    found = metrics.evaluate("classification", y[some], Answers(answers.labels[some], answers.scores[some]))
    assert all(np.isfinite(value) for value in found.values())


def test_roc_auc_of_one_class_is_nan_and_not_a_guess():
    assert np.isnan(metrics.evaluate("classification", np.zeros(10, int), binary(), ["roc_auc"])["roc_auc"])


def test_regression_metrics_are_those_of_scikit_learn():
    y, p = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.0, 3.0])
    found = metrics.evaluate("regression", y, Answers(None, p[:, None]))
    assert found == pytest.approx({"rmse": np.sqrt(1.25 / 3), "mae": 0.5, "r2": sk.r2_score(y, p)})


def test_a_tensor_model_is_scored_by_what_it_gives():
    assert "accuracy" in metrics.evaluate("tensor", Y, binary())
    assert "rmse" in metrics.evaluate("tensor", P, Answers(None, P[:, None]))
    assert metrics.evaluate("tensor", P, Answers(None, np.zeros((10, 4)))) == {}


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(UserError, match="'rmsle' is no metric of regression: choose one of rmse, mae, r2"):
        metrics.evaluate("regression", P, Answers(None, P[:, None]), ["rmsle"])


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_every_metric_prefers_right_answers_and_its_drop_is_positive_when_they_get_worse(name):
    metric = metrics.METRICS[name]
    if metric.task == "regression":
        y, good, bad = P, Answers(None, P[:, None]), Answers(None, P[::-1, None])
    else:
        y, good, bad = Y, binary(np.where(Y, 0.99, 0.01)), binary(np.where(Y, 0.2, 0.8))
    best = metric.score(y, good.labels, good.scores)
    worst = metric.score(y, bad.labels, bad.scores)
    assert (best > worst) == metric.greater_is_better
    assert metrics.drop(name, best, worst) > 0 > metrics.drop(name, worst, best)
