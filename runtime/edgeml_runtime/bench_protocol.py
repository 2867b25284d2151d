"""The device's side of a benchmark as a pure state machine, and what its owner allows.

    IDLE > QUEUED > FETCHING > RUNNING > DONE | REFUSED | FAILED | CANCELED
               `<----- disturbed -----'

Serving has priority: a benchmark begins in a calm moment and goes back to QUEUED, with the reason, when
predictions, a deployment, a round or heat come between. What was finished by then is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from edgeml_runtime.config import BenchLimits, Policy
from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.wire.messages import BenchJob, BenchState, BenchTask

CALM_S = 10.0  # after a disturbance, before another attempt
BEAT_S = 10.0  # between two signs of life while it is not over
COOLER_C = 5.0  # below the limit before it goes on: it heats the board itself
MAX_STARTS = 3  # of the agent while one task runs; one more, and the task is blamed
MAX_DETAIL = 300  # characters


class Phase(StrEnum):
    IDLE = "IDLE"
    QUEUED = "QUEUED"
    FETCHING = "FETCHING"
    RUNNING = "RUNNING"
    DONE = "DONE"
    REFUSED = "REFUSED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


ACTIVE = (Phase.QUEUED, Phase.FETCHING, Phase.RUNNING)
SAID: Mapping[Phase, BenchState] = {  # what the server is told
    Phase.QUEUED: "QUEUED",
    Phase.FETCHING: "RUNNING",
    Phase.RUNNING: "RUNNING",
    Phase.DONE: "DONE",
    Phase.REFUSED: "REFUSED",
    Phase.FAILED: "FAILED",
    Phase.CANCELED: "CANCELED",
}
TRANSITIONS: Mapping[tuple[Phase, str], Phase] = {
    **{(phase, "offered"): Phase.QUEUED for phase in Phase},  # the newest task takes the place of any other
    **{(phase, "declined"): Phase.REFUSED for phase in Phase},
    (Phase.QUEUED, "calm"): Phase.FETCHING,
    (Phase.FETCHING, "arrived"): Phase.RUNNING,
    (Phase.RUNNING, "ran"): Phase.DONE,
    (Phase.RUNNING, "disturbed"): Phase.QUEUED,
    (Phase.FETCHING, "disturbed"): Phase.QUEUED,
    **{(phase, "refused"): Phase.REFUSED for phase in ACTIVE},
    **{(phase, "failed"): Phase.FAILED for phase in ACTIVE},
    **{(phase, "canceled"): Phase.CANCELED for phase in ACTIVE},
    **{(phase, "restarted"): Phase.QUEUED for phase in ACTIVE},
}


@dataclass(frozen=True)
class Save:
    """Have the machine's `record` on the disk before anything else is done."""


@dataclass(frozen=True)
class Report:
    """Tell the server how it stands; with `upload`, send the result too."""

    upload: bool = False


@dataclass(frozen=True)
class Fetch:
    """Have the task's blobs on the disk, then say `arrived`."""

    task: BenchTask


@dataclass(frozen=True)
class Run:
    """Run the jobs that are not done yet in a child, then say `ran`."""

    task: BenchTask


@dataclass(frozen=True)
class Stop:
    """End the child and the download, if any; what is finished stays."""


Effect = Save | Report | Fetch | Run | Stop


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the device is doing at this moment."""

    at_work: str = ""  # "a deployment is under way"
    rate: float = 0.0  # predictions a second, lately
    free_bytes: int = 1 << 40  # of memory
    temperature_c: float | None = None
    throttled: bool = False
    minute: int = 12 * 60  # of the local day


@dataclass(frozen=True, kw_only=True)
class Record:
    """What survives a power cut, beside the task itself."""

    phase: Phase = Phase.IDLE
    seq: int = 0
    starts: int = 0
    reason: str = ""
    detail: str = ""


class LocalBench:
    """One device and at most one benchmark at a time."""

    def __init__(self, policy: Policy, task: BenchTask | None = None, record: Record = Record()) -> None:
        """Begin with what was on the disk, if anything."""
        self.policy, self.task = policy, task
        self.phase = record.phase if task is not None else Phase.IDLE
        self.seq, self.starts = record.seq, record.starts
        self.reason, self.detail, self.progress = record.reason, record.detail, 0.0
        self._deadline = self._beat = self._told = 0.0
        self._calm_since: float | None = None
        self._calm_s = 0.0

    @property
    def active(self) -> bool:
        return self.phase in ACTIVE

    @property
    def record(self) -> Record:
        return Record(phase=self.phase, seq=self.seq, starts=self.starts, reason=self.reason, detail=self.detail)

    def resume(self, now: float, *, remaining_s: float) -> list[Effect]:
        """Go on after a start of the agent."""
        if self.task is None or not self.active:
            return []
        self._deadline = now + remaining_s
        if self.phase is Phase.RUNNING:
            self.starts += 1
            if self.starts > MAX_STARTS:
                detail = f"the agent or the device went down {self.starts} times while it ran"
                return self.outcome("failed", now, reason="AgentDied", detail=detail)
        return self.outcome("restarted", now, reason="Restarted", detail="the agent was started again")

    def offered(self, task: BenchTask, now: float) -> list[Effect]:
        """Take a verified task of this device. One that is known is answered again, not begun again.

        Raises MalformedMessage when it is older than what was seen before.
        """
        known = self.task is not None and task.task == self.task.task
        if task.seq <= self.seq and not (known and task.kind != "cancel"):
            raise MalformedMessage(f"benchmark {task.task} has number {task.seq}, and {self.seq} was seen before")
        self.seq = max(self.seq, task.seq)
        if task.kind == "cancel" and not known:
            return [Save()]
        if task.kind == "cancel":
            return self.outcome("canceled", now, reason="Canceled", detail="the server took it back") or [Save()]
        if known and self.phase is not Phase.IDLE:
            return [Report(upload=self.phase is Phase.DONE)]
        before = [Stop()] if self.active else []
        self.task, self.starts, self.progress = task, 0, 0.0
        self._deadline, self._calm_since, self._calm_s = now + task.deadline_s, None, 0.0
        reason, detail = objection(task, self.policy)
        return [*before, *self.outcome("declined" if reason else "offered", now, reason=reason, detail=detail)]

    def outcome(self, event: str, now: float, *, reason: str = "", detail: str = "") -> list[Effect]:
        """Tell the machine how an effect ended, or what came between."""
        after = TRANSITIONS.get((self.phase, event))
        if after is None or self.task is None:
            return []
        before, self.phase = self.phase, after
        self.reason, self.detail = reason, detail[:MAX_DETAIL]
        self._beat = now + BEAT_S
        effects: list[Effect] = [Stop()] if before in (Phase.FETCHING, Phase.RUNNING) and event != "arrived" else []
        effects += [Save(), Report(upload=after is Phase.DONE)]
        if after is Phase.FETCHING:
            effects.append(Fetch(self.task))
        elif after is Phase.RUNNING:
            effects.append(Run(self.task))
        return effects

    def advance(self, progress: float, now: float) -> list[Effect]:
        """Note how much of the jobs is done; reported at most once a second."""
        grown, self.progress = progress > self.progress, max(progress, self.progress)
        if not grown or now < self._told + 1:
            return []
        self._told, self._beat = now, now + BEAT_S
        return [Report()]

    def tick(self, now: float, facts: Facts) -> list[Effect]:
        """Let time pass: the deadline, a calm moment to begin, a disturbance to end."""
        if self.task is None or not self.active:
            return []
        if now >= self._deadline:
            waited = f": {self.detail}" if self.detail else ""
            detail = f"still {self.phase.lower()} after {self.task.deadline_s:g} s{waited}"
            return self.outcome("failed", now, reason="Timeout", detail=detail)
        found = hindrance(self.policy.bench, facts, running=self.phase is not Phase.QUEUED, paused=self._calm_s > 0)
        if self.phase is Phase.QUEUED:
            return self._wait(now, *found)
        if found[0]:
            self._calm_since, self._calm_s = None, CALM_S
            return self.outcome("disturbed", now, reason=found[0], detail=f"interrupted: {found[1]}")
        return self._beats(now)

    def _wait(self, now: float, reason: str, detail: str) -> list[Effect]:
        if reason:
            self._calm_since, self._calm_s = None, CALM_S
            changed, self.reason, self.detail = reason != self.reason, reason, detail
            if changed:
                self._beat = now + BEAT_S
                return [Report()]
            return self._beats(now)
        self._calm_since = now if self._calm_since is None else self._calm_since
        return self.outcome("calm", now) if now - self._calm_since >= self._calm_s else self._beats(now)

    def _beats(self, now: float) -> list[Effect]:
        if now < self._beat:
            return []
        self._beat = now + BEAT_S
        return [Report()]


def objection(task: BenchTask, policy: Policy) -> tuple[str, str]:
    """Return why the owner's policy or the task itself forbids it, as (reason, detail), or two empty strings."""
    limits, total = policy.bench, sum(blob.size for blob in task.blobs)
    if "bench" not in policy.accept:
        return "Policy", f"the owner's policy accepts {', '.join(policy.accept) or 'no tasks'}, not bench"
    largest = max((max(blob.inflated, blob.size) for blob in task.blobs), default=0)
    if max(total, largest) > limits.max_bytes:
        return (
            "Policy",
            f"{max(total, largest):,} bytes, and the owner's policy allows {limits.max_bytes:,} (max_bytes)",
        )
    longest = max((job.plan.max_s for job in task.jobs), default=0.0)
    if longest > limits.max_s:
        return "Policy", f"up to {longest:g} s of one graph, and the owner's policy allows {limits.max_s:g} (max_s)"
    known = {blob.digest for blob in task.blobs}
    if not task.jobs or any({job.graph, job.rows} - known for job in task.jobs):
        return "MalformedMessage", "a task without jobs, or with one whose graph or rows are not among its blobs"
    if len({job.name for job in task.jobs}) < len(task.jobs):
        return "MalformedMessage", "two jobs of one name"
    if wild := next((job for job in task.jobs if not _sensible(job)), None):
        return "MalformedMessage", f"the job {wild.name[:40]!r} has a plan beyond all measure"
    return "", ""


def _sensible(job: BenchJob) -> bool:
    plan = job.plan
    times = 0 < plan.warmup_s <= 60 and 0 < plan.min_s <= plan.max_s and 0 < plan.min_count <= 1_000_000
    return (
        times and 0 <= plan.rows <= 4096 and 0 < plan.rate_hz <= 1e6 and 0 < job.runs <= 1000 and 0 <= job.starts <= 9
    )


def hindrance(limits: BenchLimits, facts: Facts, *, running: bool, paused: bool = False) -> tuple[str, str]:
    """Return what speaks against running a benchmark now, as (reason, detail), or two empty strings.

    One that is running takes memory itself, so that is asked only before it begins.
    """
    if facts.at_work:
        return "Busy", facts.at_work
    if facts.rate > limits.max_rate:
        return "Serving", f"{facts.rate:.1f} predictions a second, the owner's limit is {limits.max_rate:g}"
    if quiet := next((hours for hours in limits.quiet_hours if _within(hours, facts.minute)), ""):
        return "QuietHours", f"the owner's quiet hours are {quiet}"
    if facts.throttled:
        return "Throttled", "the firmware throttles the processor: too hot, or too little voltage"
    limit = limits.max_temperature_c - (COOLER_C if paused and not running else 0.0)
    if facts.temperature_c is not None and facts.temperature_c > limit:
        return "Hot", f"{facts.temperature_c:.0f} C, it may begin below {limit:.0f} C"
    if not running and facts.free_bytes < limits.min_free_bytes:
        free, least = facts.free_bytes / 1e6, limits.min_free_bytes / 1e6
        return "Memory", f"{free:.0f} MB of memory are free, the owner's limit is {least:.0f}"
    return "", ""


def _within(hours: str, minute: int) -> bool:
    """Say whether `minute` of the day is in `hours`, which may go over midnight.

    >>> _within("22:00-06:00", 23 * 60), _within("22:00-06:00", 7 * 60)
    (True, False)
    """
    first, end = (int(part[:2]) * 60 + int(part[3:]) for part in hours.split("-"))
    return first <= minute < end if first <= end else minute >= first or minute < end
