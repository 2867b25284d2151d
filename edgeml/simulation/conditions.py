"""What goes wrong in a simulated fleet: devices do less, say nothing, fall out, or lie. Drawn by seed and round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeml.errors import UserError
from edgeml.federated import Plan
from edgeml.federated.secagg import Phase
from edgeml.simulation.device import ATTACKS, Call

MAX_SPEEDS = 5.0  # the slowest of a thousand devices then takes a million times as long as the middle one
_STRAGGLE, _SILENCE, _LIE, _FALL = range(4)  # what a draw is for


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """Shares of devices, 0 to 1. Liars are the same in every round, the others are drawn anew.

    A straggler has time for 1 to E local epochs, any number as likely (arXiv 1812.06127, 5.2); without `partial` it
    comes too late and is not waited for. `dropouts` die within a masked round, in any of its phases. `held_out` of
    every device's rows are kept back to judge its own model on.
    """

    stragglers: float = 0.0
    partial: bool = True
    silent: float = 0.0
    dropouts: float = 0.0
    byzantine: float = 0.0
    attack: str = "garbage"
    held_out: float = 0.0
    speeds: float = 0.5  # standard deviation of the logarithm of devices' speeds; asynchronous rounds have a clock
    workers: int = 0  # processes; 0: none but this one

    def __post_init__(self) -> None:
        for name in ("stragglers", "silent", "dropouts", "byzantine", "held_out"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} {getattr(self, name)}: a share of devices or rows is from 0 to 1")
        if self.attack not in ATTACKS:
            raise UserError(f"unknown attack {self.attack!r}; known: {', '.join(ATTACKS)}")
        if not 0 <= self.speeds <= MAX_SPEEDS:
            raise UserError(f"speeds {self.speeds}: a deviation of logarithms is from 0 to {MAX_SPEEDS:g}")
        if self.workers < 0 or self.held_out == 1:
            raise UserError(f"{self.workers} workers, {self.held_out} of the rows held out: 0 or more, and less than 1")

    def check(self, plan: Plan) -> None:
        """Raise UserError for what cannot go wrong in rounds of `plan`."""
        if self.dropouts and plan.secure is None:
            raise UserError("dropouts die within secure aggregation: give secure, or silent devices in place of them")

    def liars(self, devices: Sequence[str], seed: int) -> frozenset[str]:
        """Return the devices that attack."""
        drawn = drawn_of(len(devices), self.byzantine, np.random.default_rng([_LIE, seed]))
        return frozenset(np.array(devices)[drawn].tolist())

    def falls(self, cohort: Sequence[str], *, seed: int, number: int) -> dict[str, Phase]:
        """Return who dies in round `number`, and before its answer in which phase of secure aggregation."""
        rng = np.random.default_rng([_FALL, seed, number])
        fallen = drawn_of(len(cohort), self.dropouts, rng)
        phases = [list(Phase)[i] for i in rng.integers(0, len(Phase), len(cohort))]
        return {device: phase for device, phase, falls in zip(cohort, phases, fallen, strict=True) if falls}

    def calls(
        self, cohort: Sequence[str], graphs: Mapping[int, str], *, liars: frozenset[str], seed: int, number: int
    ) -> list[Call]:
        """Return who trains in round `number`, on which graph; `graphs` are the tasks' digests by local epochs."""
        draw = [seed, number]
        silent = drawn_of(len(cohort), self.silent, np.random.default_rng([_SILENCE, *draw]))
        rng = np.random.default_rng([_STRAGGLE, *draw])
        slow = drawn_of(len(cohort), self.stragglers, rng)
        epochs = rng.integers(1, max(graphs) + 1, len(cohort))
        found = []
        for i, device in enumerate(cohort):
            if silent[i] or (slow[i] and not self.partial):
                continue
            attack = self.attack if device in liars else ""
            graph = graphs[int(epochs[i]) if slow[i] else max(graphs)]
            found.append(Call(device=device, graph=graph, attack=attack, seed=(*draw, i)))
        return found


def drawn_of(count: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return which of `count` are drawn, round(share * count) of them: boolean (count,)."""
    drawn = np.zeros(count, bool)
    drawn[rng.permutation(count)[: round(share * count)]] = True
    return drawn
