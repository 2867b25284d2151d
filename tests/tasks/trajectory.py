"""Local epochs in numpy, in float64, with all that may correct a step; of our code only the order of rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeml.tasks import permutation
from tests.tasks.test_training_task import loss_and_gradients

Arrays = Mapping[str, np.ndarray]


def trained(
    start: Arrays,
    *,
    rows: tuple[np.ndarray, np.ndarray],
    epochs: int,
    batch_size: int,
    rate: float,
    seed: int,
    anchor: Arrays | None = None,
    mu: float = 0.0,
    control: Arrays | None = None,
    momentum: float = 0.0,
    decay: float = 1.0,
) -> dict[str, Any]:
    """Return the parameters after all epochs."""
    x, y = rows
    w: dict[str, Any] = {name: np.asarray(value, np.float64) for name, value in start.items()}
    v = {name: np.zeros_like(value) for name, value in w.items()}
    for epoch in range(epochs):
        order = permutation(len(x), seed, epoch)
        for first in range(0, len(x), batch_size):
            batch = order[first : first + batch_size]
            slopes = loss_and_gradients(x[batch], y[batch], w)[1]
            for name in w:
                slope = slopes[name] + mu * (w[name] - (anchor or start)[name])
                v[name] = momentum * v[name] + slope + (control[name] if control else 0.0)
            w = {name: w[name] - rate * decay**epoch * v[name] for name in w}
    return w
