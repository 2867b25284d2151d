"""How a plan sums unseen: what it asks of devices (`Masks`), and what one round's cohort is told (`terms`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeml.errors import UserError
from edgeml_runtime.wire import DeviceError, masked_sums
from edgeml_runtime.wire.masked_sums import LARGEST_RANGE, Outputs
from edgeml_runtime.wire.messages import Secure
from edgeml_runtime.wire.secure import MAX_DEVICES


@dataclass(frozen=True, kw_only=True)
class Masks:
    """How a plan sums updates unseen. `bound` is of every value of an update; larger ones are cut to it.

    `largest` is of every number of a sum over a device's rows (statistics, evaluation, drift, calibration): a device
    that has a larger one refuses, and the sums are exact to `largest` x 2^-108 a device.
    """

    bound: float = 4.0
    bits: Literal[16, 32, 64] = 32  # of a value of an update on the wire
    share: float = 0.67  # of the cohort that must last to the end
    phase_s: float = 15.0
    largest: float = masked_sums.MOST

    def __post_init__(self) -> None:
        if not 0.5 < self.share <= 1:
            raise UserError(f"a share of {self.share}: more than half of the cohort must last, at most all of it")
        if not self.bound > 0 or not self.phase_s > 0:
            raise UserError(f"bound {self.bound} and phase_s {self.phase_s} must be above 0")
        if not 1 <= self.largest <= LARGEST_RANGE:
            raise UserError(f"largest {self.largest:g}: give a number from 1 to 2^100")


def terms(
    masks: Masks, keys: Mapping[str, str], *, least: int, rows: int, ranges: Mapping[str, float] | None = None
) -> Secure:
    """Return what a round over the devices of `keys` asks; `rows` weigh 1, 0: all devices the same.

    With `ranges` it sums outputs. Raises UserError when so many devices do not fit one round.
    """
    if not 2 <= len(keys) <= MAX_DEVICES:
        raise UserError(
            f"secure aggregation of {len(keys)} devices: it takes 2 to {MAX_DEVICES} at once; "
            f"{'ask more devices' if len(keys) < 2 else 'choose a smaller cohort'}"
        )
    count = len(keys)
    threshold = min(count, max(least, 2, int(masks.share * count) + 1))
    return Secure(
        keys=dict(keys),
        threshold=threshold,
        bound=masks.bound,
        rows=0 if ranges else rows,
        bits=64 if ranges else masks.bits,
        phase_s=masks.phase_s,
        ranges=dict(ranges or {}),
    )


def ranges_of(outputs: Outputs, masks: Masks) -> dict[str, float]:
    """Return below what every number of one device's answer must stay, by output.

    Raises UserError for an output that has no sum under masks.
    """
    try:
        return {
            name: masks.largest if dtype.kind == "f" else masked_sums.MOST
            for name, (dtype, _) in masked_sums.sent(outputs).items()
        }
    except DeviceError as error:
        raise UserError(f"{error}: ask without secure aggregation, if the owners' policies allow that") from error


def at_most(asked: frozenset[str], *, draw: tuple[int, int]) -> tuple[frozenset[str], dict[str, str]]:
    """Return as many of the devices `asked` as one masked round takes, drawn by seed, and why not the others."""
    if len(asked) <= MAX_DEVICES:
        return asked, {}
    drawn = np.random.default_rng([MAX_DEVICES, *draw]).permutation(sorted(asked))[:MAX_DEVICES]
    kept = frozenset(drawn.tolist())
    why = f"{len(asked)} devices could take part, and a masked round takes {MAX_DEVICES}, drawn anew each time"
    return kept, dict.fromkeys(asked - kept, why)
