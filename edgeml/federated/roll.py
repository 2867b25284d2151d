"""What every machine of a round keeps of its devices, whatever they send: who answered, refused, went away, spoilt it.

A machine says when it is over (`tick`, `_settle`) and whom it counts by name (`_reject`).
"""

from __future__ import annotations

import abc
import enum
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml.errors import QuorumNotReached
from edgeml.federated.updates import Update

MAX_STRANGERS = 1000  # distinct ids counted by name; the rest share one entry, so that a flood stays small
OTHERS = "*"


class State(enum.Enum):
    OPEN = "open"
    CLOSED = "closed"
    ABANDONED = "abandoned"


@dataclass(frozen=True)
class Outcome:
    """How a round ended. `rejected` counts, by device and reason, what was not taken."""

    round: str
    state: State
    why: str
    quorum: int
    updates: tuple[Update, ...]  # in the order of their devices' ids
    refused: Mapping[str, str]  # device -> its reason
    silent: tuple[str, ...]  # devices of the cohort that sent neither update nor refusal
    rejected: Mapping[str, Mapping[str, int]]
    seconds: float
    took: Mapping[str, float] = field(default_factory=dict)  # seconds from the offer to each device's update
    change: Mapping[str, np.ndarray] | None = None  # the mean, where nobody saw the updates (secure aggregation)

    @property
    def error(self) -> QuorumNotReached | None:
        """What to raise or show for an abandoned round; None for a closed one."""
        if self.state is State.CLOSED:
            return None
        return QuorumNotReached(self.round, len(self.updates), self.quorum)


class Roll(abc.ABC):
    """The devices of one open round, and in the end its `outcome`."""

    def __init__(self, id: str, cohort: frozenset[str], *, quorum: int, opened: float) -> None:
        self.id, self.cohort, self.quorum, self.opened = id, cohort, quorum, opened
        self.state, self.why = State.OPEN, ""
        self.updates: dict[str, Update] = {}
        self.refused: dict[str, str] = {}
        self.lost_devices: set[str] = set()
        self.rejected: dict[str, Counter[str]] = {}
        self.took: dict[str, float] = {}
        self.change: dict[str, np.ndarray] | None = None  # float64, the weighted mean, where nobody sees the updates
        self._ended = 0.0

    @abc.abstractmethod
    def tick(self, now: float) -> State:
        """Return the state at `now`, after the deadline had its say."""

    @abc.abstractmethod
    def _settle(self, now: float) -> None:
        """Go on, if what has come is enough."""

    @abc.abstractmethod
    def _reject(self, device: str, fault: str) -> str:
        """Count a fault of `device` and return it."""

    def count(self, device: str, fault: str) -> None:
        """Count something that never came as far as an update of this round."""
        self._reject(device, fault)

    def lost(self, device: str, now: float) -> None:
        """Note that `device` went away: nobody waits for it once there is a quorum, but it may come back."""
        self.tick(now)
        if self.state is State.OPEN and device in self.cohort:
            self.lost_devices.add(device)
            self._settle(now)

    def back(self, device: str, now: float) -> None:
        """Note that a lost `device` is back: it is waited for again."""
        self.tick(now)
        self.lost_devices.discard(device)

    @property
    def outcome(self) -> Outcome | None:
        """How the round ended, or None while it is open."""
        if self.state is State.OPEN:
            return None
        return Outcome(
            round=self.id,
            state=self.state,
            why=self.why,
            quorum=self.quorum,
            updates=tuple(self.updates[device] for device in sorted(self.updates)),
            refused=dict(self.refused),
            silent=tuple(sorted(self.cohort - self.updates.keys() - self.refused.keys())),
            rejected={device: dict(counts) for device, counts in self.rejected.items()},
            seconds=self._ended - self.opened,
            took=dict(self.took),
            change=self.change,
        )
