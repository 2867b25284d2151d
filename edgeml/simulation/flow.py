"""Asynchronous rounds (FedBuff) of virtual devices: the server's own `Buffer`, over a clock that nobody waits for.

    ask who is idle -> each trains at once, and answers at now + its time -> the next answer or deadline is the next now

A device's time is WAY_S and ROW_S for every row and local epoch, divided by its speed, exp(normal * `speeds`), drawn
once by the plan's seed: with 0.5, one device in six takes 1.65 times as long as the middle one, with 1.0, 2.7 times.
"""

from __future__ import annotations

import functools
import heapq
import time
from collections.abc import Mapping, Sequence

import numpy as np

from edgeml.errors import UserError
from edgeml.federated import Buffer, BufferOptions, Candidate, State, Step, check_upload, make_offer, mean_told
from edgeml.federated.combinations import check_plan
from edgeml.simulation.device import Call, Reply, update_of
from edgeml.simulation.fleet import MODEL, RUN, RoundTold, bytes_down, scores
from edgeml.simulation.setting import Setting
from edgeml_runtime.wire import MalformedMessage
from edgeml_runtime.wire.tasks import LOSS_AFTER, LOSS_BEFORE

ROW_S, WAY_S = 1e-3, 0.1
_SPEED = 3  # what a draw is for; `conditions` has the others
Answer = tuple[float, str, int, Reply]  # when, who, on which version, what


class Flow:
    """One simulation, step by step; `now` is the devices' clock, in seconds."""

    def __init__(self, setting: Setting, options: BufferOptions) -> None:
        plan = setting.plan
        check_plan(plan)
        self.setting, self.plan, self.now = setting, plan, 0.0
        self.task = setting.tasks[plan.local_epochs]
        self.buffer = Buffer(
            options,
            quorum=plan.min_devices,
            min_rows=plan.min_rows,
            deadline_s=plan.deadline_s,
            parameters=self.task.parameters,
            now=0.0,
            cohort=plan.cohort,
            server=plan.row.server,
            check=functools.partial(check_upload, plan=plan, parameters=self.task.parameters),
        )
        names = sorted(setting.rows)
        spread = np.random.default_rng([_SPEED, plan.seed]).normal(size=len(names)) * setting.conditions.speeds
        self.speeds = dict(zip(names, np.exp(spread).tolist(), strict=True))
        self._candidates = [Candidate(device=name, rows=setting.rows[name]) for name in names]
        self._epochs = {task.digest: epochs for epochs, task in setting.tasks.items()}
        self._coming: list[Answer] = []
        self._have_graph: set[str] = set()
        self._asks = self._down = self._abandoned = 0

    @property
    def finished(self) -> bool:
        return self.buffer.version >= self.plan.rounds or self._abandoned >= self.plan.max_abandoned

    @property
    def parameters(self) -> Mapping[str, np.ndarray]:
        return self.buffer.parameters

    def round(self) -> RoundTold:
        """Go on to the next step and return what came of it."""
        began = time.perf_counter()
        while True:
            if asked := self.buffer.ask(self._candidates, self.now):
                self._train(asked)
            if (step := self.buffer.tick(self.now)) is not None:
                break
            if not self.buffer.tickets and not self.buffer.held:
                raise self._nobody()
            self._next()
        self._abandoned = 0 if step.state is State.CLOSED else self._abandoned + 1
        return self._told(step, seconds=time.perf_counter() - began)

    def _train(self, asked: Sequence[str]) -> None:
        """Have devices train on the present version; what they send comes when each of them is done."""
        buffer, self._asks = self.buffer, self._asks + 1
        offer, blob = make_offer(
            self.plan,
            self.task,
            parameters=buffer.parameters,
            round=f"{RUN}-{buffer.version + 1}",
            model=MODEL,
            cohort=asked,
            number=buffer.version,
            deadline_s=self.plan.deadline_s,
        )
        fresh = set(asked) - self._have_graph
        self._have_graph |= fresh
        self._down += bytes_down(offer, blob, asked=len(asked), fresh=len(fresh))
        self._coming = [one for one in self._coming if one[1] not in asked]  # what they were at is left for this
        heapq.heapify(self._coming)
        calls = {call.device: call for call in self.setting.calls(sorted(asked), offer, number=self._asks)}
        for reply in self.setting.crew.train(list(calls.values()), offer, blob):
            at = self.now + self.takes(calls[reply.device])
            heapq.heappush(self._coming, (at, reply.device, buffer.version, reply))

    def takes(self, call: Call) -> float:
        """Return how many seconds a device needs for what it is asked, the way there and back included."""
        work = WAY_S + ROW_S * self.setting.rows[call.device] * self._epochs[call.graph]
        return float(work / self.speeds[call.device])

    def _next(self) -> None:
        """Let the clock go on to what comes next: an answer, which the buffer takes, or a deadline."""
        buffer = self.buffer
        deadlines = [buffer.began + self.plan.deadline_s, *(one.deadline for one in buffer.tickets.values())]
        due = min(at for at in deadlines if at > self.now)
        if not self._coming or self._coming[0][0] > due:
            self.now = due
            return
        self.now, device, version, reply = heapq.heappop(self._coming)
        if reply.refused:
            buffer.refuse(device, reply.refused, version=version)
            return
        try:
            buffer.receive(update_of(reply), version=version)
        except MalformedMessage as error:
            buffer.invalid(device, error, version=version)

    def _told(self, step: Step, *, seconds: float) -> RoundTold:
        updates = [one.update for one in step.held]
        down, self._down = self._down, 0
        judged = scores(self.setting.fleet, self.buffer.parameters)
        return RoundTold(
            round=step.number,
            state=step.state.value,
            why=step.why,
            participants=tuple(one.device for one in updates),
            asked=len(step.held) + len(step.refused) + len(step.silent),
            refused=step.refused,
            rejected=step.rejected,
            silent=step.silent,
            rows=sum(one.rows for one in updates),
            held_out=sum(one.held_out for one in updates),
            metric=judged["metric"],
            loss=judged["loss"],
            loss_before=mean_told(updates, LOSS_BEFORE),
            loss_after=mean_told(updates, LOSS_AFTER),
            bytes_up=sum(one.size for one in updates),
            bytes_down=down,
            seconds=seconds,
            staleness={one.update.device: one.staleness for one in step.held},
            clock_s=self.now,
        )

    def _nobody(self) -> UserError:
        ready = sum(count >= self.plan.min_rows for count in self.setting.rows.values())
        return UserError(
            f"{ready} of {len(self.setting.rows)} devices have {self.plan.min_rows} rows or more, and a step needs "
            f"{self.plan.min_devices}: lower min_rows or min_devices, or ask for fewer devices"
        )
