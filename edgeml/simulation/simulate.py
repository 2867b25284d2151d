"""The loop: begin a round, have the virtual devices train, feed what they send into the round, conclude, score."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeml.artifacts import Rows
from edgeml.errors import UserError
from edgeml.federated import BufferOptions, Candidate, Federation, Plan, Round, SecureRound
from edgeml.simulation.conditions import Conditions
from edgeml.simulation.crew import Crew
from edgeml.simulation.device import Call, Judged, Reply, update_of
from edgeml.simulation.fleet import MODEL, RUN, Fleet, RoundTold, bytes_down, scores
from edgeml.simulation.flow import Flow
from edgeml.simulation.masked import Exchange, Identities, Spent
from edgeml.simulation.setting import Setting
from edgeml_runtime.wire import MalformedMessage, tensors
from edgeml_runtime.wire.holdout import places
from edgeml_runtime.wire.messages import TaskOffer

FINE, BUFFER = Conditions(), BufferOptions()


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
    buffer: BufferOptions = BUFFER,
    on_round: Callable[[RoundTold], None] | None = None,
) -> Simulated:
    """Run `plan` over the devices of `fleet`; `on_round` is told of every round when it is over.

    Rounds of mode "async" are steps of `buffer`, ordered by the devices' clock: see `edgeml.simulation.flow`.

    Raises UserError when the strategy does not fit the model, or too few devices have rows enough.
    """
    conditions.check(plan)
    shares, held_out = _split(fleet, conditions.held_out)
    rows = {name: len(one) for name, one in shares.items()}
    told: list[RoundTold] = []
    with Crew(shares, held_out, workers=min(conditions.workers, len(shares))) as crew:
        setting = Setting(fleet, plan, conditions, crew, rows)
        loop = Flow(setting, buffer) if plan.mode == "async" else _Loop(setting)
        before = scores(fleet, loop.parameters)
        while not loop.finished:
            told.append(loop.round())
            if on_round is not None:
                on_round(told[-1])
        parameters, judged = loop.parameters, list[Judged]()
        if conditions.held_out or fleet.held_out:
            judged = crew.judge(fleet.model, tensors.pack(parameters), kind=fleet.kind, metric=fleet.metric)
        return Simulated(
            rounds=tuple(told),
            before=before,
            parameters=parameters,
            judged=tuple(judged),
            liars=setting.liars,
            rows=rows,
        )


class _Loop:
    """Rounds that begin and end together."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.fleet, self.plan, self.crew = setting, setting.fleet, setting.plan, setting.crew
        self.rows, self.tasks = setting.rows, setting.tasks
        self.task = self.tasks[self.plan.local_epochs]
        self.federation = Federation(
            RUN, self.plan, model=MODEL, parameters=self.task.parameters, controls=self.task.controls
        )
        self._now = 0.0  # of the machines: only deadlines make it move
        self._have_graph: set[str] = set()
        self._known = Identities(self.rows if self.plan.secure is not None else ())

    @property
    def finished(self) -> bool:
        return self.federation.finished

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        return self.federation.parameters

    def round(self) -> RoundTold:
        """Run one round and return what came of it."""
        began, federation = time.perf_counter(), self.federation
        machine = self._begin()
        offer, blob = federation.offer(self.task)
        calls = self.setting.calls(sorted(machine.cohort), offer, number=len(federation.history))
        masked = self._train(machine, calls, offer=offer, blob=blob)
        if machine.outcome is None:
            self._now = max(self._now, machine.deadline)
        result, outcome = federation.conclude(self._now), machine.outcome
        assert result is not None and outcome is not None
        judged = scores(self.fleet, federation.parameters)
        fresh = machine.cohort - self._have_graph
        self._have_graph |= fresh
        return RoundTold(
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
            metric=judged["metric"],
            loss=judged["loss"],
            loss_before=result.loss_before,
            loss_after=result.loss,
            bytes_up=result.bytes_up,
            bytes_down=bytes_down(offer, blob, asked=len(machine.cohort), fresh=len(fresh)) + masked.bytes_down,
            seconds=time.perf_counter() - began,
            epsilon=result.epsilon,
            bytes_masks=masked.bytes_masks,
        )

    def _begin(self) -> Round | SecureRound:
        federation, before = self.federation, -1
        machine = None
        while machine is None and len(federation.history) > before and not federation.finished:
            before = len(federation.history)  # it grows where chance drew too few: then it draws again
            machine = federation.begin(self._candidates(), self._now)
        if machine is None:
            ready = sum(count >= self.plan.min_rows for count in self.rows.values())
            raise UserError(
                f"{ready} of {len(self.rows)} devices have {self.plan.min_rows} rows or more, and a round needs "
                f"{self.plan.quorum}: lower min_rows or min_devices, or ask for fewer devices"
            )
        return machine

    def _candidates(self) -> list[Candidate]:
        keys = self._known.public
        return [Candidate(device=name, rows=count, key=keys.get(name, "")) for name, count in self.rows.items()]

    def _train(self, machine: Round | SecureRound, calls: Sequence[Call], *, offer: TaskOffer, blob: bytes) -> Spent:
        """Feed every answer into `machine`, in an order that does not depend on the processes."""
        replies = {reply.device: reply for reply in self.crew.train(calls, offer, blob)}
        seed, number = self.plan.seed, len(self.federation.history)
        order = np.random.default_rng([seed, number]).permutation(sorted(replies)).tolist()
        if isinstance(machine, SecureRound):
            falls = self.setting.conditions.falls(sorted(machine.cohort), seed=seed, number=number)
            spent = Exchange(machine, offer, self._known, falls=falls, now=self._now).run(map(replies.pop, order))
            self._now = spent.now
            return spent
        self._receive(machine, map(replies.pop, order))
        return Spent(self._now)

    def _receive(self, machine: Round, replies: Iterable[Reply]) -> None:
        for reply in replies:
            device = reply.device
            if reply.refused:
                machine.refuse(device, reply.refused, self._now)
                continue
            try:
                machine.receive(device, update_of(reply), self._now)
            except MalformedMessage as error:
                machine.invalid(device, error, self._now)


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
