"""A course: how rounds follow one another, as `Rounds` sees it, and what it works with.

A course knows devices and messages; the federation's life (preparing, scoring, releasing) is `Rounds`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgeml.artifacts import Task
from edgeml.errors import QuorumNotReached
from edgeml.federated import Plan, State, Update, strategy
from edgeml.registry import FederationOptions, Registry, RoundRecord, Upload
from edgeml.server.roster import Roster
from edgeml.tasks.study import Study
from edgeml_runtime.wire.tasks import LOSS_BEFORE

PAUSE_S = 1.0  # after an abandoned round, doubled after every further one in a row
MOST_ASTRAY = 1000  # devices counted between two rounds
Arrays = Mapping[str, np.ndarray]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shop:
    """What a federation works with."""

    registry: Registry
    roster: Roster
    publish: Callable[..., None]
    submit: Callable[..., Future[Any]]  # run this in the worker thread


@dataclass(frozen=True)
class Work:
    """What a course goes through: rounds of one task, or of the tasks of one study, by one plan.

    `say` tells whoever looks how it goes.
    """

    run: str
    model: str
    what: Task | Study
    options: FederationOptions = field(kw_only=True)
    plan: Plan = field(kw_only=True)
    say: Say = field(kw_only=True)


@dataclass(frozen=True)
class RoundEnd:
    """A round is over: its record, without scores, and the parameters after it."""

    record: RoundRecord
    parameters: Arrays


@dataclass(frozen=True)
class GiveUp:
    """There will be no further round, for this reason."""

    reason: str


@dataclass(frozen=True)
class Kept:
    """What the journal shall keep of updates: these, and, unless `anew`, those it has."""

    uploads: list[Upload]
    anew: bool = False


class Course(Protocol):
    """What `Rounds` asks of a way to go through rounds."""

    @property
    def finished(self) -> bool: ...
    @property
    def open_rounds(self) -> tuple[str, ...]:
        """Who or what is being waited for; when it changes, the journal is written."""

    @property
    def parameters(self) -> Arrays: ...
    def serve(self, now: float) -> None:
        """Do what must not wait while the last round is being scored."""

    def tick(self, now: float) -> RoundEnd | GiveUp | None: ...
    def uploaded(self, device: str, round_id: str, payload: bytes, *, now: float) -> None: ...
    def said(self, device: str, round_id: str, payload: bytes, *, now: float) -> None: ...
    def came(self, device: str, now: float, *, live: bool) -> None: ...
    def went(self, device: str, now: float) -> None: ...
    @property
    def asking(self) -> bool:
        """Whether `ask` has something to send, which must not leave before the journal has what it follows from."""

    def ask(self) -> None: ...
    def served(self, digest: str, count: int) -> None: ...
    def resend(self) -> None: ...
    def facts(self, now: float) -> dict[str, Any]: ...
    def arrays(self) -> Arrays: ...
    def kept(self) -> Kept: ...
    def resume(self, facts: Mapping[str, Any], arrays: Arrays, uploads: Sequence[Upload], *, now: float) -> None: ...


def own_losses(updates: Sequence[Update], options: FederationOptions) -> dict[str, float]:
    """Return the loss of every device's own model before it trained, by device, where the last layer stays on devices.

    Empty for other strategies, and with differential privacy: losses carry no noise.
    """
    if strategy(options.strategy).personal != "head" or options.privacy.where:
        return {}
    told = {update.device: update.metrics.get(LOSS_BEFORE, math.nan) for update in updates}
    return {device: float(loss) for device, loss in told.items() if math.isfinite(loss)}


def reasons(done: RoundRecord, *, run: str, quorum: int) -> list[str]:
    """Return why a round was abandoned, device by device; nothing for one that closed."""
    if done.state != State.ABANDONED.value:
        return []
    error = QuorumNotReached(f"{run}-{done.round}", len(done.participants), quorum)
    told = [f"{device}: {why}" for device, why in sorted(done.refused.items())]
    return [str(error), *told, *(f"{device}: silent" for device in done.silent)]
