"""What a row of durations says, in the order they were taken: quantiles, and how far they may be believed.

Neighbouring durations share the machine's moods. Taken as independent, they would promise far too much; so every
interval here first asks how much alike neighbours are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

BATCHES = (16, 32, 64, 128)  # into which a row is cut to see how much alike neighbours are
Z95 = 2.13  # Student's t for the fewest batches: how alike they are is an estimate, too
BLOCKS, BLOCK_SAMPLES, RESAMPLES = 64, 256, 200
LEAST_PIECES = 4  # with sessions of their own: fewer say nothing of how sessions differ
NORMAL95 = 1.959964  # the normal distribution's 97.5 % quantile


def order_interval(samples: np.ndarray, quantile: float) -> tuple[float, float] | None:
    """Return a 95 % interval for a quantile of `samples`, in the order taken; None when they are too few for it.

    From order statistics (the binomial's normal approximation), with the count divided by `likeness`: 100 durations of
    which ten in a row are alike say as much as ten. A p99.9 needs some 4,500 durations that are unlike, a p99 450.
    """
    count, ordered = len(samples), np.sort(samples)
    alike = likeness(samples <= ordered[min(count - 1, int(quantile * count))], quantile)
    half = Z95 * math.sqrt(count * quantile * (1 - quantile) * alike)
    low, high = math.floor(count * quantile - half), math.ceil(count * quantile + half)
    return (float(ordered[low]), float(ordered[high])) if low >= 0 and high < count else None


def likeness(below: np.ndarray, quantile: float) -> float:
    """Return how many neighbours count as one, 1 when all are independent, by batch means of "is below it".

    The largest of several lengths of batch, so that a slow drift is seen as well as a fast flutter.
    """
    spread, found = quantile * (1 - quantile), 1.0
    for batches in BATCHES:
        if (length := len(below) // batches) < 1:
            break
        means = below[: batches * length].reshape(batches, length).mean(axis=1)
        found = max(found, length * float(means.var(ddof=1)) / spread)
    return found


def confidence_of_median(samples: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval for the median of `samples`, in the order taken; from end to end when they are too few."""
    return order_interval(samples, 0.5) or (float(samples.min()), float(samples.max()))


def intervals(
    samples: np.ndarray, quantiles: Mapping[str, float], pieces: Sequence[np.ndarray] = ()
) -> dict[str, tuple[float, float]]:
    """Return a 95 % interval of each of `quantiles` that there are enough `samples` for, the median's in any case.

    Each reaches from the lower to the upper end of `order_interval` and `bootstrap` together, and as far as
    `repeated` says of `pieces`: so it holds what the same measurement gives when it is done again.
    """
    told = bootstrap(samples, tuple(quantiles.values()))
    found = {}
    for (name, quantile), (low, high) in zip(quantiles.items(), told, strict=True):
        ranks = order_interval(samples, quantile)
        if ranks is None and quantile == 0.5:
            ranks = confidence_of_median(samples)
        if ranks is not None:
            middle, far = float(np.quantile(samples, quantile)), repeated(pieces, quantile)
            found[name] = (min(low, ranks[0], middle - far), max(high, ranks[1], middle + far))
    return found


def repeated(pieces: Sequence[np.ndarray], quantile: float) -> float:
    """Return how far, with 95 % probability, the same measurement done again lies from this one; 0 if nothing tells.

    Each of `pieces` are durations of a session of its own, whose memory lies elsewhere: what differs between them
    differs between two runs, and no row of durations from one session shows it. A run is the mean of k pieces with
    standard deviation s, so is the other, and their difference is within t(k - 1) s sqrt(2 / k) (prediction of a
    future mean; Hahn and Meeker, Statistical Intervals, 1991); times sqrt(pi / 2), for where sessions differ most the
    quantile of all is like a median of theirs, not a mean. It knows the moods of its own seconds, no slower ones.
    """
    if len(pieces) < LEAST_PIECES:
        return 0.0
    spread = float(np.std([np.quantile(piece, quantile) for piece in pieces], ddof=1))
    return student(len(pieces) - 1) * spread * math.sqrt(math.pi / len(pieces))


def student(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, for 3 or more degrees of freedom within 0.1 %.

    Fisher and Cornish's expansion (Technometrics 2, 1960).
    """
    z, v = NORMAL95, freedom
    terms = (
        (z**3 + z) / (4 * v),
        (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2),
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3),
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4),
    )
    return z + sum(terms)


def bootstrap(samples: np.ndarray, quantiles: Sequence[float], seed: int = 0) -> tuple[tuple[float, float], ...]:
    """Return a 95 % interval for each of `quantiles` (0 to 1) of `samples`, which are in the order taken.

    A block bootstrap (Kunsch, Annals of Statistics 17, 1989): whole stretches are drawn again, so that runs which
    share a mood stay together. Long stretches are thinned evenly; fewer than 2 blocks give (min, max).
    """
    blocks = [_thin(block) for block in np.array_split(samples, min(BLOCKS, max(1, len(samples) // 4)))]
    if len(blocks) < 2:
        return tuple((float(samples.min()), float(samples.max())) for _ in quantiles)
    generator = np.random.default_rng(seed)
    drawn = np.empty((RESAMPLES, len(quantiles)))
    for row in range(RESAMPLES):
        chosen = np.concatenate([blocks[i] for i in generator.integers(0, len(blocks), len(blocks))])
        drawn[row] = np.quantile(chosen, quantiles)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return tuple(zip(low.tolist(), high.tolist(), strict=True))


def _thin(block: np.ndarray) -> np.ndarray:
    if len(block) <= BLOCK_SAMPLES:
        return block
    evenly: np.ndarray = block[np.linspace(0, len(block) - 1, BLOCK_SAMPLES).astype(int)]
    return evenly
