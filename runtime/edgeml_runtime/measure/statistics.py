"""What a row of durations says, in the order they were taken: quantiles, and how far they may be believed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

BATCHES = 31  # odd, and enough that ranks 10 to 22 of their medians hold the true one 95 times in 100
BLOCKS, BLOCK_SAMPLES, RESAMPLES = 64, 256, 200


def confidence_of_median(samples: np.ndarray) -> tuple[float, float]:
    """Return a 95 % interval for the median of `samples`, which are in the order they were taken.

    Taken from the order statistics of batch medians, not of single runs: neighbouring runs share
    the machine's moods, and as if independent they would promise an interval far too narrow.
    """
    if len(samples) >= 4 * BATCHES:
        samples = np.array([np.median(batch) for batch in np.array_split(samples, BATCHES)])
    ordered = np.sort(samples)
    half = 1.96 * math.sqrt(len(ordered)) / 2  # normal approximation of the binomial
    low, high = math.floor(len(ordered) / 2 - half), math.ceil(len(ordered) / 2 + half)
    return float(ordered[max(0, low)]), float(ordered[min(len(ordered) - 1, high)])


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
