"""What is simulated, and what is told of every round of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeml import graph, metrics, verify
from edgeml.artifacts import ModelTask, OnnxModel, Rows, Task
from edgeml.errors import UserError
from edgeml.federated import Plan
from edgeml.federated.local import task_of
from edgeml.simulation.conditions import Conditions
from edgeml_runtime.wire import messages
from edgeml_runtime.wire.messages import TaskOffer

RUN, MODEL = "simulated", "simulated"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """What is simulated: a model, the rows of every device, and rows of the server to judge on.

    `held_out` are the rows that each device judges its own model on, where they are given and not drawn from its rows.
    """

    model: OnnxModel
    shares: Sequence[Rows]
    valid: Rows
    kind: ModelTask = "classification"
    loss: str = "softmax_cross_entropy"
    metric: str = "accuracy"
    held_out: Sequence[Rows] = ()


@dataclass(frozen=True, kw_only=True)
class RoundTold:
    """One round: `metric` and `loss` are the shared model's on the server's rows, the other losses the devices'."""

    round: int
    state: str
    why: str  # it ended
    participants: tuple[str, ...]
    asked: int
    refused: Mapping[str, str]  # device -> why it took no part
    rejected: Mapping[str, Mapping[str, int]]  # device -> fault -> how often
    silent: tuple[str, ...]
    rows: int
    metric: float
    loss: float
    loss_before: float | None
    loss_after: float | None
    bytes_up: int
    bytes_down: int
    seconds: float  # on this machine, scoring included
    epsilon: float | None = None  # spent until here, with differential privacy
    bytes_masks: int = 0  # of bytes_up and bytes_down, what an open round would not have cost
    held_out: int = 0  # rows of the participants that they did not learn from
    staleness: Mapping[str, int] = field(default_factory=dict)  # device -> steps made since it was asked
    clock_s: float | None = None  # of the devices, since the beginning: what asynchronous steps are ordered by


def tasks_of(fleet: Fleet, plan: Plan, conditions: Conditions) -> dict[int, Task]:
    """Return the task of every number of local epochs that a device may have time for; the last is the plan's."""
    partial = conditions.stragglers > 0 and conditions.partial
    return {
        epochs: task_of(
            plan.row,
            fleet.model,
            loss=fleet.loss,
            momentum=plan.momentum,
            epochs=epochs,
            batch_size=plan.batch_size,
            decay=plan.epoch_decay != 1.0,
        )
        for epochs in range(1 if partial else plan.local_epochs, plan.local_epochs + 1)
    }


def scores(fleet: Fleet, parameters: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the metric and the loss of the shared model on the server's rows."""
    loss = "log_loss" if fleet.kind == "classification" else "rmse"
    answers = verify.run_answers(graph.set_initializers(fleet.model, parameters), Rows(fleet.valid.inputs), fleet.kind)
    if not np.all(np.isfinite(answers.scores)):
        raise UserError("the shared model's answers are not finite: it diverged; lower the learning rate or mu")
    assert fleet.valid.target is not None, "rows to judge on have a target"
    found = metrics.evaluate(fleet.kind, fleet.valid.target, answers, [fleet.metric, loss])
    return {"metric": found[fleet.metric], "loss": found[loss] if loss == "log_loss" else found[loss] ** 2}


def bytes_down(offer: TaskOffer, blob: bytes, *, asked: int, fresh: int) -> int:
    """Return the bytes that devices fetch: the offer and the parameters, and the graph when they have not got it."""
    return (len(messages.encode(offer)) + len(blob)) * asked + offer.graph_bytes * fresh
