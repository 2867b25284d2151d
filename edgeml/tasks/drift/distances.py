"""How far two histograms over the same bins are apart, and how far chance alone would take them."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

NOTABLE = 0.1  # a stability index below it is small whatever its significance, above 0.25 it is large
ERROR = 0.05  # chance of calling any feature of a model drifted when none is


@dataclass(frozen=True)
class Distances:
    """One feature: `psi` is the population stability index, `chance` the one that sampling alone exceeds rarely,
    `ks` the largest difference of cumulated shares (numbers only), `tv` the total variation: half the sum of all."""

    psi: float
    chance: float
    tv: float
    ks: float | None = None

    @property
    def drifted(self) -> bool:
        """Return whether the feature moved by more than chance explains, and notably."""
        return self.psi > max(self.chance, NOTABLE)


def distances(reference: np.ndarray, counts: np.ndarray, *, ordered: bool, of: int = 1) -> Distances:
    """Return how far `counts` are from those of `reference`, both (bins,), of one feature `of` so many.

    With N and M rows the index of B equal distributions is about (1/N + 1/M) chi^2(B - 1) (Yurdakul and Naranjo 2020).
    Half a row is added to every bin, so that an empty one does not make it infinite.

    >>> distances(np.array([50, 50]), np.array([52, 48]), ordered=True).drifted
    False
    """
    used = (reference + counts) > 0
    rows = float(reference.sum()), float(counts.sum())
    if min(rows) == 0:
        return Distances(0.0, float("inf"), 0.0, 0.0 if ordered else None)
    bins = int(used.sum())
    p, q = ((part[used] + 0.5) / (part.sum() + 0.5 * bins) for part in (reference, counts))
    plain = reference / rows[0] - counts / rows[1]
    return Distances(
        psi=float(np.sum((p - q) * np.log(p / q))),
        chance=(1 / rows[0] + 1 / rows[1]) * _chi_square(1 - ERROR / of, bins - 1),
        tv=float(np.abs(plain).sum() / 2),
        ks=float(np.abs(np.cumsum(plain)).max()) if ordered else None,
    )


def _chi_square(share: float, freedom: int) -> float:
    """Return the quantile of chi^2 by the cube of a normal (Wilson and Hilferty 1931), within 1 % here.

    >>> round(_chi_square(0.95, 10), 1)
    18.3
    """
    if freedom < 1:
        return 0.0
    spread = 2 / (9 * freedom)
    return freedom * float(1 - spread + NormalDist().inv_cdf(share) * spread**0.5) ** 3
