"""Every study works on masked sums: each sum is the open one to the stated precision, and so is what comes of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.artifacts import Rows as Table
from edgeml.artifacts import Task
from edgeml.errors import UserError
from edgeml.federated.masks import Masks, ranges_of
from edgeml.graph import random_rows
from edgeml.quantize import calibration_points
from edgeml.tasks import calibration, drift, evaluation, reference
from edgeml.tasks.statistics import FAMILIES, begin
from edgeml_runtime.errors import MalformedMessage, TaskRefused
from edgeml_runtime.wire import masked_sums
from tests import networks
from tests.server.stand_ins import a_model, rows_of
from tests.tasks.fleet import conclude, split
from tests.tasks.masked import conclude_masked, masked
from tests.tasks.pooled import CASES
from tests.tasks.test_statistics import gap

SLOW = (
    "KMeans",
    "HistGradientBoostingClassifier",
    "HistGradientBoostingRegressor",
    "GammaRegressor",
    "PoissonRegressor",
)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in FAMILIES])
def test_a_family_fitted_by_masked_sums_is_the_one_fitted_in_the_open(name: str) -> None:
    family, case = FAMILIES[name], CASES[name][0]
    fleet = split(case.rows(family.target))
    shape = case.shape(family.target)
    found = conclude_masked(begin(case.estimator, shape), fleet).result()
    opened = conclude(begin(case.estimator, shape), fleet).result()
    gaps = {a: gap(getattr(found, a), getattr(opened, a)) for a in family.learned}
    assert max(gaps.values()) <= family.precision, gaps


def test_evaluation_drift_and_calibration_take_masked_sums() -> None:
    model, rows = a_model(), rows_of(3, 400)
    fleet = split(rows)
    judged = evaluation(model, "classification", before=a_model(1))
    hidden, seen = conclude_masked(judged, fleet).result(), conclude(judged, fleet).result()
    for metric in ("accuracy", "log_loss", "brier"):
        assert hidden.metric(metric).value == pytest.approx(seen.metric(metric).value, rel=1e-12)
        assert hidden.metric(metric).over_devices is None, "that needs single answers"
    moved = drift(reference(model, Table({"numeric": rows["numeric"]})))
    assert conclude_masked(moved, fleet).result() == conclude(moved, fleet).result()
    net = networks.an_mlp()
    graph, tensors = calibration_points(net)
    field = split(random_rows(net, 120))
    hidden, seen = (end(calibration(graph, tensors), field).result() for end in (conclude_masked, conclude))
    assert hidden.ends == seen.ends and all(np.array_equal(hidden.counts[n], seen.counts[n]) for n in seen.counts)


NUMBERS = st.floats(-(2.0**53), 2.0**53) | st.integers(-(2**53), 2**53).map(float) | st.floats(-1e-12, 1e-12)


@settings(max_examples=200)
@given(st.lists(st.tuples(NUMBERS, st.integers(-(2**53), 2**53)), min_size=2, max_size=256), st.integers(0, 46))
def test_words_add_up_to_what_whole_numbers_of_steps_do(values: list[tuple[float, int]], wider: int) -> None:
    """Checked in integers of any size: nothing wraps around, and each device loses less than a step."""
    task = Task("statistics", b"", "test", {}, (), outputs={"f": ("float64", (1,)), "n": ("int64", (1,))})
    masks = Masks(largest=2.0 ** (54 + wider))
    answers = [{"f": np.array([v]), "n": np.array([n])} for v, n in values]
    found = masked(answers, task, masks)
    assert found["n"][0] == float(sum(n for _, n in values))
    steps = 2 ** (54 - wider)
    exact = sum(int(np.trunc(np.longdouble(v) * steps)) for v, _ in values)
    assert found["f"][0] == pytest.approx(exact / steps, rel=2**-52, abs=2 / steps)


def test_what_has_no_bounded_sum_is_refused_with_the_way_out() -> None:
    ranges = {"a": 2.0**54}
    for worst in (2.0**54, np.inf, np.nan, -1e300):
        with pytest.raises(TaskRefused, match="masks are agreed for less than"):
            masked_sums.fixed({"a": np.array([0.0, worst])}, ranges)
    with pytest.raises(TaskRefused, match="no range is agreed for the output 'b'"):
        masked_sums.fixed({"b": np.zeros(2)}, ranges)
    with pytest.raises(UserError, match=r"'words' has numbers of type .*no sum under masks: ask without"):
        ranges_of({"words": ("str", (2,))}, Masks())
    with pytest.raises(UserError, match="largest inf: give a number from 1 to 2"):
        Masks(largest=float("inf"))
    outputs = {"a": ("float64", (1,))}
    with pytest.raises(MalformedMessage, match="no masked answer"):
        masked_sums.sums_of(np.full(3, 2**62, np.uint64), outputs, ranges, devices=2)
