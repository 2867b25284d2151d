"""When what a federation learned may ship: by what it gains on the server's rows and on the fleet's, with intervals.

    (gate, gain here, gain in the fleet) -rule-> Ruling: whether it ships, why, and what would change a refusal

A gain is paired: both models answer the very same rows. Pure, and the same ruling for the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Gate = Literal["better", "not-worse"]
GATES: dict[Gate, str] = {
    "better": "not worse on the server's rows beyond chance, and better on the fleet's beyond chance",
    "not-worse": "worse on neither beyond chance, and better on one of them at least by the figures",
}
TOO_WIDE = 30  # times the gain: more than 900 times the rows is no advice
PROVE, PASS = "let it learn more in more rounds", "federated.gate: not-worse ships without that proof"


@dataclass(frozen=True, kw_only=True)
class Gain:
    """How much better a candidate is than the model before it, positive is better, with the ends of its 95 % interval.

    An end that is NaN is unknown: such a gain is neither better nor worse beyond chance.
    """

    metric: str
    before: float
    after: float
    value: float
    low: float
    high: float
    rows: int
    where: str  # "validation rows", "held-out rows of 3 devices"

    @property
    def is_better(self) -> bool:
        """Whether the interval is above 0."""
        return self.low > 0

    @property
    def is_worse(self) -> bool:
        """Whether the interval is below 0."""
        return self.high < 0

    @property
    def rows_needed(self) -> int:
        """About how many rows a gain of this size would take to be beyond chance; 0 where there is none to show.

        The width of an interval falls with the square root of the rows.
        """
        wide = (self.value - self.low) / self.value if self.value > 0 else math.nan
        return math.ceil(self.rows * wide**2) if wide < TOO_WIDE else 0

    def __str__(self) -> str:
        moved = f"{self.value:+.4f} [{self.low:+.4f}, {self.high:+.4f}]"
        return f"{self.metric} {self.before:.4f} -> {self.after:.4f} on {self.rows:,} {self.where}, a gain of {moved}"


@dataclass(frozen=True)
class Ruling:
    """Whether a candidate ships. `why` has the numbers, and of a refusal what would change it."""

    ships: bool
    why: str


def rule(gate: Gate, here: Gain, fleet: Gain | None) -> Ruling:
    """Return what `gate` says of a candidate; where the fleet was not asked, the server's rows must show the gain."""
    told = f"here {here}" + (f"; in the fleet {fleet}" if fleet else "; the fleet was not asked")
    against = _against(gate, here, fleet)
    return Ruling(not against, f"{against[0]}: {told}; {against[1]}" if against else f"{gate}: {told}")


def _against(gate: Gate, here: Gain, fleet: Gain | None) -> tuple[str, str] | None:
    """Return the objection to a candidate and what would change it, or None."""
    witness, place = (fleet, "in the fleet") if fleet else (here, "here")
    if fleet and fleet.is_worse:
        return "worse in the fleet", "what was learned does not hold on other rows: label more, or learn less from each"
    if here.is_worse:
        return "worse here", "rows here and on the devices may differ: lower the learning rate or local_epochs"
    if gate == "better" and not witness.is_better:
        return f"not better {place} beyond chance", _to_show(witness)
    if gate == "not-worse" and not any(gain.value > 0 for gain in (here, witness)):
        return "not better anywhere", f"nothing was gained yet: {PROVE}, or label more rows"
    return None


def _to_show(gain: Gain) -> str:
    if not gain.rows_needed:
        return f"no gain was found: {PROVE}, or label more rows; {PASS}"
    return f"a gain of this size shows on about {gain.rows_needed:,} rows: label more, or {PROVE}; {PASS}"
