"""The loop: begin a round, have the virtual devices train, feed what they send into the round, conclude, score."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeml import graph, metrics, verify
from edgeml.artifacts import ModelTask, OnnxModel, Rows, Task
from edgeml.errors import UserError
from edgeml.federated import Federation, Plan, Round, Update
from edgeml.federated.local import task_of
from edgeml.simulation.conditions import Conditions
from edgeml.simulation.crew import Crew
from edgeml.simulation.device import Call, Judged
from edgeml_runtime.wire import MalformedMessage, messages, tensors
from edgeml_runtime.wire.holdout import places
from edgeml_runtime.wire.messages import TaskOffer

RUN, MODEL = "simulated", "simulated"
FINE = Conditions()


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
    held_out: int = 0  # rows of the participants that they did not learn from


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What came of it. `judged` is empty unless rows were held out on the devices."""

    rounds: tuple[RoundTold, ...]
    before: Mapping[str, float]  # metric and loss
    parameters: Mapping[str, np.ndarray]
    judged: tuple[Judged, ...]
    liars: frozenset[str]
    rows: Mapping[str, int]  # of every device

    @property
    def personal(self) -> tuple[float, float]:
        """The mean metric over held-out rows of all devices: of their own models, of the shared one."""
        weights = [one.rows for one in self.judged]
        own = float(np.average([one.own for one in self.judged], weights=weights))
        return own, float(np.average([one.shared for one in self.judged], weights=weights))


def simulate(
    fleet: Fleet,
    plan: Plan,
    conditions: Conditions = FINE,
    *,
    on_round: Callable[[RoundTold], None] | None = None,
) -> Simulated:
    """Run `plan` over the devices of `fleet`; `on_round` is told of every round when it is over.

    Raises UserError when the strategy does not fit the model, or too few devices have rows enough.
    """
    if plan.secure is not None:
        raise UserError("secure aggregation is not simulated: leave it out; the sums are the same without masks")
    shares, held_out = _split(fleet, conditions.held_out)
    with Crew(shares, held_out, workers=min(conditions.workers, len(shares))) as crew:
        loop = _Loop(fleet, plan, conditions, crew=crew, rows={name: len(one) for name, one in shares.items()})
        before = scores(fleet, loop.federation.parameters)
        while not loop.federation.finished:
            told = loop.round()
            if on_round is not None:
                on_round(told)
        return loop.result(before)


class _Loop:
    def __init__(
        self, fleet: Fleet, plan: Plan, conditions: Conditions, *, crew: Crew, rows: Mapping[str, int]
    ) -> None:
        self.fleet, self.plan, self.conditions, self.crew, self.rows = fleet, plan, conditions, crew, rows
        partial = conditions.stragglers > 0 and conditions.partial
        self.tasks = {e: self._task(e) for e in (range(1, plan.local_epochs + 1) if partial else [plan.local_epochs])}
        self.task = self.tasks[plan.local_epochs]
        self.federation = Federation(
            RUN, plan, model=MODEL, parameters=self.task.parameters, controls=self.task.controls
        )
        self.liars = conditions.liars(sorted(rows), plan.seed)
        self.told: list[RoundTold] = []
        self._now = 0.0  # of the machines: only deadlines make it move
        self._have_graph: set[str] = set()

    def _task(self, epochs: int) -> Task:
        plan = self.plan
        return task_of(
            plan.row,
            self.fleet.model,
            loss=self.fleet.loss,
            momentum=plan.momentum,
            epochs=epochs,
            batch_size=plan.batch_size,
            decay=plan.epoch_decay != 1.0,
        )

    def round(self) -> RoundTold:
        """Run one round and return what came of it."""
        began, federation = time.perf_counter(), self.federation
        machine = self._begin()
        offer, blob = federation.offer(self.task)
        for task in self.tasks.values():
            self.crew.load(task.digest, task.data, max_update_bytes=offer.max_update_bytes)
        graphs = {epochs: task.digest for epochs, task in self.tasks.items()}
        seed, number = self.plan.seed, len(federation.history)
        calls = self.conditions.calls(sorted(machine.cohort), graphs, liars=self.liars, seed=seed, number=number)
        self._train(machine, calls, offer=offer, blob=blob)
        if machine.outcome is None:
            self._now = max(self._now, machine.deadline)
        result, outcome = federation.conclude(self._now), machine.outcome
        assert result is not None and outcome is not None
        fresh = machine.cohort - self._have_graph
        self._have_graph |= fresh
        told = RoundTold(
            round=len(federation.history),
            state=result.state,
            why=result.why,
            participants=result.participants,
            asked=len(machine.cohort),
            refused=outcome.refused,
            rejected=outcome.rejected,
            silent=outcome.silent,
            rows=sum(update.rows for update in outcome.updates),
            held_out=sum(update.held_out for update in outcome.updates),
            **scores(self.fleet, federation.parameters),
            loss_before=result.loss_before,
            loss_after=result.loss,
            bytes_up=result.bytes_up,
            bytes_down=_down(offer, blob, asked=len(machine.cohort), fresh=len(fresh)),
            seconds=time.perf_counter() - began,
            epsilon=result.epsilon,
        )
        self.told.append(told)
        return told

    def _begin(self) -> Round:
        federation, before = self.federation, -1
        machine = None
        while machine is None and len(federation.history) > before and not federation.finished:
            before = len(federation.history)  # it grows where chance drew too few: then it draws again
            machine = federation.begin(self.rows, self._now)
        if machine is None:
            ready = sum(count >= self.plan.min_rows for count in self.rows.values())
            raise UserError(
                f"{ready} of {len(self.rows)} devices have {self.plan.min_rows} rows or more, and a round needs "
                f"{self.plan.quorum}: lower min_rows or min_devices, or ask for fewer devices"
            )
        assert isinstance(machine, Round), "plans with masks are refused before"
        return machine

    def _train(self, machine: Round, calls: Sequence[Call], *, offer: TaskOffer, blob: bytes) -> None:
        """Feed every answer into `machine`, in an order that does not depend on the processes."""
        replies = {reply.device: reply for reply in self.crew.train(calls, offer, blob)}
        rng = np.random.default_rng([self.plan.seed, len(self.federation.history)])
        for device in rng.permutation(sorted(replies)).tolist():
            reply = replies.pop(device)
            if reply.refused:
                machine.refuse(device, reply.refused, self._now)
                continue
            try:
                arrays = tensors.unpack(reply.body)
            except MalformedMessage as error:
                machine.invalid(device, error, self._now)
                continue
            update = Update(device, reply.rows, arrays, metrics=reply.metrics, size=len(reply.body))
            machine.receive(device, update, self._now)

    def result(self, before: Mapping[str, float]) -> Simulated:
        """Return what came of all rounds."""
        fleet, parameters = self.fleet, self.federation.parameters
        judged: list[Judged] = []
        if self.conditions.held_out or fleet.held_out:
            judged = self.crew.judge(fleet.model, tensors.pack(parameters), kind=fleet.kind, metric=fleet.metric)
        return Simulated(
            rounds=tuple(self.told),
            before=before,
            parameters=parameters,
            judged=tuple(judged),
            liars=self.liars,
            rows=self.rows,
        )


def scores(fleet: Fleet, parameters: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the metric and the loss of the shared model on the server's rows."""
    loss = "log_loss" if fleet.kind == "classification" else "rmse"
    answers = verify.run_answers(graph.set_initializers(fleet.model, parameters), Rows(fleet.valid.inputs), fleet.kind)
    if not np.all(np.isfinite(answers.scores)):
        raise UserError("the shared model's answers are not finite: it diverged; lower the learning rate or mu")
    assert fleet.valid.target is not None, "rows to judge on have a target"
    found = metrics.evaluate(fleet.kind, fleet.valid.target, answers, [fleet.metric, loss])
    return {"metric": found[fleet.metric], "loss": found[loss] if loss == "log_loss" else found[loss] ** 2}


def processes() -> int:
    """Return how many workers this machine has cores for."""
    return len(os.sched_getaffinity(0))


def _split(fleet: Fleet, part: float) -> tuple[dict[str, Rows], dict[str, Rows]]:
    """Return the rows to learn from and those held out, by device: the fleet's own, or as agents hold them out."""
    count = len(fleet.shares)
    names = [f"device-{i:0{len(str(max(0, count - 1)))}}" for i in range(count)]
    if fleet.held_out:
        if part or len(fleet.held_out) != count:
            raise UserError(
                f"rows held out are given for {len(fleet.held_out)} of {count} devices, and {part:g} of their "
                f"rows are to be drawn: give them for every device and draw none, or give none"
            )
        return dict(zip(names, fleet.shares, strict=True)), dict(zip(names, fleet.held_out, strict=True))
    learn, held = {}, {}
    for name, rows in zip(names, fleet.shares, strict=True):
        aside = places(rows.inputs) < part if part else np.zeros(len(rows), bool)
        learn[name], held[name] = rows.take(np.flatnonzero(~aside)), rows.take(np.flatnonzero(aside))
    return learn, held


def _down(offer: TaskOffer, blob: bytes, *, asked: int, fresh: int) -> int:
    """Return the bytes that devices fetch: the offer and the parameters, and the graph when they have not got it."""
    return (len(messages.encode(offer)) + len(blob)) * asked + offer.graph_bytes * fresh
