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
UNASKED: dict[Gate, str] = {
    "better": "better on the server's rows beyond chance; the fleet was not asked",
    "not-worse": "not worse on the server's rows beyond chance, better by the figures; the fleet was not asked",
}
OWN = "own"  # the rule for models that devices complete with a last layer that stays there
OWN_SAYS = (
    "the training loss of the devices' own models lower before the last round than before the first, on devices in "
    "both, and within max_accuracy_drop on the server's rows without them; no held-out row of the fleet was asked"
)
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


@dataclass(frozen=True, kw_only=True)
class Own:
    """The mean loss of the devices' own models before the first round and before the last, over devices in both.

    It is a training loss: on rows that the layers which stay were trained on.
    """

    before: float
    after: float
    devices: int  # that took part in the first round and in the last
    rounds: int

    def __str__(self) -> str:
        compared = (
            f"before the first and the last of {self.rounds} rounds, on rows that {self.devices} devices learned from"
        )
        return f"loss of the devices' own models {self.before:.4g} -> {self.after:.4g}, {compared}"


def rule_own(here: Gain, own: Own, limit: float) -> Ruling:
    """Return whether a candidate ships that devices complete with a last layer of their own.

    Their own models must have gained, and devices without one lose no more than `limit` of the metric.
    """
    told = f"without own models here {here}"
    if own.rounds < 2:
        return Ruling(False, f"one round cannot show that own models gained: ask for two rounds or more; {told}")
    if not own.devices:
        why = (
            f"no device told its loss both in the first round and in the last of {own.rounds}, so none can be compared"
        )
        return Ruling(False, f"{why}: ask again with the same devices online throughout; {told}")
    if not -here.value <= limit:
        return Ruling(False, f"worse by more than {limit:g} for devices without a model of their own: {own}; {told}")
    if not own.after < own.before:
        return Ruling(False, f"the devices' own models are not better: {own}; {told}; {PROVE}")
    return Ruling(True, f"{OWN}: {own}; {told}")


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
