"""How a federation runs: its numbers in one place, whichever machine goes through the rounds."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Literal

from edgeml.federated.aggregate import Believe
from edgeml.federated.cohort import CohortOptions, Patience
from edgeml.federated.masks import Masks
from edgeml.federated.privacy import Privacy
from edgeml.federated.server_step import ServerStep
from edgeml.federated.strategy import Strategy, strategy
from edgeml_runtime.wire.holdout import part_of
from edgeml_runtime.wire.tasks import TaskKind


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a federation runs; the fields of `federated:` in edgeml.yaml."""

    rounds: int = 5
    min_devices: int = 2  # the quorum of every round
    learning_rate: float = 0.05
    min_rows: int = 20  # labelled, of a device that takes part; see `least`
    deadline_s: float = 60.0
    seed: int = 0
    strategy: str = "fedavg"  # of STRATEGIES
    local_epochs: int = 1  # of the task, and
    batch_size: int = 16  # its rows a step: how many steps an update is of
    momentum: float = 0.0  # of its optimizer: how much those steps count together
    mu: float | None = None  # instead of the strategy's
    decay: float = 1.0  # of the learning rate, from round to round
    epoch_decay: float = 1.0  # and from one local epoch to the next, where the task takes it
    believe: Believe = field(default_factory=Believe)
    server: ServerStep | None = None  # instead of the strategy's
    compress: str = ""  # how updates travel, see `edgeml_runtime.wire.compress`
    privacy: Privacy = field(default_factory=Privacy)
    secure: Masks | None = None  # the server learns sums only
    max_abandoned: int = 3  # rounds without a quorum in a row before the federation gives up
    cohort: CohortOptions = field(default_factory=CohortOptions)
    patience: Patience = field(default_factory=Patience)
    mode: Literal["sync", "async"] = "sync"
    held_out: float = 0.0  # share of a device's rows that is judged on and not learned from, of holdout.SHARES

    @property
    def quorum(self) -> int:
        """Updates a round needs."""
        return max(self.min_devices, self.privacy.min_cohort if self.privacy.where else 1)

    def least(self, kind: TaskKind) -> int:
        """Return how many rows a task of `kind` must see on a device: the share of `min_rows` on its side.

        >>> Plan(min_rows=20, held_out=0.2).least("training"), Plan(min_rows=20, held_out=0.2).least("evaluation")
        (16, 4)
        """
        part = part_of(kind, self.held_out)
        return max(1, int(self.min_rows * (part.high - part.low) + 1e-9))

    @property
    def row(self) -> Strategy:
        """The strategy, with this plan's own numbers."""
        found = strategy(self.strategy)
        mu = found.mu if self.mu is None or not found.proximal else self.mu
        return dataclasses.replace(found, mu=mu, server=self.server or found.server)
