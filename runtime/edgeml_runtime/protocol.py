"""The device's side of a rollout as a pure state machine: events in, effects out, time an argument.

    MANIFEST > CHECKING > BLOBS > INSTALLING > PROBING > TRIAL > SOAKING > SUCCEEDED
    before TRIAL:         failed > FAILED     refused > REJECTED     overdue > TIMED_OUT     superseded > CANCELED
    from TRIAL on, all of these go through ROLLING_BACK, which ends in ROLLED_BACK, TIMED_OUT or CANCELED

An event that TRANSITIONS does not list changes nothing, so outcomes that come late or twice are harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import cast

from edgeml_runtime.wire.messages import Assignment, JobStatus, State, Step

PROGRESS_S = 0.5  # between two reports of progress
MAX_DETAIL = 500  # characters


class Phase(StrEnum):
    """How far a job is; the members up to ROLLING_BACK need a hand that carries them out."""

    IDLE = "IDLE"
    MANIFEST = "MANIFEST"
    CHECKING = "CHECKING"
    BLOBS = "BLOBS"
    INSTALLING = "INSTALLING"
    PROBING = "PROBING"
    TRIAL = "TRIAL"
    SOAKING = "SOAKING"
    ROLLING_BACK = "ROLLING_BACK"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    REJECTED = "REJECTED"
    TIMED_OUT = "TIMED_OUT"
    CANCELED = "CANCELED"
    ROLLED_BACK = "ROLLED_BACK"


STEPS: Mapping[Phase, Step] = {
    Phase.MANIFEST: "DOWNLOADING",
    Phase.CHECKING: "VERIFYING",
    Phase.BLOBS: "DOWNLOADING",
    Phase.INSTALLING: "VERIFYING",
    Phase.PROBING: "PROBING",
    Phase.TRIAL: "TRIAL",
    Phase.SOAKING: "SOAKING",
    Phase.ROLLING_BACK: "TRIAL",
}
BEFORE = (Phase.MANIFEST, Phase.CHECKING, Phase.BLOBS, Phase.INSTALLING, Phase.PROBING)
SERVING = (Phase.TRIAL, Phase.SOAKING)
ENDS: Mapping[str, Phase] = {
    "failed": Phase.FAILED,
    "refused": Phase.REJECTED,
    "overdue": Phase.TIMED_OUT,
    "superseded": Phase.CANCELED,
}
RETREATS: Mapping[str, Phase] = {**ENDS, "failed": Phase.ROLLED_BACK, "refused": Phase.ROLLED_BACK}
TERMINAL = frozenset({*ENDS.values(), Phase.SUCCEEDED, Phase.ROLLED_BACK})

TRANSITIONS: Mapping[tuple[Phase, str], Phase] = {
    **{(phase, "assigned"): Phase.MANIFEST for phase in (Phase.IDLE, *sorted(TERMINAL))},
    (Phase.MANIFEST, "arrived"): Phase.CHECKING,
    (Phase.MANIFEST, "running"): Phase.SOAKING,  # this very release serves already
    (Phase.CHECKING, "verified"): Phase.BLOBS,
    (Phase.BLOBS, "arrived"): Phase.INSTALLING,
    (Phase.INSTALLING, "installed"): Phase.PROBING,
    (Phase.PROBING, "probed"): Phase.TRIAL,
    (Phase.TRIAL, "serving"): Phase.SOAKING,
    (Phase.SOAKING, "soaked"): Phase.SUCCEEDED,
    **{(phase, event): end for phase in BEFORE for event, end in ENDS.items()},
    **{(phase, event): Phase.ROLLING_BACK for phase in SERVING for event in RETREATS},
    (Phase.ROLLING_BACK, "back"): Phase.ROLLED_BACK,  # or the verdict that was reached before
    (Phase.ROLLING_BACK, "failed"): Phase.FAILED,
}


@dataclass(frozen=True)
class Do:
    """Carry out `phase` of `assignment` and tell the machine the outcome."""

    phase: Phase
    assignment: Assignment


@dataclass(frozen=True)
class Save:
    """Put the machine's `record` on the disk before anything else happens."""


@dataclass(frozen=True)
class Report:
    """Publish the device's state with this status."""

    status: JobStatus | None


Effect = Do | Save | Report


@dataclass(frozen=True, kw_only=True)
class Record:
    """What of the machine must survive a power cut, beside the assignment itself."""

    phase: Phase = Phase.IDLE
    verdict: Phase = Phase.ROLLED_BACK  # what ROLLING_BACK ends in
    seq: int = 0  # the highest one seen
    reason: str = ""
    detail: str = ""


class Deployment:
    """One device and at most one job at a time; a newer assignment takes the place of an older one."""

    def __init__(self, assignment: Assignment | None = None, record: Record = Record()) -> None:
        """Start from what an earlier process left; `resume` goes on with it."""
        self.assignment, self.record = assignment, record
        self.progress = 0.0
        self._next: tuple[Assignment, float] | None = None
        self._deadline = self._since = self._reported = 0.0

    @property
    def phase(self) -> Phase:
        return self.record.phase

    @property
    def active(self) -> bool:
        return self.phase in STEPS

    @property
    def status(self) -> JobStatus | None:
        """The job as the wire tells it; None before the first one."""
        if self.assignment is None:
            return None
        state = "IN_PROGRESS" if self.active else self.phase.value
        return JobStatus(
            job=self.assignment.job,
            state=cast(State, state),
            step=STEPS.get(self.phase, ""),
            progress=1.0 if self.phase is Phase.SUCCEEDED else round(self.progress, 4),
            reason=self.record.reason,
            detail=self.record.detail,
        )

    def assign(self, assignment: Assignment, now: float) -> list[Effect]:
        """Take a verified assignment to this device. One seen before is answered by a report and nothing else."""
        if self.assignment is not None and (assignment.seq, assignment.job) == (self.record.seq, self.assignment.job):
            return [Report(self.status)]
        if self._next is not None and assignment == self._next[0]:
            return []
        if objection := self.objection(assignment):
            reply = JobStatus(job=assignment.job, state="REJECTED", reason="MalformedMessage", detail=objection)
            return [Report(reply), Report(self.status)]  # the state that stays is the present one
        if not self.active:
            return self._begin(assignment, now)
        self._next = assignment, now
        why = f"job {assignment.job} took its place"
        return self.outcome("superseded", now, reason="Superseded", detail=why)

    def objection(self, assignment: Assignment) -> str:
        """Return why this assignment is too old to follow, or ""."""
        seen = max(self.record.seq, self._next[0].seq if self._next else 0)
        if assignment.seq > seen:
            return ""
        return (
            f"assignment {assignment.seq} of job {assignment.job} is not newer than {seen}, which this device has "
            f"seen; after a server lost its registry, delete job.json of the device"
        )

    def resume(self, now: float, *, remaining_s: float, crashed: bool = False) -> list[Effect]:
        """Go on after a restart. What is on the disk need not be fetched again; `crashed` blames the new release."""
        if self.assignment is None or not self.active:
            return []
        self._deadline = now + remaining_s
        if self.phase is Phase.ROLLING_BACK:
            return self._enter(Phase.ROLLING_BACK, now)
        if crashed:
            detail = f"the agent died again and again while it served release {self.assignment.release}"
            return self.outcome("failed", now, reason="ModelRefused", detail=detail)
        return self._enter(Phase.MANIFEST, now)

    def outcome(self, event: str, now: float, *, reason: str = "", detail: str = "") -> list[Effect]:
        """Tell the machine how an effect ended, or that something happened meanwhile."""
        after = TRANSITIONS.get((self.phase, event))
        if after is None or self.assignment is None:
            return []
        if after is Phase.ROLLING_BACK:
            self._note(reason, detail, verdict=RETREATS[event])
        elif self.phase is Phase.ROLLING_BACK:
            extra = f"{self.record.detail}; {detail}" if detail else self.record.detail
            self._note(self.record.reason or reason, extra)
            after = self.record.verdict if event == "back" else after
        elif after in TERMINAL:
            self._note(reason, detail)
        return self._enter(after, now) + self._follow(now)

    def advance(self, fraction: float, now: float) -> list[Effect]:
        """Note how much of the bytes is here; report it now and then."""
        self.progress = fraction
        if not self.active or now - self._reported < PROGRESS_S:
            return []
        self._reported = now
        return [Report(self.status)]

    def observe(self, now: float, *, predictions: int, errors: int, last_error: str = "") -> list[Effect]:
        """Judge the release on trial by what it has served since it began to soak."""
        if self.phase is not Phase.SOAKING or self.assignment is None:
            return []
        if errors:
            detail = f"{errors} of {predictions + errors} predictions failed while soaking: {last_error}"
            return self.outcome("failed", now, reason="ModelRefused", detail=detail)
        soaked = predictions >= self.assignment.soak_predictions and now - self._since >= self.assignment.soak_s
        return self.outcome("soaked", now) if soaked else []

    def tick(self, now: float) -> list[Effect]:
        """Let the deadline pass."""
        if not self.active or self.assignment is None or now < self._deadline:
            return []
        step, deadline_s = STEPS[self.phase].lower(), self.assignment.deadline_s
        detail = f"still {step} after {deadline_s:g} s: allow more time, or see what holds it up"
        return self.outcome("overdue", now, reason="TimedOut", detail=detail)

    def _begin(self, assignment: Assignment, now: float) -> list[Effect]:
        self.assignment, self.progress = assignment, 0.0
        self._deadline = now + assignment.deadline_s
        self.record = Record(phase=self.phase, seq=assignment.seq)
        return self._enter(TRANSITIONS[self.phase, "assigned"], now)

    def _enter(self, phase: Phase, now: float) -> list[Effect]:
        assert self.assignment is not None
        self.record = Record(**{**vars(self.record), "phase": phase})
        self._since = self._reported = now
        work: list[Effect] = [Do(phase, self.assignment)] if phase in STEPS else []
        return [Save(), Report(self.status), *work]

    def _follow(self, now: float) -> list[Effect]:
        """Start the assignment that waited for the end of this one."""
        if self.active or self._next is None:
            return []
        (assignment, _), self._next = self._next, None
        return self._begin(assignment, now)

    def _note(self, reason: str, detail: str, *, verdict: Phase | None = None) -> None:
        changes = {"reason": reason, "detail": detail[:MAX_DETAIL], "verdict": verdict or self.record.verdict}
        self.record = Record(**{**vars(self.record), **changes})
