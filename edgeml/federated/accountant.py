"""The epsilon of Gaussian noise added many times, by dp-accounting: needs the extra `privacy`."""

from __future__ import annotations

import functools

import dp_accounting
from dp_accounting import pld, rdp

LEAST_NOISE = (
    0.2  # of the accountant by loss distributions with sampling; below it the distribution does not fit memory
)


@functools.lru_cache(maxsize=4096)
def epsilon(noise: float, rounds: int, *, sampling: float, delta: float) -> float:
    """Return the epsilon at `delta` of `rounds` sums with Gaussian noise of `noise` sensitivities each.

    Each sum is of devices that took part with probability `sampling`. Without sampling the figure is exact
    (arXiv 1805.06530), for `rounds` sums are one of noise / sqrt(rounds); with it, it is an upper bound from privacy
    loss distributions (arXiv 2106.08567), or from Renyi divergences (arXiv 1908.10530) for very little noise.
    """
    if sampling == 1:
        return float(dp_accounting.get_epsilon_gaussian(noise / rounds**0.5, delta))
    accountant = pld.PLDAccountant() if noise >= LEAST_NOISE else rdp.RdpAccountant()
    each = dp_accounting.PoissonSampledDpEvent(sampling, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(dp_accounting.SelfComposedDpEvent(each, rounds))
    return float(accountant.get_epsilon(delta))
