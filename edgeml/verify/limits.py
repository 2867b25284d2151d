"""The thresholds of the gate, as a project file may set them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a variant may differ by. `max_drop` is absolute on the metric, the others have no unit."""

    max_drop: float = 0.01  # of the metric: the upper bound of the drop must stay within
    fp32_relative: float = 1e-4  # float32 sums in another order stay within; a wrong converter does not
    tensor_rms: float = 0.05  # of the spread of the source's outputs, where no labels can judge
    confidence: float = 0.95  # of the upper bound
    resamples: int = 1000
    tie: float = 1e-6  # two best scores of the source this close: either label is right
    seed: int = 0
