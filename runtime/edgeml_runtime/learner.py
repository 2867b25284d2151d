"""The device's side of a federated round as a pure state machine: the owner's policy has the first word.

    IDLE > FETCHING > TRAINING > DONE | REFUSED

TRAINING is the running of any kind of task; what a graph may do there is `task.check_graph`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from edgeml_runtime import outgoing, secagg
from edgeml_runtime.config import Policy
from edgeml_runtime.wire import holdout
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.tasks import LABELLED

MAX_REASON = 300  # characters


class Phase(StrEnum):
    IDLE = "IDLE"
    FETCHING = "FETCHING"
    TRAINING = "TRAINING"
    DONE = "DONE"
    REFUSED = "REFUSED"


TRANSITIONS: Mapping[tuple[Phase, str], Phase] = {
    **{(phase, "offered"): Phase.FETCHING for phase in Phase},
    **{(phase, "declined"): Phase.REFUSED for phase in Phase},
    (Phase.FETCHING, "arrived"): Phase.TRAINING,
    (Phase.TRAINING, "trained"): Phase.DONE,
    (Phase.FETCHING, "failed"): Phase.REFUSED,
    (Phase.TRAINING, "failed"): Phase.REFUSED,
    (Phase.FETCHING, "overdue"): Phase.REFUSED,
    (Phase.TRAINING, "overdue"): Phase.REFUSED,
}


@dataclass(frozen=True)
class Fetch:
    """Have the task's graph and parameters on the disk, then say `arrived`."""

    offer: TaskOffer


@dataclass(frozen=True)
class Train:
    """Run the task over the local rows, then say `trained`."""

    offer: TaskOffer


@dataclass(frozen=True)
class Upload:
    """Send (again) what the training gave."""

    offer: TaskOffer


@dataclass(frozen=True)
class Refuse:
    """Tell the server that this device takes no part, and why."""

    offer: TaskOffer
    reason: str


Effect = Fetch | Train | Upload | Refuse


@dataclass(frozen=True)
class Facts:
    """What a decision about an offer depends on, at this moment."""

    device: str
    rows: int  # labelled, that the task may see
    model: str  # that is running, "" when none is
    stored: int = 0  # rows of the newest layout, labelled or not
    key: str = ""  # this device's public key, hex
    ran_today: int = 0  # tasks over these rows in the last 24 hours
    aside: int = 0  # labelled, that it may not see: held out of a training, or left to one


class LocalRound:
    """One device and at most one round at a time; a newer round takes the place of an older one."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.phase = Phase.IDLE
        self.offer: TaskOffer | None = None
        self.reason = ""
        self._deadline = 0.0

    @property
    def active(self) -> bool:
        return self.phase in (Phase.FETCHING, Phase.TRAINING)

    def offered(self, offer: TaskOffer, facts: Facts, now: float) -> list[Effect]:
        """Take a verified offer. A round under way is not begun twice; a finished one is answered again."""
        if facts.device not in offer.cohort:
            return []
        if self.offer is not None and offer.round == self.offer.round:
            if self.phase is Phase.DONE:
                return [Upload(self.offer)]
            if self.active:
                return []
        self.offer, self._deadline, self.reason = offer, now + offer.deadline_s, ""
        if objection := self.objection(offer, facts):
            return self.outcome("declined", reason=objection)
        return self.outcome("offered")

    def objection(self, offer: TaskOffer, facts: Facts) -> str:
        """Return why the owner's policy or the data at hand forbids this task, or ""."""
        policy, rows = self.policy, max(self.policy.min_rows, offer.min_rows)
        if offer.kind not in policy.accept:
            return f"the owner's policy accepts {', '.join(policy.accept) or 'no tasks'}, not {offer.kind}"
        if policy.templates and offer.graph not in policy.templates:
            return f"the graph {offer.graph[:12]} is none of the {len(policy.templates)} that the owner has pinned"
        if policy.tasks_per_day and facts.ran_today >= policy.tasks_per_day:
            return f"{facts.ran_today} tasks ran here in 24 hours, and the owner's policy allows {policy.tasks_per_day}"
        if offer.model != facts.model:
            return f"the task is for {offer.model}, and {facts.model or 'no model'} runs here"
        if why := holdout.objection(offer.held_out):
            return why
        if offer.kind in LABELLED and facts.rows < rows:
            return holdout.too_few(facts.rows, rows, offer.kind, aside=facts.aside)
        if max(facts.rows, facts.stored) < rows:
            return f"{facts.stored} rows, and {rows} are needed: keep more of what is predicted"
        if offer.max_update_bytes > policy.max_update_bytes:
            limit = policy.max_update_bytes
            return f"updates of {offer.max_update_bytes:,} bytes, and the owner's policy allows {limit:,}"
        if (size := offer.graph_bytes + offer.parameters_bytes) > policy.max_task_bytes:
            return f"a task of {size:,} bytes, and the owner's policy allows {policy.max_task_bytes:,}"
        return outgoing.objection(offer, policy) or secagg.objection(offer, facts.device, facts.key, peers=policy.peers)

    def outcome(self, event: str, *, reason: str = "") -> list[Effect]:
        """Tell the machine how an effect ended."""
        after = TRANSITIONS.get((self.phase, event))
        if after is None or self.offer is None:
            return []
        self.phase, self.reason = after, reason[:MAX_REASON]
        match after:
            case Phase.FETCHING:
                return [Fetch(self.offer)]
            case Phase.TRAINING:
                return [Train(self.offer)]
            case Phase.DONE:
                return [Upload(self.offer)]
            case _:
                return [Refuse(self.offer, self.reason)]

    def tick(self, now: float) -> list[Effect]:
        """Let the round's deadline pass."""
        if self.offer is None or not self.active or now < self._deadline:
            return []
        return self.outcome("overdue", reason=f"still {self.phase.lower()} after {self.offer.deadline_s:g} s")

    def reconnected(self, now: float) -> list[Effect]:
        """The broker was away, so what was sent may be lost: answer the round again while it lasts."""
        if self.offer is None or now >= self._deadline:
            return []
        if self.phase is Phase.DONE:
            return [Upload(self.offer)]
        return [Refuse(self.offer, self.reason)] if self.phase is Phase.REFUSED else []
