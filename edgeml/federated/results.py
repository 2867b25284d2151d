"""The history of a federation or a survey: a line for every round, also for those that came to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeml.federated.roll import State

KEYLESS = "its agent reports no key for secure aggregation: update it"


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """One line of the history. `metric` and `bytes_down` are the caller's to fill."""

    round: str
    state: str
    participants: tuple[str, ...]
    loss_before: float | None = None  # of the round's first parameters, over the participants' rows
    loss: float | None = None  # after their local training, before aggregation
    bytes_up: int
    seconds: float
    metric: float | None = None
    bytes_down: int = 0
    why: str = ""  # it ended
    asked: tuple[str, ...] = ()  # all of its cohort
    epsilon: float | None = None  # spent until here, with differential privacy
    culprit: str = ""  # the device that spoilt a masked sum: not asked again
    next_clip: float = 0.0  # of an adaptive clip norm, for the rounds after this one


def abandoned(
    round_id: str, why: str, *, epsilon: float | None = None, asked: tuple[str, ...] = (), seconds: float = 0.0
) -> RoundResult:
    """Return the line of a round without participants."""
    return RoundResult(
        round=round_id,
        state=State.ABANDONED.value,
        participants=(),
        bytes_up=0,
        seconds=seconds,
        why=why,
        asked=asked,
        epsilon=epsilon,
    )


def gave_up(history: Sequence[RoundResult], most: int) -> bool:
    """Return whether the last `most` rounds were all abandoned."""
    last = history[-most:]
    return len(last) == most and all(result.state == State.ABANDONED.value for result in last)


def culprits(history: Sequence[RoundResult]) -> dict[str, str]:
    """Return the devices that spoilt a masked sum, which are not asked again, and when they did."""
    return {r.culprit: f"its shares did not open in round {r.round}" for r in history if r.culprit}
