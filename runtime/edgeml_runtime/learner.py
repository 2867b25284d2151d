"""The device's side of a federated round as a pure state machine, and the owner's policy.

    IDLE > FETCHING > TRAINING > DONE | REFUSED

A task graph could copy raw rows out (`Identity` is a valid graph), so nothing runs before `check_graph`
has seen that no output's shape depends on the number of rows, and that all of them together fit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from edgeml_runtime.config import Policy
from edgeml_runtime.errors import ShapeMismatch, TaskRefused
from edgeml_runtime.wire.manifest import TensorSpec
from edgeml_runtime.wire.messages import TaskOffer

DELTA, TARGET = "delta.", "target"
LOSS_BEFORE, LOSS_AFTER = "loss.before", "loss.after"
MAX_METRIC_VALUES = 1024  # in all outputs that are not the update: a few losses, no channel for rows
MAX_REASON = 300  # characters
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2}


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
    rows: int  # labelled
    model: str  # that is running, "" when none is


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
        if offer.model != facts.model:
            return f"the task is for {offer.model}, and {facts.model or 'no model'} runs here"
        if facts.rows < rows:
            return f"{facts.rows} labelled rows, and {rows} are needed: label more"
        if offer.max_update_bytes > policy.max_update_bytes:
            limit = policy.max_update_bytes
            return f"updates of {offer.max_update_bytes:,} bytes, and the owner's policy allows {limit:,}"
        return ""

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


def check_graph(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, max_update_bytes: int) -> None:
    """Raise TaskRefused when this task's outputs could carry rows away, or are no update."""
    for spec in outputs:
        if spec.dtype not in ITEM_BYTES or any(axis < 0 for axis in spec.shape):
            shape = ", ".join("any" if axis < 0 else str(axis) for axis in spec.shape)
            raise TaskRefused(
                f"output {spec.name!r} of shape ({shape}) could carry rows away: all must be fixed numbers"
            )
    update = [spec for spec in outputs if spec.name.startswith(DELTA)]
    metrics = sum(math.prod(spec.shape) for spec in outputs if not spec.name.startswith(DELTA))
    size = sum(math.prod(spec.shape) * ITEM_BYTES[spec.dtype] for spec in update)
    if not update or TARGET not in {spec.name for spec in inputs}:
        raise TaskRefused("the task has no target or no update: it is no training task")
    if size > max_update_bytes or metrics > MAX_METRIC_VALUES:
        raise TaskRefused(
            f"outputs of {size:,} bytes and {metrics} values beside them; "
            f"{max_update_bytes:,} and {MAX_METRIC_VALUES} are allowed"
        )
    parameters = {spec.name: spec.shape for spec in inputs}
    for spec in update:
        if parameters.get(spec.name.removeprefix(DELTA)) != spec.shape:
            raise TaskRefused(f"output {spec.name!r} of shape {spec.shape} is the change of no parameter")


def feeds(
    inputs: Sequence[TensorSpec],
    rows: tuple[Mapping[str, np.ndarray], np.ndarray],
    *,
    scalars: Mapping[str, float],
    parameters: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Return the task's inputs made of local `rows` (inputs, target), the offer's scalars and the parameters.

    Raises ShapeMismatch when one of them is missing.
    """
    local, target = rows
    found: dict[str, np.ndarray] = {}
    for spec in inputs:
        if spec.name == TARGET:
            found[TARGET] = _target(spec, target)
        elif spec.name in parameters:
            found[spec.name] = parameters[spec.name]
        elif spec.name in local:
            found[spec.name] = local[spec.name]
        elif spec.name in scalars and not spec.shape:
            found[spec.name] = np.asarray(scalars[spec.name], dtype=spec.dtype)
        else:
            known = ", ".join(sorted({*local, *scalars})) or "nothing"
            raise ShapeMismatch(f"the task takes {spec.name!r}, and the local rows and the offer have {known}")
    return found


def update_of(answers: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return the update by parameter and the losses; raise TaskRefused when a number is not finite."""
    update = {name.removeprefix(DELTA): array for name, array in answers.items() if name.startswith(DELTA)}
    losses = {
        name: float(answers[name]) for name in (LOSS_BEFORE, LOSS_AFTER) if name in answers and not answers[name].shape
    }
    broken = sum(int(np.count_nonzero(~np.isfinite(array))) for array in update.values())
    if broken or not all(math.isfinite(loss) for loss in losses.values()):
        raise TaskRefused(
            f"training diverged here: {broken} numbers of the update are NaN or infinite; lower the learning rate"
        )
    return update, losses


def _target(spec: TensorSpec, target: np.ndarray) -> np.ndarray:
    """Return the targets as the task wants them: class indices, or numbers in one column."""
    if spec.dtype.startswith("int") and target.dtype.kind == "f":
        raise ShapeMismatch("the task takes class indices, and some local targets are other numbers")
    shaped = target.reshape(-1, 1) if len(spec.shape) == 2 else target
    return shaped.astype(spec.dtype)
