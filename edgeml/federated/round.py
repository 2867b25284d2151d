"""One federated round as a pure state machine: who answered, and when it is over.

    OPEN -> CLOSED      every device answered, the target is reached, or the deadline passed, with a quorum of updates
    OPEN -> ABANDONED   the deadline passed below the quorum, or the quorum became impossible

Time is an argument. What arrives when it should not (twice, late, from a stranger, broken) changes
nothing and is counted per device, with the reason.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from edgeml.errors import UserError
from edgeml.federated.roll import MAX_STRANGERS, OTHERS, Roll, State
from edgeml.federated.updates import BadUpdate, Update, check_update, fault_of
from edgeml_runtime.wire import WireError

Check = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]  # what an update brings -> what is kept of it


TRANSITIONS = {
    (State.OPEN, "all answered"): State.CLOSED,
    (State.OPEN, "target reached"): State.CLOSED,
    (State.OPEN, "deadline, quorum reached"): State.CLOSED,
    (State.OPEN, "deadline, quorum missed"): State.ABANDONED,
    (State.OPEN, "quorum impossible"): State.ABANDONED,
}


class Round(Roll):
    """The server's side of one round over a fixed cohort."""

    def __init__(
        self,
        id: str,
        cohort: frozenset[str],
        *,
        quorum: int,
        opened: float,
        deadline: float,
        parameters: Mapping[str, np.ndarray],
        min_rows: int = 1,
        target: int | None = None,
        check: Check | None = None,
    ) -> None:
        """Open it: it closes at `target` updates (default: when all answered); `check` raises WireError.

        By default an update must be a change of `parameters`.
        """
        if not 1 <= quorum <= len(cohort):
            raise UserError(f"round {id}: a quorum of {quorum} in a cohort of {len(cohort)}; choose 1 to {len(cohort)}")
        if deadline <= opened:
            raise UserError(f"round {id}: the deadline is {opened - deadline:g} s before it opens; give it time")
        super().__init__(id, cohort, quorum=quorum, opened=opened)
        self.deadline, self.min_rows = deadline, min_rows
        self.target = len(cohort) if target is None else max(quorum, min(target, len(cohort)))
        self._check = check or functools.partial(check_update, parameters=parameters)

    def receive(self, device: str, update: Update, now: float) -> str:
        """Take the update of `device`; return "" or why it was not taken."""
        if reason := self._unwelcome(device, now):
            return self._reject(device, reason)
        try:
            if update.rows < self.min_rows or update.device != device:
                raise BadUpdate("rows", f"{update.rows} rows of {update.device}; need {self.min_rows} of {device}")
            delta = self._check(update.delta)
        except WireError as error:
            return self.invalid(device, error, now)
        self.updates[device] = dataclasses.replace(update, delta=delta)
        self.took[device] = now - self.opened
        self.refused.pop(device, None)
        self._settle(now)
        return ""

    def invalid(self, device: str, error: WireError, now: float) -> str:
        """Note that `device` sent something that is no update of this round; return the fault it is counted as."""
        reason = self._unwelcome(device, now)
        if not reason:
            self.refused[device] = str(error)
            self._settle(now)
        return self._reject(device, reason or fault_of(error))

    def refuse(self, device: str, reason: str, now: float) -> str:
        """Note that `device` takes no part, which it may still change; return "" or why that was not noted."""
        if unwelcome := self._unwelcome(device, now):
            return self._reject(device, unwelcome)
        self.refused[device] = reason
        self._settle(now)
        return ""

    def tick(self, now: float) -> State:
        """Return the state at `now`, after the deadline had its say."""
        if now >= self.deadline:
            reached = len(self.updates) >= self.quorum
            self._step("deadline, quorum reached" if reached else "deadline, quorum missed", now)
        return self.state

    def _unwelcome(self, device: str, now: float) -> str:
        if device not in self.cohort:
            return "stranger"
        if self.tick(now) is not State.OPEN:
            return "duplicate" if device in self.updates else "late"
        return "duplicate" if device in self.updates else ""

    def _reject(self, device: str, reason: str) -> str:
        room = len(self.rejected) < MAX_STRANGERS + len(self.cohort)
        name = device if room or device in self.rejected or device in self.cohort else OTHERS
        self.rejected.setdefault(name, Counter())[reason] += 1
        return reason

    def _settle(self, now: float) -> None:
        if len(self.updates) >= self.target and self.target < len(self.cohort):
            self._step("target reached", now)
        elif len(self.updates) >= self.quorum and self._nobody_is_missing():
            self._step("all answered", now)
        elif len(self.cohort) - len(self.refused) < self.quorum:
            self._step("quorum impossible", now)

    def _nobody_is_missing(self) -> bool:
        gone = (
            len(self.updates) + len(self.refused) + len(self.lost_devices)
        )  # cheap, before sets of thousands are made
        return gone >= len(self.cohort) and self.cohort <= self.updates.keys() | self.refused.keys() | self.lost_devices

    def _step(self, event: str, now: float) -> None:
        if (self.state, event) in TRANSITIONS:
            self.state, self.why, self._ended = TRANSITIONS[self.state, event], event, now
