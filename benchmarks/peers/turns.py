"""Contenders timed in turns, in one process: what the machine does meanwhile meets all of them alike.

Their processor time counts, of all threads: what else runs on the machine takes its share of the clock, not of that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

LEAST = 20
Step = Callable[[], Any]


def quartiles(steps: Mapping[str, Step], seconds: float) -> dict[str, list[float]]:
    """Return lower quartile, median and upper quartile of each, in microseconds of
    processor time, after at least LEAST turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    end, shuffle, names = time.perf_counter() + seconds, random.Random(0), list(steps)
    while time.perf_counter() < end or len(taken[names[0]]) < LEAST:
        for name in shuffle.sample(names, len(names)):
            start = time.process_time()
            steps[name]()
            taken[name].append((time.process_time() - start) * 1e6)
    return {name: [float(q) for q in np.quantile(times, [0.25, 0.5, 0.75])] for name, times in taken.items()}
