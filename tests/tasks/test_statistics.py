"""Federated over uneven devices equals scikit-learn on the pooled rows, for every family of the table."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import KBinsDiscretizer, StandardScaler
from sklearn.svm import SVC

from edgeml import convert
from edgeml.errors import DataError, UnsupportedModel, UserError
from edgeml.tasks import study
from edgeml.tasks.statistics import FAMILIES, begin
from edgeml_runtime.rehearsal import Play, rehearse
from edgeml_runtime.session import Session
from edgeml_runtime.vetting import Allowed, vet
from tests.tasks.fleet import answer, conclude, split, sums
from tests.tasks.pooled import CASES, Case

ROOT = Path(__file__).resolve().parents[2]
EVERY_CASE = [
    pytest.param(name, case, id=f"{name}-{number}-{case.data}")
    for name in CASES
    for number, case in enumerate(CASES[name])
]


def gap(found: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest number that is expected."""
    parts = zip(found, expected, strict=True) if np.asarray(expected).dtype == object else [(found, expected)]
    gaps = []
    for mine, theirs in parts:
        mine, theirs = np.asarray(mine, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
        assert mine.shape == theirs.shape
        gaps.append(float(np.abs(mine - theirs).max() / max(np.abs(theirs).max(), 1e-300)))
    return max(gaps)


def test_the_table_and_its_cases_are_the_same_families() -> None:
    assert CASES.keys() == FAMILIES.keys()


def test_the_page_shows_what_was_measured_of_every_family() -> None:
    measured = (ROOT / "benchmarks/results/exact_statistics.md").read_text(encoding="utf-8").splitlines()
    table = [line for line in measured if line.startswith("|")]
    assert {line.split(" | ")[0].removeprefix("| ") for line in table[2:]} == FAMILIES.keys()
    assert "\n".join(table) in (ROOT / "docs/learn.md").read_text(encoding="utf-8"), (
        "run the benchmark: it writes the page, too"
    )


@pytest.mark.parametrize("name, case", EVERY_CASE)
def test_ten_uneven_devices_learn_what_the_pooled_rows_teach(name: str, case: Case) -> None:
    family = FAMILIES[name]
    fleet = split(case.rows(family.target))
    sizes = [len(rows["x"]) for rows in fleet]
    assert len(fleet) == 10 and sizes[:2] == [0, 1] and sizes[-1] > 5 * sizes[3] and sum(sizes) == len(case.features)
    found = conclude(begin(case.estimator, case.shape(family.target)), fleet).result()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pooled = case.pooled(family.target)
    gaps = {attribute: gap(getattr(found, attribute), getattr(pooled, attribute)) for attribute in family.learned}
    assert max(gaps.values()) <= family.precision, gaps


@pytest.mark.parametrize("name", FAMILIES)
def test_what_was_learned_converts_and_answers_like_scikit_learn(name: str, tmp_path: Path) -> None:
    family, case = FAMILIES[name], CASES[name][0]
    x = case.features
    found = conclude(begin(case.estimator, case.shape(family.target)), split(case.rows(family.target))).result()
    joblib.dump(found, tmp_path / "m.joblib")
    graph = convert.read_model(tmp_path / "m.joblib", trust=True)  # which compares it with `found` on random rows
    given = Session(graph.data).run({"numeric": x})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pooled = case.pooled(family.target)
    wide = x.astype(np.float64)
    if family.target == "classes":
        assert np.mean(given["label"] == pooled.predict(wide)) > 0.999
        assert np.allclose(given["probabilities"], pooled.predict_proba(wide), atol=1e-3)
        return
    says = pooled.predict(wide) if family.target or name == "Cooccurrence" else pooled.transform(wide)
    says = says.toarray() if hasattr(says, "toarray") else says
    only = given[{"KMeans": "distances"}.get(name, "prediction" if hasattr(pooled, "predict") else "features")]
    assert np.allclose(only.reshape(says.shape), says, rtol=1e-3, atol=1e-3 * np.abs(says).max())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_device_without_rows_adds_nothing(name: str) -> None:
    family, case = FAMILIES[name], CASES[name][0]
    current, fleet = begin(case.estimator, case.shape(family.target)), split(case.rows(family.target))
    while not current.done:
        task = current.task()
        nothing = answer(task, fleet[0])
        assert len(fleet[0]["x"]) == 0 and not any(array.any() for array in nothing.values())
        current = current.take(sums(task, fleet))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_round_passes_what_a_device_looks_for_in_a_task(name: str) -> None:
    family, case = FAMILIES[name], CASES[name][0]
    shape = case.shape(family.target)
    current, fleet = begin(case.estimator, shape), split(case.rows(family.target))
    while not current.done:
        task = current.task()
        vet(task.data, Allowed())
        layout = {"x": ((shape.features,), False)}
        rehearse(Play(Session(task.data), task.kind, {}, task.parameters, layout, {"x": fleet[-1]["x"]}))
        current = current.take(sums(task, fleet))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_study_that_takes_the_same_sums_asks_the_same_questions(name: str) -> None:
    family, case = FAMILIES[name], CASES[name][0]
    first, fleet = begin(case.estimator, case.shape(family.target)), split(case.rows(family.target))
    journal = []
    while not first.done:
        journal.append((first.task(), sums(first.task(), fleet)))
        first = first.take(journal[-1][1])
    again = begin(case.estimator, case.shape(family.target))
    for task, taken in journal:
        asked = again.task()
        assert asked.digest == task.digest and asked.kind == "statistics"
        assert all(np.array_equal(asked.parameters[key], value) for key, value in task.parameters.items())
        again = again.take(taken)
    assert again.rounds == first.rounds == len(journal)
    assert again.notes == first.notes
    with pytest.raises(UserError, match="has a result and no task"):
        again.task()


def test_a_study_refuses_sums_that_are_not_its_tasks() -> None:
    case = CASES["Ridge"][0]
    current = study("Ridge", features=10)
    given = sums(current.task(), split(case.rows("values")))
    with pytest.raises(DataError, match=r"sum\.x"):
        current.take({**given, "sum.x": np.full(10, np.nan)})
    with pytest.raises(DataError, match=r"sum\.x"):
        current.take({**given, "sum.x": np.zeros(9)})
    with pytest.raises(DataError, match="the task gives"):
        current.take({"rows": given["rows"]})
    with pytest.raises(UserError, match="not done"):
        current.result()


@pytest.mark.parametrize(
    "estimator, advice",
    [
        (RandomForestClassifier(), "HistGradientBoosting grows its trees by agreed histograms"),
        (KNeighborsClassifier(), "keeps the rows themselves.*LogisticRegression"),
        (SVC(), "support vectors are rows.*LogisticRegression"),
        (MLPClassifier(), "edgeml.tasks.training"),
        (object(), "not known as a sum"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_sum_is_refused_with_what_can_be_federated(estimator: object, advice: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"{type(estimator).__name__}.*{advice}.*exact are Ridge"):
        study(estimator, features=4)


@pytest.mark.parametrize(
    "estimator, complaint",
    [
        (Ridge(positive=True), r"positive=True.*leave it at False"),
        (LogisticRegression(l1_ratio=1.0), r"l1_ratio=1.0"),
        (LogisticRegression(), "name at least two"),
        (KMeans(3), r"k-means\+\+.*give init as an array of \(3, 4\)"),
        (PCA("mle"), "mle"),
        (KBinsDiscretizer(strategy="kmeans"), "kmeans"),
        (Ridge(alpha=[1.0, 2.0]), "give one number"),
        (Ridge(alpha=-1.0), "scikit-learn refuses this Ridge.*alpha"),
        (StandardScaler(with_mean="perhaps"), "scikit-learn refuses this StandardScaler"),
    ],
    ids=str,
)
def test_an_option_that_is_not_federated_is_refused_by_name(estimator: Any, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        study(estimator, features=4)
