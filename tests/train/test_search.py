"""The search finds good pipelines, the same ones every time, and says what it did."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from edgeml import data, metrics, train
from edgeml.artifacts import Dataset, Rows
from edgeml.errors import DataError, UserError
from edgeml.project import Search, parse_project
from edgeml.train.search import make_folds, trials_of

ROOT = Path(__file__).resolve().parents[2]


def a_dataset(source: object, target: str | None = None, **changes) -> Dataset:
    section = {"train": str(source), **({"target": target} if target else {}), **changes}
    return data.load(parse_project(yaml.safe_dump({"name": "t", "data": section}), folder=Path("/")))


def score(fitted) -> float:
    dataset = fitted.dataset
    found = metrics.evaluate(dataset.task, dataset.test.target, train.answers(fitted, dataset.test), [dataset.metric])
    return found[dataset.metric]


def test_the_digits_are_learned_by_every_estimator_and_the_best_candidate_comes_first():
    dataset = a_dataset("sklearn:digits")
    lines: list[str] = []
    fitted = train.fit(dataset, Search(trials=4, folds=3), progress=lines.append)
    assert {candidate.estimator for candidate in fitted.candidates} == set(train.ESTIMATORS)
    scores = [candidate.score for candidate in fitted.candidates]
    assert scores == sorted(scores, reverse=True)
    assert fitted.estimator == fitted.candidates[0].estimator
    assert score(fitted) > 0.92
    assert len([line for line in lines if line.startswith(("1/4", "2/4", "3/4", "4/4"))]) == 4


def test_titanic_and_penguins_are_learned_from_mixed_columns_with_missing_values(real_data):
    search = Search(trials=4, folds=3)
    assert score(train.fit(a_dataset(real_data("titanic/titanic.csv"), "Survived"), search)) > 0.74
    assert score(train.fit(a_dataset(real_data("penguins/penguins.csv"), "species"), search)) > 0.95


def test_a_regression_beats_the_mean_and_its_lowest_error_comes_first():
    dataset = a_dataset("sklearn:diabetes")
    fitted = train.fit(dataset, Search(trials=4, folds=3))
    scores = [candidate.score for candidate in fitted.candidates]
    assert scores == sorted(scores)
    assert score(fitted) < 0.9 * float(np.std(dataset.test.target))


def test_one_seed_gives_one_model_and_another_seed_another():
    dataset = a_dataset("sklearn:iris")
    once, again = (train.fit(dataset, Search(estimators=["mlp"], trials=2, folds=2)) for _ in range(2))
    other = train.fit(dataset, Search(estimators=["mlp"], trials=2, folds=2, seed=1))
    assert once.digest == again.digest != other.digest
    assert [c.score for c in once.candidates] == [c.score for c in again.candidates]
    first, second, third = (train.answers(model, dataset.test).scores for model in (once, again, other))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_the_search_stops_at_its_time_limit_and_says_so():
    lines: list[str] = []
    fitted = train.fit(a_dataset("sklearn:iris"), Search(trials=40, timeout_s=0.01), progress=lines.append)
    assert 1 <= len(fitted.candidates) < 40
    assert any("search.timeout_s is 0.01" in line for line in lines)


def test_a_network_cut_short_says_so_in_its_notes_and_not_on_the_screen(real_data, capfd):
    fitted = train.fit(a_dataset(real_data("titanic/titanic.csv"), "Survived"), Search(estimators=["mlp"], trials=1))
    assert any("converged" in note for note in fitted.candidates[0].notes)
    assert "converge" not in capfd.readouterr().err


def test_ctrl_c_while_a_network_is_fitted_gives_no_half_trained_model():
    code = """
import os, signal, threading
from edgeml import train
from edgeml.project import Search
from tests.train.test_search import a_dataset

def progress(line):
    print(line, flush=True)
    if line.startswith("best"):
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()

train.fit(a_dataset("sklearn:digits"), Search(estimators=["mlp"], trials=1, folds=2), progress=progress)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == -signal.SIGINT, ended.stderr
    assert "fitting it on" in ended.stdout


def test_folds_are_stratified_and_never_cut_a_group(real_data):
    dataset = a_dataset(
        real_data("wisdm_v1_features/wisdm_transformed.csv.gz"), "class", group="user", read={"na": ["?"]}
    )
    for inside, outside in make_folds(dataset, count=5, seed=0):
        assert not set(dataset.train_groups[inside]) & set(dataset.train_groups[outside])
    digits = a_dataset("sklearn:digits")
    for _, outside in make_folds(digits, count=5, seed=0):
        assert set(digits.train.target[outside]) == set(range(10))


def test_trials_take_turns_and_repeat_nothing():
    trials = trials_of(Search(trials=12))
    assert [trial.estimator for trial in trials[:4]] == list(train.ESTIMATORS)
    assert len({(trial.estimator, str(trial.settings)) for trial in trials}) == 12
    assert trials_of(Search(trials=12)) == trials


def test_an_unknown_estimator_names_the_known_ones():
    with pytest.raises(UserError, match="no estimator 'svm': choose from linear, forest, boosting, mlp, or auto"):
        trials_of(Search(estimators=["svm"]))


def test_one_training_row_cannot_be_folded():
    dataset = a_dataset("sklearn:iris")
    with pytest.raises(DataError, match="1 training rows cannot make 2 folds"):
        train.fit(dataclasses.replace(dataset, train=dataset.train.take(slice(1))), Search())


def test_a_class_that_a_fold_never_saw_has_probability_zero():
    rng = np.random.default_rng(0)
    rows = Rows({"numeric": rng.normal(size=(60, 2)).astype(np.float32)}, np.array([0, 2] * 30))
    three = dataclasses.replace(a_dataset("sklearn:iris"), train=rows)
    fitted = train.fit(three, Search(estimators=["linear"], trials=1, folds=2))
    said = train.answers(fitted, rows)
    assert said.scores.shape == (60, 3)
    assert not said.scores[:, 1].any()
    assert set(said.labels) <= {0, 2}


@pytest.mark.parametrize("name", sorted(train.ESTIMATORS))
@pytest.mark.parametrize("seed", [0, 1])
def test_every_estimator_draws_different_settings_from_one_seed(name, seed):
    settings = train.ESTIMATORS[name].settings(5, seed)
    assert len({str(setting) for setting in settings}) == len(settings) >= 3
    assert train.ESTIMATORS[name].settings(5, seed) == settings


def test_what_devices_can_train_is_in_the_table():
    assert train.ESTIMATORS.keys() >= train.FEDERABLE
