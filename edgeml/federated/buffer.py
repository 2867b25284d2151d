"""Rounds without waiting, as a pure state machine: FedBuff (arXiv 2106.06639).

    a device is asked for the newest version -> it trains -> its update goes into the buffer
    K updates in the buffer -> a step: parameters += server step of (sum_i delta_i / sqrt(1 + s_i) / K), version += 1

s is the staleness of an update: how many steps the server made since the device was asked. A device trains at most
once on a version, so a step is also made below K when nobody is at work any more, or at the deadline, if the quorum
is there; without one the step is abandoned and everybody is asked again. It never hangs. Time is an argument.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeml.errors import UserError
from edgeml.federated.aggregate import apply_delta
from edgeml.federated.cohort import Candidate, CohortOptions, objection
from edgeml.federated.roll import MAX_STRANGERS, OTHERS, State
from edgeml.federated.round import Check
from edgeml.federated.server_step import Memory, ServerStep, take
from edgeml.federated.updates import BadUpdate, Update, check_update, fault_of
from edgeml_runtime.wire import WireError

ANYBODY, AS_IT_IS = CohortOptions(), ServerStep()


@dataclass(frozen=True, kw_only=True)
class BufferOptions:
    """How many updates make a step, how old they may be, and how many devices are at work at once."""

    size: int = 10  # K
    max_staleness: int = 20  # steps; older updates are not taken
    at_once: int = 0  # devices at work; 0: all that may

    def __post_init__(self) -> None:
        if self.size < 1 or self.max_staleness < 0 or self.at_once < 0:
            raise UserError(
                f"a buffer of {self.size}, max_staleness {self.max_staleness}, at_once {self.at_once}: choose 1 or "
                f"more for the first, 0 or more for the others"
            )


@dataclass(frozen=True, kw_only=True)
class Ticket:
    """One device at work on one version."""

    device: str
    version: int
    asked: float
    deadline: float


@dataclass(frozen=True)
class Held:
    """An update in the buffer."""

    update: Update
    staleness: int

    @property
    def weight(self) -> float:
        return 1 / math.sqrt(1 + self.staleness)


@dataclass(frozen=True, kw_only=True)
class Step:
    """What became of one filling of the buffer; the `number`th, abandoned ones counted."""

    number: int
    state: State
    why: str
    held: tuple[Held, ...]  # by device
    refused: Mapping[str, str]
    silent: tuple[str, ...]  # asked, and not heard of by now: their updates may still come
    rejected: Mapping[str, Mapping[str, int]]
    seconds: float


TRANSITIONS = {
    "buffer full": State.CLOSED,
    "nobody at work": State.CLOSED,
    "deadline, quorum reached": State.CLOSED,
    "deadline, quorum missed": State.ABANDONED,
    "quorum impossible": State.ABANDONED,
}


class Buffer:
    """The server's side of an asynchronous federation, from version 0."""

    def __init__(
        self,
        options: BufferOptions,
        *,
        quorum: int,
        min_rows: int,
        deadline_s: float,
        parameters: Mapping[str, np.ndarray],
        now: float,
        cohort: CohortOptions = ANYBODY,
        server: ServerStep = AS_IT_IS,
        check: Check | None = None,
    ) -> None:
        if not 1 <= quorum <= options.size:
            raise UserError(f"a quorum of {quorum} for a buffer of {options.size} updates; choose 1 to {options.size}")
        self.options, self.quorum, self.min_rows, self.deadline_s = options, quorum, min_rows, deadline_s
        self.parameters: dict[str, np.ndarray] = dict(parameters)
        self.memory, self.began = Memory(), now
        self.version, self.steps = 0, 0  # steps also counts those that were abandoned
        self.tickets: dict[str, Ticket] = {}  # by device
        self.lost_devices: set[str] = set()
        self.seen: dict[str, int] = {}  # device -> the newest version that it has answered
        self.held: dict[str, Held] = {}
        self.refused: dict[str, str] = {}
        self.rejected: dict[str, Counter[str]] = {}
        self._cohort, self._server = cohort, server
        self._check = check or functools.partial(check_update, parameters=self.parameters)

    def ask(self, candidates: Sequence[Candidate], now: float) -> tuple[str, ...]:
        """Return the devices, newly, that shall train on the present version: those that are idle and may."""
        at_work = len(self.tickets.keys() - self.lost_devices)
        room = self.options.at_once - at_work if self.options.at_once else len(candidates)
        idle = sorted((one for one in candidates if self._is_idle(one)), key=lambda one: self._turn(one.device))
        chosen = tuple(one.device for one in idle[: max(0, room)])
        for device in chosen:
            deadline = now + self.deadline_s
            self.tickets[device] = Ticket(device=device, version=self.version, asked=now, deadline=deadline)
        return chosen

    def receive(self, update: Update, *, version: int) -> str:
        """Take the update of a device to `version`; return "" or the fault it is counted as."""
        device = update.device
        if fault := self.unwelcome(device, version):
            return self.count(device, fault)
        try:
            if update.rows < self.min_rows:
                raise BadUpdate("rows", f"{update.rows} rows of {device}; need {self.min_rows}")
            delta = self._check(update.delta)
        except WireError as error:
            return self.invalid(device, error, version=version)
        self._answered(device, version)
        self.refused.pop(device, None)
        self.held[device] = Held(dataclasses.replace(update, delta=delta), self.version - version)
        return ""

    def invalid(self, device: str, error: WireError, *, version: int) -> str:
        """Note that `device` sent something that is no update; return the fault it is counted as."""
        fault = self.unwelcome(device, version)
        if not fault:
            self._answered(device, version)
            self.refused[device] = str(error)
        return self.count(device, fault or fault_of(error))

    def refuse(self, device: str, reason: str, *, version: int) -> str:
        """Note that `device` takes no part in this version; return "" or why that was not noted."""
        if fault := self.unwelcome(device, version):
            return self.count(device, fault)
        self._answered(device, version)
        self.refused[device] = reason
        return ""

    def count(self, device: str, fault: str) -> str:
        """Count a fault of `device` and return it."""
        room = len(self.rejected) < MAX_STRANGERS
        self.rejected.setdefault(device if room or device in self.rejected else OTHERS, Counter())[fault] += 1
        return fault

    def lost(self, device: str) -> None:
        """Note that `device` went away: nobody waits for it, but its update is taken when it comes."""
        if device in self.tickets:
            self.lost_devices.add(device)

    def back(self, device: str) -> None:
        """Note that a lost `device` is back."""
        self.lost_devices.discard(device)

    def tick(self, now: float) -> Step | None:
        """Return the step that is due at `now`; `ask` first, or nobody may be at work who could be."""
        for device in [one.device for one in self.tickets.values() if now >= one.deadline]:
            self.refused.setdefault(device, f"no answer within {self.deadline_s:g} s")
            self._drop(device)
        if event := self._due(now):
            return self._step(event, now)
        return None

    def _due(self, now: float) -> str:
        if len(self.held) >= self.options.size:
            return "buffer full"
        enough = len(self.held) >= self.quorum
        if now >= self.began + self.deadline_s:
            return "deadline, quorum reached" if enough else "deadline, quorum missed"
        if self.tickets.keys() - self.lost_devices or not (self.held or self.refused):
            return ""
        if enough:
            return "nobody at work"
        return "" if self.tickets else "quorum impossible"

    def _step(self, event: str, now: float) -> Step:
        state, held = TRANSITIONS[event], tuple(self.held[device] for device in sorted(self.held))
        step = Step(
            number=self.steps + 1,
            state=state,
            why=event,
            held=held,
            refused=dict(self.refused),
            silent=tuple(sorted(self.tickets)),
            rejected={device: dict(counts) for device, counts in sorted(self.rejected.items())},
            seconds=now - self.began,
        )
        if state is State.CLOSED:
            moved, self.memory = take(self._server, mean_of(held), self.memory)
            self.parameters = apply_delta(self.parameters, moved)
            self.version += 1
        else:
            self.seen.clear()  # everybody is asked again, on the same version
            self.tickets.clear()
            self.lost_devices.clear()
        self.steps += 1
        self.held, self.refused, self.rejected, self.began = {}, {}, {}, now
        return step

    def unwelcome(self, device: str, version: int) -> str:
        """Return what an update of `device` to `version` would be counted as, whatever is in it, or ""."""
        ticket = self.tickets.get(device)
        if ticket is None or ticket.version != version:
            if self.seen.get(device, -1) >= version:
                return "duplicate" if device in self.held else "replayed"
            return "late" if ticket is not None or device in self.refused else "stranger"
        if self.version - version > self.options.max_staleness:
            self._drop(device)
            return "stale"
        return ""

    def _answered(self, device: str, version: int) -> None:
        self.seen[device] = version
        self._drop(device)

    def _drop(self, device: str) -> None:
        self.tickets.pop(device, None)
        self.lost_devices.discard(device)

    def _is_idle(self, one: Candidate) -> bool:
        asked = one.device in self.tickets or one.device in self.held or self.seen.get(one.device, -1) >= self.version
        return not asked and not objection(one, self._cohort, min_rows=self.min_rows)

    def _turn(self, device: str) -> tuple[int, str]:
        return self.seen.get(device, -1), device


def mean_of(held: Sequence[Held]) -> dict[str, np.ndarray]:
    """Return sum_i delta_i / sqrt(1 + s_i) / K, float64, in the order of devices' ids."""
    if not held:
        raise UserError("0 updates in the buffer: at least one device must have trained")
    ordered = sorted(held, key=lambda one: one.update.device)
    change = {}
    for name, like in ordered[0].update.delta.items():
        total = np.zeros(like.shape, np.float64)
        for one in ordered:
            total += one.weight * one.update.delta[name].astype(np.float64)
        change[name] = total / len(ordered)
    return change
