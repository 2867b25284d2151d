"""Differential privacy of a federation: who adds the noise, how much, and what it has cost so far.

    server   devices' updates are clipped and summed, the server adds noise to every sum (arXiv 1710.06963)
    device   every device adds its own noise before it sends anything; the server is not trusted

One device is one unit of privacy: epsilon bounds what anyone learns of *all* rows of a device, at `delta`.
"""

from __future__ import annotations

import importlib
import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from edgeml.errors import MissingExtra, UserError
from edgeml_runtime.wire import gaussian

Change = dict[str, np.ndarray]
ACCOUNTANT = "edgeml.federated.accountant"
EXTRA = "dp_accounting"


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """How much a federation may tell about a device. `where` "" is no differential privacy.

    `noise` is in clip_norms: of the sum's every value on the server, of an update's on a device. With `sampling` q
    below 1 each device takes part in a round with probability q, drawn in secret, which makes a round cheaper for
    those who see the models and not who took part. Rounds end before one would pass `max_epsilon`. With `adapt` above
    0 the clip norm follows the `quantile` of the updates' lengths from round to round (arXiv 1905.03871), and
    `clip_norm` is the first.
    """

    where: Literal["", "device", "server"] = ""
    clip_norm: float = 1.0
    noise: float = 1.0
    delta: float = 1e-5
    sampling: float = 1.0
    min_cohort: int = 2  # updates in every sum
    max_epsilon: float = 0.0  # 0: any
    adapt: float = 0.0  # how fast the clip norm moves; .2 is usual
    quantile: float = 0.5

    def __post_init__(self) -> None:
        if not (self.clip_norm > 0 and math.isfinite(self.clip_norm)):
            raise UserError(f"clip_norm {self.clip_norm}: choose a length above 0, such as the median update's")
        if not (self.noise > 0 and math.isfinite(self.noise)):
            raise UserError(f"noise {self.noise}: choose a number above 0; 1 is usual")
        if not 0 < self.delta < 1 or not 0 < self.sampling <= 1 or not self.max_epsilon >= 0:
            raise UserError(
                f"delta {self.delta} and sampling {self.sampling} must be above 0 and at most 1, "
                f"max_epsilon {self.max_epsilon} at least 0"
            )
        if not 0 <= self.adapt < math.inf or not 0 < self.quantile < 1:
            raise UserError(f"adapt {self.adapt} must be 0 or more, and quantile {self.quantile} between 0 and 1")
        if self.min_cohort < 1:
            raise UserError(f"min_cohort {self.min_cohort}: choose 1 device or more")


@dataclass(frozen=True)
class Ledger:
    """What was released so far. Frozen: every round makes a new one."""

    sums: int = 0  # noised sums: rounds that closed
    asked: Mapping[str, int] = field(default_factory=dict)  # noised updates a device may have sent, at most

    def after(self, devices: Iterable[str], *, closed: bool) -> Ledger:
        """Return the ledger after a round that asked `devices`."""
        return replace(self, sums=self.sums + closed, asked=Counter(self.asked) + Counter(devices))

    def epsilon(self, privacy: Privacy) -> float | None:
        """Return what has been spent, of the device that spent most; None without differential privacy.

        On the server an abandoned round costs nothing, for nothing of it was released; on the device it does, also
        where the update came late or never. A device's own noise must hide which of two updates it sent, up to 2
        clip_norms apart: it counts half.
        """
        if not privacy.where:
            return None
        if privacy.where == "server":
            return _spent(privacy.noise, self.sums, privacy)
        alone = replace(privacy, sampling=1.0)  # the server sees who answers
        return _spent(privacy.noise / 2, max(self.asked.values(), default=0), alone)

    def allows(self, privacy: Privacy, devices: Iterable[str]) -> bool:
        """Return whether one more round of `devices` stays within `max_epsilon`."""
        if not privacy.where or not privacy.max_epsilon:
            return True
        return (self.after(devices, closed=True).epsilon(privacy) or 0.0) <= privacy.max_epsilon


def noised_mean(updates: Sequence[Mapping[str, np.ndarray]], privacy: Privacy) -> Change:
    """Return (sum of clipped updates + noise) / their number, float32: every device weighs the same."""
    clipped = [gaussian.clip(update, privacy.clip_norm) for update in updates]
    total = {name: np.sum([update[name] for update in clipped], axis=0) for name in updates[0]}
    return noised_sum(total, privacy, count=len(updates), step=gaussian.grid(privacy.clip_norm))


def adapted(updates: Sequence[Mapping[str, np.ndarray]], privacy: Privacy) -> tuple[Privacy, float]:
    """Return what the round's noise must be, and the clip norm of the next round (arXiv 1905.03871, algorithm 1).

    How many updates are within the clip norm is told with noise of its own, sigma_b = n / 20 but at least `noise`; the
    sum's is so much larger that both together cost what `noise` alone would: (z^-2 - (2 sigma_b)^-2)^(-1/2).
    """
    count, z = len(updates), privacy.noise
    sigma = max(count / 20, z)
    within = sum(gaussian.norm(update) <= privacy.clip_norm for update in updates) - count / 2
    share = (within + float(gaussian.noise((1,), sigma)[0])) / count + 0.5
    following = privacy.clip_norm * math.exp(-privacy.adapt * (min(max(share, 0.0), 1.0) - privacy.quantile))
    return replace(privacy, noise=(z**-2 - (2 * sigma) ** -2) ** -0.5), following


def noised_sum(total: Mapping[str, np.ndarray], privacy: Privacy, *, count: int, step: float) -> Change:
    """Return (`total` + noise) / `count`, float32, of a sum of `count` clipped updates in multiples of `step`."""
    noisy = gaussian.blur(total, std=privacy.noise * privacy.clip_norm, step=step)
    return {name: np.asarray(value / count, np.float32) for name, value in noisy.items()}


def drawn(devices: Iterable[str], sampling: float) -> frozenset[str]:
    """Return each of `devices` with probability `sampling`, by the system's randomness: nobody can foresee it."""
    chance = secrets.SystemRandom()
    return frozenset(device for device in sorted(devices) if sampling == 1 or chance.random() < sampling)


def _spent(noise: float, rounds: int, privacy: Privacy) -> float:
    if not rounds:
        return 0.0
    return float(_accountant()(noise, rounds, sampling=privacy.sampling, delta=privacy.delta))


def require_accountant() -> None:
    """Raise MissingExtra where dp-accounting is not installed: before the first round, not after it."""
    _accountant()


def _accountant() -> Callable[..., float]:
    try:
        room = importlib.import_module(ACCOUNTANT)
    except ModuleNotFoundError as error:
        if error.name != EXTRA:
            raise
        raise MissingExtra("the epsilon of a federation needs dp-accounting: pip install 'edgeml[privacy]'") from error
    found: Callable[..., float] = room.epsilon
    return found
