"""Shipping a release in steps, decided purely: reports and time in, `Assign` effects out.

The first group is the canary. When it has succeeded, the rest follows, at most `in_flight` at once.
A failed canary, or more failures than tolerated, halts: whoever was not assigned keeps what it runs,
whoever was may finish. Every assigned device has a deadline, so a rollout always ends.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from edgeml_runtime.wire.messages import TERMINAL, JobStatus

ASSIGNED = frozenset({"QUEUED", "IN_PROGRESS"})


class Phase(StrEnum):
    CANARY = "CANARY"
    REST = "REST"
    HALTING = "HALTING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"

    @property
    def ended(self) -> bool:
        return self in (Phase.SUCCEEDED, Phase.FAILED)


TRANSITIONS = {
    (Phase.CANARY, "group done"): Phase.REST,
    (Phase.CANARY, "too many failures"): Phase.HALTING,
    (Phase.REST, "too many failures"): Phase.HALTING,
    (Phase.REST, "group done"): Phase.SUCCEEDED,
    (Phase.HALTING, "group done"): Phase.FAILED,
}


@dataclass(frozen=True, kw_only=True)
class Policy:
    canary: int = 1  # devices of the first group; each of them must succeed
    tolerated: float = 0.1  # share of all devices that may fail, rounded down
    in_flight: int = 100  # devices that work at the same time, so that their pulls do not drown the broker
    deadline_s: float = 600.0  # from the assignment; silence is failure


@dataclass(frozen=True)
class Assign:
    """Effect: tell `device` what to run."""

    device: str


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where one device stands: WAITING for its turn, or a job state of the wire."""

    state: str = "WAITING"
    step: str = ""
    progress: float = 0.0
    reason: str = ""
    detail: str = ""

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    @property
    def failed(self) -> bool:
        return self.ended and self.state != "SUCCEEDED"


class Rollout:
    """The server's side of one rollout; `devices` are in the order in which they get their turn."""

    def __init__(self, job: str, devices: Iterable[str], *, policy: Policy | None = None) -> None:
        self.job, self.policy, self.phase = job, policy or Policy(), Phase.CANARY
        self.devices: dict[str, Progress] = {device: Progress() for device in devices}
        self.detail = ""
        self.version = 0  # grows with every change: whoever writes progress down knows when
        self._waiting = deque(self.devices)
        self._due: OrderedDict[str, float] = OrderedDict()  # assigned and not ended, oldest first
        self._count = Counter({"WAITING": len(self.devices)})

    @classmethod
    def resume(cls, job: str, known: Mapping[str, Progress], *, policy: Policy | None = None) -> Rollout:
        """Return a rollout as a stopped server left it; whoever was at work is assigned anew in its turn."""
        rollout = cls(job, known, policy=policy)
        for device, progress in known.items():
            if progress.ended:
                rollout._set(device, progress)
        rollout._waiting = deque(device for device, progress in known.items() if not progress.ended)
        return rollout

    def start(self, now: float) -> list[Assign]:
        """Return the first assignments."""
        return self._advance(now)

    def reported(self, device: str, status: JobStatus, *, now: float) -> list[Assign]:
        """Take what `device` says about a job; another job, another device or a second end changes nothing."""
        known = self.devices.get(device)
        if status.job != self.job or known is None or known.ended:
            return []
        if known.state == "WAITING":  # a server that was stopped hears of what it had assigned
            if status.state not in TERMINAL:
                return []
            self._waiting.remove(device)
        fresh = Progress(
            state=status.state,
            step=status.step,
            progress=status.progress,
            reason=status.reason,
            detail=status.detail,
        )
        if fresh == known:
            return []
        self._set(device, fresh)
        return self._advance(now)

    def superseded(self, device: str, by: str, *, now: float) -> list[Assign]:
        """Another rollout has taken `device`: this one will not hear of it again."""
        known = self.devices.get(device)
        if known is None or known.state not in ASSIGNED:
            return []
        detail = f"rollout {by} took this device"
        self._set(device, replace(known, state="CANCELED", reason="Superseded", detail=detail))
        return self._advance(now)

    def tick(self, now: float) -> list[Assign]:
        """Fail whoever is past its deadline."""
        late = False
        while self._due and next(iter(self._due.values())) <= now:
            device = next(iter(self._due))
            known = self.devices[device]
            where = f"last heard: {known.state} {known.step}".rstrip()
            detail = f"no end within {self.policy.deadline_s:g} s, {where}; see whether it is switched on and online"
            self._set(device, replace(known, state="TIMED_OUT", reason="Deadline", detail=detail))
            late = True
        return self._advance(now) if late else []

    @property
    def counts(self) -> Mapping[str, int]:
        """Devices by state."""
        return {state: count for state, count in self._count.items() if count}

    @property
    def failures(self) -> int:
        return sum(count for state, count in self._count.items() if state in TERMINAL and state != "SUCCEEDED")

    def _set(self, device: str, progress: Progress) -> None:
        self.version += 1
        self._count[self.devices[device].state] -= 1
        self._count[progress.state] += 1
        self.devices[device] = progress
        if progress.ended:
            self._due.pop(device, None)

    def _step(self, event: str) -> bool:
        before, self.phase = self.phase, TRANSITIONS.get((self.phase, event), self.phase)
        return self.phase is not before

    def _advance(self, now: float) -> list[Assign]:
        """Move through the phases as far as the counts allow and hand out what is due."""
        effects: list[Assign] = []
        moved = True
        while moved:
            if self._too_many_failures():
                self._step("too many failures")
            effects += self._hand_out(now)
            moved = self._group_done() and self._step("group done")
        if self.phase.ended and not self.detail:
            self._end()
        return effects

    def _started(self) -> int:
        return len(self.devices) - len(self._waiting)

    def _group_done(self) -> bool:
        if self.phase is Phase.CANARY:
            return not self._due and self._started() >= min(self.policy.canary, len(self.devices))
        return not self._due and (not self._waiting or self.phase is Phase.HALTING)

    def _too_many_failures(self) -> bool:
        if self.phase is Phase.CANARY and self.failures:
            return True
        return self.failures > int(self.policy.tolerated * len(self.devices))

    def _hand_out(self, now: float) -> list[Assign]:
        goal = {Phase.CANARY: self.policy.canary, Phase.REST: len(self.devices)}.get(self.phase, 0)
        effects = []
        while self._waiting and self._started() < goal and len(self._due) < self.policy.in_flight:
            device = self._waiting.popleft()
            self._due[device] = now + self.policy.deadline_s
            self._set(device, Progress(state="QUEUED"))
            effects.append(Assign(device))
        return effects

    def _end(self) -> None:
        failed = [(device, progress) for device, progress in self.devices.items() if progress.failed]
        total = len(self.devices)
        if not failed:
            self.detail = f"{total} of {total} devices run it"
            return
        why = "; ".join(f"{device}: {_reason(progress)}" for device, progress in failed[:3])
        more = f"; and {len(failed) - 3} more" if len(failed) > 3 else ""
        untouched = f", {len(self._waiting)} were left as they are" if self._waiting else ""
        self.detail = f"{len(failed)} of {total} devices failed{untouched}: {why}{more}"


def _reason(progress: Progress) -> str:
    return " ".join(part for part in (progress.state, progress.reason, progress.detail) if part)
