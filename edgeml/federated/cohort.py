"""Whom a round asks, and how long it waits for them: pure, and the same for the same seed.

    every known device -> those that may take part -> an order -> the first ones: a few more than needed

A round closes at its target, so the slowest of those asked beyond it are not waited for (arXiv 1902.01046).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from edgeml.errors import UserError

MAD_TO_SIGMA = 1.4826  # of a normal distribution
LEAST_DURATIONS = 3  # fewer answers say nothing about the next ones


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """What is known of one device when a round is about to begin; None where it reports nothing."""

    device: str
    rows: int  # labelled
    board: str = ""
    online: bool = True
    last_round: int = 0  # the number of the last round it took part in, 0 before the first
    temperature_c: float | None = None
    battery: float | None = None  # share of a full one; None for a device without a battery
    mains: bool | None = None
    key: str = ""  # its Ed25519 public key, hex: what it signs with


@dataclass(frozen=True, kw_only=True)
class CohortOptions:
    """Whom to ask. Limits on heat and power hold for the devices that report them."""

    selector: str = "all"  # all, board:NAME, or device ids with commas between them
    target: int = 0  # updates at which a round closes; 0: it waits for all that were asked
    over: float = 0.3  # how many more than the target are asked, as a share of it
    least: int = 1  # devices a round must ask, for the aggregate of a few says much about each
    order: Literal["random", "rows", "rested"] = "random"
    max_temperature_c: float = 0.0  # 0: any
    min_battery: float = 0.0  # share of a full one, when not on mains
    mains_only: bool = False

    def __post_init__(self) -> None:
        if self.target < 0 or self.over < 0 or self.least < 1:
            raise UserError(
                f"target {self.target}, over {self.over:g}, least {self.least}: choose 0 or more for the first two, "
                f"and 1 or more for the third"
            )
        if not 0 <= self.min_battery <= 1 or self.max_temperature_c < 0:
            raise UserError(
                f"min_battery {self.min_battery:g} is a share from 0 to 1, and max_temperature_c "
                f"{self.max_temperature_c:g} is 0 (any) or more"
            )
        if self.order not in ORDERS:
            raise UserError(f"unknown order {self.order!r}; known: {', '.join(ORDERS)}")


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long a round waits: `deadline_s`, or, with a `spread`, what past answers took.

    median + spread x 1.4826 x MAD of the durations of past answers, from `shortest_s` to the deadline.
    """

    spread: float = 0.0  # 0: always the deadline
    shortest_s: float = 5.0

    def __post_init__(self) -> None:
        if self.spread < 0 or not self.shortest_s > 0:
            raise UserError(f"spread {self.spread:g} must be 0 or more, shortest_s {self.shortest_s:g} above 0")


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Who is asked, at how many updates the round closes, and why the others are not asked."""

    asked: frozenset[str]
    target: int
    passed_over: Mapping[str, str] = field(default_factory=dict)


def candidates_of(fleet: Mapping[str, int] | Sequence[Candidate]) -> Sequence[Candidate]:
    """Return the candidates of `fleet`, which may be given as labelled rows by device."""
    return [Candidate(device=d, rows=n) for d, n in fleet.items()] if isinstance(fleet, Mapping) else fleet


def choose(
    candidates: Iterable[Candidate], options: CohortOptions, *, min_rows: int, quorum: int, draw: Sequence[int]
) -> Cohort:
    """Return the cohort of the round that `draw` (seed, number) names; nobody is asked when there are too few.

    Too few are fewer than `quorum` or than `options.least`.
    """
    everyone = sorted(candidates, key=lambda one: one.device)
    reasons = {one.device: objection(one, options, min_rows=min_rows) for one in everyone}
    passed_over = {device: reason for device, reason in reasons.items() if reason}
    able = [one for one in everyone if not reasons[one.device]]
    if len(able) < max(quorum, options.least):
        return Cohort(asked=frozenset(), target=0, passed_over=passed_over)
    target = max(options.target, quorum) if options.target else len(able)
    most = max(int(np.ceil(target * (1 + options.over))), options.least)
    ordered = ORDERS[options.order](able, np.random.default_rng([number & 0xFFFFFFFF for number in draw]))
    asked = frozenset(one.device for one in ordered[:most])
    passed_over |= {one.device: "not drawn" for one in ordered[most:]}
    return Cohort(asked=asked, target=min(target, len(asked)), passed_over=passed_over)


def objection(one: Candidate, options: CohortOptions, *, min_rows: int) -> str:
    """Return why a device is not asked now, or ""."""
    if not selects(options.selector, one):
        return f"not selected by {options.selector}"
    if not one.online:
        return "offline"
    if one.rows < min_rows:
        return f"{one.rows} labelled rows, {min_rows} needed"
    limit = options.max_temperature_c
    if limit and one.temperature_c is not None and one.temperature_c > limit:
        return f"{one.temperature_c:.0f} C, at most {limit:.0f} C wanted"
    if options.mains_only and one.mains is False:
        return "on battery"
    if one.battery is not None and one.battery < options.min_battery and not one.mains:
        return f"battery at {one.battery:.0%}, at least {options.min_battery:.0%} wanted"
    return ""


def selects(selector: str, one: Candidate) -> bool:
    """Say whether `selector` (all, board:NAME, ids with commas) means this device.

    >>> selects("board:raspberry-pi-4", Candidate(device="a", rows=9, board="raspberry-pi-4"))
    True
    """
    if selector == "all":
        return True
    if selector.startswith("board:"):
        return one.board == selector.removeprefix("board:")
    return one.device in {part.strip() for part in selector.split(",")}


def deadline_after(durations: Sequence[float], patience: Patience, *, longest_s: float) -> float:
    """Return the seconds a round waits, given what past answers took.

    >>> deadline_after([2.0, 2.0, 3.0, 9.0, 2.5], Patience(spread=4, shortest_s=1), longest_s=60)
    5.465199999999999
    """
    if not patience.spread or len(durations) < LEAST_DURATIONS:
        return longest_s
    middle = float(np.median(durations))
    spread = MAD_TO_SIGMA * float(np.median(np.abs(np.asarray(durations) - middle)))
    return min(longest_s, max(patience.shortest_s, middle + patience.spread * spread))


Order = Callable[[list[Candidate], np.random.Generator], list[Candidate]]


def _random(able: list[Candidate], rng: np.random.Generator) -> list[Candidate]:
    return [able[i] for i in rng.permutation(len(able))]


def _rows(able: list[Candidate], rng: np.random.Generator) -> list[Candidate]:
    """Draw without putting back, by rows: the largest u^(1/rows) come first (Efraimidis and Spirakis, 2006)."""
    keys = np.log(rng.random(len(able))) / np.array([max(1, one.rows) for one in able])
    return [able[i] for i in np.argsort(-keys, kind="stable")]


def _rested(able: list[Candidate], rng: np.random.Generator) -> list[Candidate]:
    return sorted(_random(able, rng), key=lambda one: one.last_round)


ORDERS: dict[str, Order] = {"random": _random, "rows": _rows, "rested": _rested}
