"""Updates of many devices -> one change of the model. One entry of AGGREGATORS per rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from edgeml.errors import UserError
from edgeml.federated.updates import Update

Aggregator = Callable[[Sequence[Update]], dict[str, np.ndarray]]


def fedavg(updates: Sequence[Update]) -> dict[str, np.ndarray]:
    """Return the mean change, weighted by rows: sums in float64, so the order of arrival hardly matters."""
    rows = float(sum(update.rows for update in updates))
    mean = {}
    for name in updates[0].delta:
        total = np.zeros(updates[0].delta[name].shape, dtype=np.float64)
        for update in updates:
            total += update.rows * update.delta[name].astype(np.float64)
        mean[name] = np.asarray(total / rows, dtype=np.float32)
    return mean


AGGREGATORS: dict[str, Aggregator] = {"fedavg": fedavg}


def aggregate(updates: Sequence[Update], *, rule: str = "fedavg") -> dict[str, np.ndarray]:
    """Return the change that `rule` makes of checked `updates`, float32 by parameter.

    Raises UserError for an unknown rule, for no updates and for an update without rows.
    """
    if rule not in AGGREGATORS:
        raise UserError(f"unknown aggregation rule {rule!r}; known: {', '.join(AGGREGATORS)}")
    if not updates:
        raise UserError("0 updates to aggregate: at least one device must have trained")
    if empty := [update.device for update in updates if update.rows < 1]:
        raise UserError(f"the update of {empty[0]} has 0 rows: leave it out")
    ordered = sorted(updates, key=lambda update: update.device)  # the same sums whoever came first
    return AGGREGATORS[rule](ordered)


def apply_delta(parameters: Mapping[str, np.ndarray], delta: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return `parameters` + `delta`, float32."""
    return {name: np.asarray(value + delta[name], dtype=np.float32) for name, value in parameters.items()}
