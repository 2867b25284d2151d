"""A study over real agents and a real broker: their sums fit the estimator that scikit-learn fits on all rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.naive_bayes import GaussianNB

from edgeml import tasks
from edgeml.artifacts import OnnxModel, Task
from edgeml.artifacts import Rows as Table
from edgeml.federated import check_outputs
from edgeml.quantize import calibration_points
from edgeml.tasks.program import Columns
from edgeml.tasks.statistics import begin
from edgeml.tasks.study import Study
from edgeml_runtime.session import Session
from edgeml_runtime.wire import signed, topics
from edgeml_runtime.wire import tensors as packing
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.plain import to_plain
from tests.runtime.agent_kit import AgentProcess, Mosquitto, ServerSide, deploy, needs_mosquitto
from tests.runtime.graphs import mlp
from tests.runtime.releases import KEY
from tests.tasks.pooled import rows_of

pytestmark = [pytest.mark.broker, needs_mosquitto]
X, Y = (part[:300] for part in rows_of("digits"))
SHARES = {"pi-1": slice(0, 60), "pi-2": slice(60, 300)}


@pytest.fixture
def fleet(tmp_path: Path, broker: Mosquitto, server: ServerSide) -> Iterator[None]:
    """Run an agent for each share of the digits."""
    agents = {name: AgentProcess(tmp_path, broker.port, device=name) for name in SHARES}
    try:
        for name, agent in agents.items():
            deploy(agent.start(), server, "one", seq=1)
            rows, targets = X[SHARES[name]].tolist(), [str(label) for label in Y[SHARES[name]]]
            told = agent.call("/samples", {"rows": rows, "targets": targets})
            assert told["labelled"] == len(targets)
        yield
    finally:
        for agent in agents.values():
            agent.kill()


def ask(server: ServerSide, task: Task, number: int) -> dict[str, np.ndarray]:
    """Return the sum of what the agents answer to one task."""
    parameters = packing.pack(task.parameters)
    offer = TaskOffer(
        round=f"study-{number}",
        run="study",
        kind=task.kind,
        model="digits",
        cohort=tuple(SHARES),
        graph=server.add(task.data),
        graph_bytes=len(task.data),
        parameters=server.add(parameters),
        parameters_bytes=len(parameters),
        scalars={},
        min_rows=10,
        max_update_bytes=1 << 20,
        deadline_s=30.0,
    )
    server.publish(topics.task(offer.round), signed.sign(to_plain(offer), KEY))
    answers = server.answers(SHARES)
    assert {name: header.refused for name, (header, _) in answers.items()} == dict.fromkeys(SHARES, "")
    checked = [check_outputs(arrays, task.outputs) for _, arrays in answers.values()]
    return {name: np.sum([one[name] for one in checked], axis=0, dtype=np.float64) for name in task.outputs}


def concluded(server: ServerSide, study: Study, numbers: Iterator[int]) -> Any:
    """Return the result of `study` over the fleet, its rounds numbered on."""
    while not study.done:
        study = study.take(ask(server, study.task(), next(numbers)))
    return study.result()


@pytest.mark.usefixtures("fleet")
def test_every_kind_of_study_over_agents_ends_as_on_all_rows(server: ServerSide) -> None:
    numbers, wide = itertools.count(1), X.astype(np.float64)
    found = concluded(server, begin(GaussianNB(), Columns(features=64, classes=tuple(range(10)))), numbers)
    pooled = GaussianNB().fit(wide, Y)
    np.testing.assert_allclose(found.theta_, pooled.theta_, atol=1e-12)
    np.testing.assert_allclose(found.var_, pooled.var_, atol=1e-9)

    model = OnnxModel(mlp(seed=3), "test")
    answers = Session(model.data).run({"numeric": X})
    judged = concluded(server, tasks.evaluation(model, "classification"), numbers)
    assert judged.metric("accuracy").value == pytest.approx(np.mean(answers["label"] == Y), abs=1e-12)

    drifted = concluded(server, tasks.drift(tasks.reference(model, Table({"numeric": X}))), numbers)
    assert drifted.rows == len(X) and drifted.drifted == ()

    graph, tensors = calibration_points(model)
    ranges = concluded(server, tasks.calibration(graph, tensors), numbers)
    assert ranges.ends["numeric"] == (X.min(), X.max())
