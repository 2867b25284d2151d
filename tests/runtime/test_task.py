"""What a task may take and give: shapes that are fixed, memory between rounds, answers that are what was declared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import helper

from edgeml_runtime.errors import ShapeMismatch, TaskRefused
from edgeml_runtime.session import Session
from edgeml_runtime.task import Limits, check_graph, feeds, run, sorted_out
from edgeml_runtime.wire.manifest import TensorSpec
from tests.runtime.graphs import DOUBLE, FLOAT, INT64, model

LIMITS = Limits(update=48, kept=64)


def a_tensor(name: str, *shape: int, dtype: Any = "float32") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


INPUTS = (
    a_tensor("numeric", -1, 4),
    a_tensor("target", -1, dtype="int64"),
    a_tensor("lr"),
    a_tensor("seed", dtype="int64"),
    a_tensor("w", 4, 3),
    a_tensor("kept.c", 4),
)
DELTA, LOSS = a_tensor("delta.w", 4, 3), a_tensor("loss.after")


def test_a_training_task_passes_the_check() -> None:
    check_graph(INPUTS, (DELTA, LOSS, a_tensor("keep.c", 4)), kind="training", limits=LIMITS)


@pytest.mark.parametrize(
    ("outputs", "why"),
    [
        ((DELTA, a_tensor("rows", -1, 4)), "'rows', float32 of shape .any, 4., could carry rows away"),
        ((DELTA, a_tensor("names", 2, dtype="string")), "could carry rows away"),
        ((LOSS,), "no training task"),
        ((), "0 outputs"),
        ((DELTA, a_tensor("extra", 5000)), "5000 values"),
        ((DELTA, a_tensor("delta.lr")), "outputs of 52 bytes; 48 are allowed"),
        ((a_tensor("delta.v", 4, 3),), "the change of no parameter"),
        ((a_tensor("delta.w", 3, 4),), "the change of no parameter"),
        ((DELTA, a_tensor("keep.d", 4)), "no input kept.d"),
        ((DELTA, a_tensor("keep.c", 5)), "no input kept.c of the same type and shape"),
        ((DELTA, a_tensor("keep.c", 4, dtype="float64")), "no input kept.c of the same type and shape"),
    ],
)
def test_a_training_task_that_could_carry_rows_away_is_refused(outputs: tuple[TensorSpec, ...], why: str) -> None:
    with pytest.raises(TaskRefused, match=why):
        check_graph(INPUTS, outputs, kind="training", limits=LIMITS)


@pytest.mark.parametrize("kind", ["statistics", "evaluation", "drift", "calibration"])
def test_sums_of_fixed_size_pass_and_sums_that_grow_do_not(kind: Any) -> None:
    check_graph(INPUTS, (a_tensor("gram", 2, 3, dtype="float64"),), kind=kind, limits=LIMITS)
    with pytest.raises(TaskRefused, match="56 bytes; 48 are allowed"):
        check_graph(INPUTS, (a_tensor("gram", 7, dtype="float64"),), kind=kind, limits=LIMITS)
    with pytest.raises(TaskRefused, match="could carry rows away"):
        check_graph(INPUTS, (a_tensor("copy", -1, 4),), kind=kind, limits=LIMITS)
    with pytest.raises(TaskRefused, match=f"it is no {kind} task"):
        check_graph(INPUTS, (a_tensor("keep.c", 4),), kind=kind, limits=LIMITS)
    with pytest.raises(TaskRefused, match="16 bytes kept here between rounds; 8 are allowed"):
        check_graph(INPUTS, (a_tensor("keep.c", 4), LOSS), kind=kind, limits=Limits(update=48, kept=8))


def given_feeds(specs: tuple[TensorSpec, ...] = INPUTS, target: Any = (0, 2), **changes: Any) -> dict[str, np.ndarray]:
    local = {"numeric": np.ones((2, 4), np.float32), "names": np.array([["a"], ["b"]], object)}
    given = {"scalars": {"lr": 0.5, "seed": 7.0}, "parameters": {"w": np.zeros((4, 3), np.float32)}, **changes}
    return feeds(specs, (local, np.array(target)), **given)


def test_the_feeds_are_what_the_graph_takes_in_its_own_types() -> None:
    found = given_feeds()
    assert set(found) == {"numeric", "target", "lr", "seed", "w", "kept.c"}
    assert found["seed"].dtype == np.int64 and found["seed"].shape == () and int(found["seed"]) == 7
    assert found["lr"].dtype == np.float32 and found["target"].tolist() == [0, 2]


def test_x_is_the_one_table_of_numbers() -> None:
    np.testing.assert_array_equal(given_feeds((a_tensor("x", -1, 4, dtype="float64"),))["x"], np.ones((2, 4)))


def test_targets_of_a_regression_become_one_column() -> None:
    found = given_feeds((a_tensor("target", -1, 1),), (1, 2))
    assert found["target"].shape == (2, 1) and found["target"].dtype == np.float32


def test_an_input_that_nobody_has_is_named() -> None:
    with pytest.raises(ShapeMismatch, match="takes 'v'"):
        given_feeds((*INPUTS, a_tensor("v", 2)))
    with pytest.raises(ShapeMismatch, match="class indices"):
        given_feeds(INPUTS, (0.5, 1.5))


@pytest.mark.parametrize(
    ("parameters", "kept", "value"),
    [
        ({}, {}, 0.0),
        ({"c": np.full(4, 2, np.float32)}, {}, 2.0),
        ({"c": np.full(4, 2, np.float32), "kept.c": np.full(4, 3, np.float32)}, {}, 3.0),
        ({"kept.c": np.full(4, 3, np.float32)}, {"c": np.full(4, 4, np.float32)}, 4.0),
        ({}, {"c": np.full(5, 4, np.float32)}, 0.0),  # of another shape: of another task
    ],
)
def test_memory_begins_as_the_offer_says_and_goes_on_as_it_was_kept(
    parameters: dict[str, np.ndarray], kept: dict[str, np.ndarray], value: float
) -> None:
    found = given_feeds((a_tensor("kept.c", 4),), parameters=parameters, kept=kept)
    np.testing.assert_array_equal(found["kept.c"], np.full(4, value, np.float32))


def test_an_answer_is_sorted_into_what_leaves_and_what_stays() -> None:
    outputs = (DELTA, LOSS, a_tensor("rows", dtype="int64"), a_tensor("keep.c", 4))
    delta, control = np.ones((4, 3), np.float32), np.full(4, 2, np.float32)
    answers = {"delta.w": delta, "loss.after": np.float32(0.5), "rows": np.array(3), "keep.c": control}
    answer = sorted_out(outputs, answers, kind="training", rows=3)
    assert list(answer.update) == ["delta.w"] and answer.metrics == {"loss.after": 0.5} and list(answer.keep) == ["c"]
    counted = sorted_out(outputs, answers, kind="evaluation", rows=3)
    assert list(counted.update) == ["delta.w", "loss.after", "rows"] and counted.metrics == {}


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_answer_that_is_not_finite_is_refused(bad: float) -> None:
    delta = np.zeros((4, 3), np.float32)
    delta[1, 1] = bad
    with pytest.raises(TaskRefused, match="diverged here: 1 numbers"):
        sorted_out((DELTA,), {"delta.w": delta}, kind="training", rows=2)
    with pytest.raises(TaskRefused, match="1 numbers of the answer are NaN or infinite"):
        sorted_out((DELTA,), {"delta.w": delta}, kind="statistics", rows=2)


def test_rows_with_gaps_that_spoil_the_answer_are_counted() -> None:
    x = np.ones((30, 4), np.float32)
    x[3, 1], x[3, 2], x[7, 0] = np.nan, np.inf, np.nan
    with pytest.raises(TaskRefused, match="2 of the 30 rows have missing or infinite numbers"):
        run(Session(second_moments()), ({"numeric": x}, None), kind="statistics", scalars={}, parameters={})


def test_an_output_of_another_shape_than_declared_does_not_leave() -> None:
    with pytest.raises(TaskRefused, match=r"came as \(40, 3\) and was declared as \(4, 3\)"):
        sorted_out((DELTA,), {"delta.w": np.zeros((40, 3), np.float32)}, kind="training", rows=40)


def test_a_statistics_task_runs_over_rows_without_labels() -> None:
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    session = Session(second_moments())
    answer = run(session, ({"numeric": x}, None), kind="statistics", scalars={}, parameters={})
    wide = x.astype(np.float64)
    np.testing.assert_allclose(answer.update["gram"], wide.T @ wide, rtol=1e-12)
    assert int(answer.update["rows"]) == answer.rows == 30


def second_moments(features: int = 4) -> bytes:
    """Return the statistics task of the sum over rows of x x', and their number."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=DOUBLE),
        helper.make_node("Transpose", ["wide"], ["tall"], perm=[1, 0]),
        helper.make_node("MatMul", ["tall", "wide"], ["gram"]),
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Gather", ["shape", "first"], ["rows"]),
    ]
    outputs: list[Any] = [("gram", DOUBLE, [features, features]), ("rows", INT64, [])]
    inputs: list[Any] = [("x", FLOAT, ["n", features])]
    return model(nodes, inputs, outputs=outputs, weights={"first": np.array(0, np.int64)})
