"""A study over a fleet: sums of real task graphs equal the fit on pooled rows, whatever happens between the rounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from sklearn.linear_model import LogisticRegression, Ridge

from edgeml import tasks
from edgeml.federated import Candidate, Masks, Plan, SecureRound, State, Survey, Update
from edgeml.federated.journal import resume_survey, survey_arrays, survey_state
from edgeml_runtime.session import Session
from edgeml_runtime.wire import tensors
from tests import networks

PLAN = Plan(min_devices=2, min_rows=5, deadline_s=60, max_abandoned=3)
NAMES = "abcd"


def rows_of(device: str, count: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(ord(device))
    x = rng.normal(size=(count, 3)).astype(np.float32)
    return {"x": x, "target": x @ np.array([1.0, -2.0, 0.5]) + 0.1 * rng.normal(size=count)}


def pooled(devices: str) -> Ridge:
    parts = [rows_of(device) for device in devices]
    x = np.concatenate([part["x"] for part in parts]).astype(np.float64)
    return Ridge().fit(x, np.concatenate([part["target"] for part in parts]))


def a_survey(**changes: Any) -> Survey:
    return Survey("run", dataclasses.replace(PLAN, **changes), model="m", study=tasks.study("Ridge", features=3))


def answer(survey: Survey, device: str, rows: Mapping[str, np.ndarray]) -> Update:
    task = survey.study.task()
    session = Session(task.data)
    wanted = {spec.name for spec in session.inputs}
    found = session.run({**task.parameters, **{n: v for n, v in rows.items() if n in wanted}})
    return Update(device, len(rows["x"]), tensors.unpack(tensors.pack(found)))


def go(survey: Survey, devices: str, *, silent: str = "") -> State:
    """Go through one round of `devices` in which `silent` ones say nothing."""
    opened = survey.begin(dict.fromkeys(devices, 40), now=0.0)
    assert opened is not None
    offer, _ = survey.offer(survey.study.task())
    assert set(offer.cohort) == opened.cohort and offer.kind == "statistics"
    for device in sorted(opened.cohort - set(silent)):
        assert opened.receive(device, answer(survey, device, rows_of(device)), 1.0) == ""
    result = survey.conclude(60.0)
    assert result is not None
    return State(result.state)


def test_sums_over_devices_fit_what_the_pooled_rows_fit() -> None:
    survey = a_survey()
    while not survey.finished:
        assert go(survey, NAMES) is State.CLOSED
    expected = pooled(NAMES)
    found = survey.study.result()
    np.testing.assert_allclose(found.coef_, expected.coef_, rtol=1e-9)
    np.testing.assert_allclose(found.intercept_, expected.intercept_, rtol=1e-9, atol=1e-12)
    assert survey.members == set(NAMES) and survey.rows == 160


def test_what_a_study_wants_of_single_answers_is_added_up_beside_the_sums() -> None:
    survey = a_survey()
    survey.study = tasks.evaluation(networks.a_regressor(slope=1.0), "regression")
    opened = survey.begin(dict.fromkeys(NAMES, 40), now=0.0)
    assert opened is not None
    for device in sorted(opened.cohort):
        rng = np.random.default_rng(ord(device))
        rows = {"x": np.zeros(40), "numeric": rng.normal(size=(40, networks.FEATURES)).astype(np.float32)}
        rows["target"] = rows["numeric"].sum(axis=1) + rng.normal(size=40) * (1 + ord(device) % 4)
        assert opened.receive(device, answer(survey, device, rows), 1.0) == ""
    assert survey.conclude(60.0) is not None
    error = survey.study.result().metric("mae")
    assert error.over_devices is not None and error.cautious[0] < error.low  # these devices differ
    again = a_survey()
    again.study = again._first = tasks.evaluation(networks.a_regressor(slope=1.0), "regression")
    again.replay(survey.sums)
    assert again.study.result().metric("mae") == error


def test_a_device_that_comes_later_is_not_mixed_into_sums_that_began_without_it() -> None:
    survey = a_survey()
    assert go(survey, "abc") is State.CLOSED
    opened = survey.begin(dict.fromkeys(NAMES, 40), now=0.0)
    assert opened is not None and opened.cohort == set("abc")


def test_where_a_member_is_missing_the_sums_begin_again_with_those_who_are_there() -> None:
    survey = a_survey()
    assert go(survey, NAMES) is State.CLOSED
    assert go(survey, NAMES, silent="d") is State.ABANDONED
    assert not survey.sums and not survey.members
    while not survey.finished:
        assert go(survey, "abc") is State.CLOSED
    np.testing.assert_allclose(survey.study.result().coef_, pooled("abc").coef_, rtol=1e-9)


def test_a_member_that_went_for_good_makes_it_begin_again() -> None:
    survey = a_survey()
    go(survey, NAMES)
    assert survey.begin(dict.fromkeys("abc", 40), now=0.0) is None, "d is waited for"
    assert survey.skip("d is gone").state == "abandoned"
    while not survey.finished:
        go(survey, "abc")
    np.testing.assert_allclose(survey.study.result().coef_, pooled("abc").coef_, rtol=1e-9)


def test_it_gives_up_when_round_after_round_is_abandoned() -> None:
    survey = a_survey(max_abandoned=2)
    for _ in range(2):
        assert go(survey, NAMES, silent="bcd") is State.ABANDONED
    assert survey.given_up and survey.finished and survey.begin({"a": 40, "b": 40}, now=0.0) is None


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (lambda sums: {n: np.full_like(v, np.nan) for n, v in sums.items()}, "nan"),
        (lambda sums: {n: np.full_like(v, np.inf) for n, v in sums.items()}, "infinite"),
        (lambda sums: {n: v[..., None] for n, v in sums.items()}, "shape"),
        (lambda sums: {**sums, "more": np.zeros(3)}, "names"),
        (lambda sums: dict(list(sums.items())[1:]), "names"),
    ],
)
def test_an_answer_that_is_none_is_counted_and_not_added(changed: Any, fault: str) -> None:
    survey = a_survey()
    opened = survey.begin(dict.fromkeys("abc", 40), now=0.0)
    assert opened is not None
    good = answer(survey, "a", rows_of("a"))
    assert opened.receive("a", dataclasses.replace(good, delta=changed(good.delta)), 1.0) == fault


def test_two_devices_with_one_class_each_fit_what_the_pooled_rows_fit() -> None:
    rng = np.random.default_rng(5)
    x = rng.normal(size=(80, 3)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=80) > 0).astype(np.int64)
    parts = {"a": {"x": x[y == 0], "target": y[y == 0]}, "b": {"x": x[y == 1], "target": y[y == 1]}}
    study = tasks.study("LogisticRegression", features=3, classes=(0, 1))
    survey = Survey("run", PLAN, model="m", study=study)
    while not survey.finished:
        opened = survey.begin({name: len(part["x"]) for name, part in parts.items()}, now=0.0)
        assert opened is not None
        for device, part in parts.items():
            assert opened.receive(device, answer(survey, device, part), 1.0) == ""
        survey.conclude(1.0)
    expected = LogisticRegression(solver="newton-cholesky", tol=1e-12).fit(x.astype(np.float64), y)
    np.testing.assert_allclose(survey.study.result().coef_, expected.coef_, rtol=1e-6)


@pytest.mark.parametrize(("study", "least"), [("evaluation", 5), ("statistics", 25)])
def test_a_masked_answer_needs_the_rows_that_its_task_sees(study: str, least: int) -> None:
    plan = Plan(min_rows=25, held_out=0.2, secure=Masks())
    asked = {
        "evaluation": tasks.evaluation(networks.a_regressor(slope=1.0), "regression"),
        "statistics": tasks.study("Ridge", features=3),
    }
    survey = Survey("run", plan, model="m", study=asked[study])
    opened = survey.begin([Candidate(device=one, rows=25, key=ord(one).to_bytes(32).hex()) for one in NAMES], now=0.0)
    assert isinstance(opened, SecureRound) and opened.min_rows == least


class SurveyMachine(RuleBasedStateMachine):
    """Whoever comes and goes, and however often the server dies: in the end the sums are those of its members."""

    def __init__(self) -> None:
        super().__init__()
        self.survey = a_survey(max_abandoned=100)

    @precondition(lambda self: not self.survey.finished)
    @rule(there=st.sets(st.sampled_from(NAMES), min_size=2), silent=st.sets(st.sampled_from(NAMES)))
    def a_round(self, there: set[str], silent: set[str]) -> None:
        opened = self.survey.begin(dict.fromkeys(sorted(there), 40), now=0.0)
        if opened is None:
            assert self.survey.members - there
            self.survey.skip("gone")
            return
        for device in sorted(opened.cohort - silent):
            opened.receive(device, answer(self.survey, device, rows_of(device)), 1.0)
        self.survey.conclude(60.0)

    @rule()
    def the_server_dies_and_comes_back(self) -> None:
        state, arrays = survey_state(self.survey, 10.0), survey_arrays(self.survey)
        again = a_survey(max_abandoned=100)
        resume_survey(again, state, tensors.unpack(tensors.pack(arrays)), now=500.0)
        assert again.history == self.survey.history and again.members == self.survey.members
        self.survey = again

    @invariant()
    def what_is_found_is_what_pooled_rows_give(self) -> None:
        if self.survey.study.done:
            expected = pooled("".join(sorted(self.survey.members)))
            np.testing.assert_allclose(self.survey.study.result().coef_, expected.coef_, rtol=1e-8)


TestSurveyMachine = SurveyMachine.TestCase
TestSurveyMachine.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
