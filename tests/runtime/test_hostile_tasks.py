"""Tasks that try to carry rows away, or to take the device down: each is refused in one sentence, or bounded."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgeml_runtime.config import SAMPLES, TASKS
from edgeml_runtime.errors import TaskRefused
from edgeml_runtime.ledger import Ledger
from edgeml_runtime.samples import Samples
from edgeml_runtime.task_child import LOG, Ran, TaskChild, perform
from edgeml_runtime.wire import blocks, tensors
from tests.runtime.graphs import FLOAT
from tests.runtime.hostile_kit import COUNTED, GREEDY, SUMS, UPDATES, WIDTH, N, a_graph, an_order, node, stolen
from tests.runtime.hostile_kit import state as state
from tests.runtime.test_agent_rounds import softmax_regression
from tests.runtime.test_task import second_moments


def refused(state: Path, ran: Ran, why: str) -> None:
    """Assert that it was refused in one line for this reason, and that no row was read: a run is noted before."""
    with pytest.raises(TaskRefused, match=why):
        raise TaskRefused(ran.detail)
    assert ran.reason in ("TaskRefused", "ModelRefused") and "\n" not in ran.detail
    assert Ledger(state / TASKS / LOG).entries() == []


@pytest.mark.parametrize("name", SUMS)
def test_a_sum_that_would_carry_rows_away_is_refused(state: Path, name: str) -> None:
    graph, why = SUMS[name]
    refused(state, perform(state, an_order(state, graph)), why)


@pytest.mark.parametrize("name", UPDATES)
def test_an_update_that_would_carry_rows_away_is_refused(state: Path, name: str) -> None:
    graph, why = UPDATES[name]
    refused(state, perform(state, an_order(state, graph, "training")), why)


def test_constants_are_bounded_together(state: Path) -> None:
    heavy = numpy_helper.from_array(np.zeros(1 << 18, np.float32), "heavy")
    model = onnx.load_model_from_string(second_moments(WIDTH))
    model.graph.initializer.append(heavy)
    refused(state, perform(state, an_order(state, model.SerializeToString())), "'heavy' alone 1,048,576; 1,048,576 are")


def test_a_constant_of_another_file_is_refused(state: Path) -> None:
    model = onnx.load_model_from_string(a_graph([node("Identity", ["secret"], ["stolen"])], stolen(4)))
    secret = onnx.TensorProto(name="secret", dims=[4], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    secret.external_data.add(key="location", value="../samples.db")
    model.graph.initializer.append(secret)
    refused(
        state, perform(state, an_order(state, model.SerializeToString())), "'secret' would be read from another file"
    )


def test_functions_of_its_own_are_refused(state: Path) -> None:
    model = onnx.load_model_from_string(second_moments(WIDTH))
    model.functions.append(helper.make_function("mine", "F", ["a"], ["b"], [node("Identity", ["a"], ["b"])], []))
    refused(state, perform(state, an_order(state, model.SerializeToString())), "functions of its own")


def test_the_owner_may_allow_fewer_operators(state: Path) -> None:
    order = an_order(state, second_moments(WIDTH), operators=("Cast", "Transpose", "Shape", "Gather"))
    refused(state, perform(state, order), "the operator MatMul, which is not on")


@pytest.mark.parametrize(("graph", "kind"), [(second_moments(WIDTH), "statistics"), (softmax_regression(), "training")])
def test_an_honest_task_runs_and_is_noted(state: Path, graph: bytes, kind: str) -> None:
    ran = perform(state, an_order(state, graph, kind))
    assert (ran.reason, ran.rows) == ("", N)
    (entry,) = Ledger(state / TASKS / LOG).entries()
    assert (entry["round"], entry["kind"], entry["graph"]) == ("r-1", kind, blocks.digest_of(graph))


def test_what_no_check_of_a_graph_can_stop(state: Path) -> None:
    """Rows picked by what is in them are a sum over rows. Only the owner's policy holds: see docs/agent.md, Trust."""
    greedy = a_graph(
        [
            node("Gather", ["numeric", "first"], ["cell"], axis=1),
            node("GreaterOrEqual", ["cell", "thousand"], ["is_it"]),
            node("Cast", ["is_it"], ["mask"], to=FLOAT),
            node("Unsqueeze", ["mask", "zero"], ["as_row"]),
            node("MatMul", ["as_row", "numeric"], ["stolen"]),
        ],
        stolen(1, WIDTH),
    )
    samples = Samples(state / SAMPLES)
    samples.add({"numeric": np.full(WIDTH, 1234, np.float32)}, now=1.0)
    samples.close()
    assert perform(state, an_order(state, greedy)).reason == ""
    update = tensors.unpack((state / TASKS / "update.safetensors").read_bytes())
    np.testing.assert_array_equal(update["stolen"], np.full((1, WIDTH), 1234))


def test_time_and_memory_are_bounded_and_the_next_task_runs(state: Path) -> None:
    child = TaskChild(state, memory=700 << 20)
    try:
        start = time.monotonic()
        with pytest.raises(TaskRefused, match="Timeout: not done within 2 s"):
            child.run(an_order(state, COUNTED), max_s=2.0)
        assert time.monotonic() - start < 20
        with pytest.raises(TaskRefused, match=r"memory|bad_alloc|OutOfMemory"):
            child.run(an_order(state, GREEDY), max_s=20.0)
        ran, update = child.run(an_order(state, second_moments(WIDTH)), max_s=20.0)
        assert ran.rows == N and set(tensors.unpack(update)) == {"gram", "rows"}
        assert not (state / TASKS / "update.safetensors").exists()
    finally:
        child.close()
