"""Updates of many devices -> one change of the model. One entry of AGGREGATORS per rule.

Robust rules hold against `byzantine` devices that send anything; each says how many devices it needs for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgeml.errors import UserError
from edgeml.federated.updates import Update

Change = dict[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Believe:
    """How far devices are believed.

    `byzantine` is how many of a round may send anything; `clip_norm` shortens every change, all parameters taken
    together, to at most that 2-norm before it is aggregated. `fairness` is q-FedAvg's q: 0 is FedAvg, and the larger
    it is, the more count devices with a large loss; `rate` is the learning rate that the devices took.
    """

    byzantine: int = 1
    clip_norm: float | None = None
    fairness: float = 1.0
    rate: float = 0.05

    def __post_init__(self) -> None:
        if self.byzantine < 0:
            raise UserError(f"byzantine {self.byzantine}: choose 0 or more devices")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise UserError(f"clip_norm {self.clip_norm}: choose a number above 0")
        if not 0 <= self.fairness < math.inf or not 0 < self.rate < math.inf:
            raise UserError(f"fairness {self.fairness}, rate {self.rate}: choose 0 or more, and a number above 0")


TRUSTING = Believe()
Aggregator = Callable[[Sequence[Update], Believe], Change]


def fedavg(updates: Sequence[Update], believe: Believe = TRUSTING) -> Change:
    """Return the mean change, weighted by rows (arXiv 1602.05629).

    Sums are in float64, so the order of arrival hardly matters.
    """
    rows = float(sum(update.rows for update in updates))
    return _weighted(updates, [update.rows / rows for update in updates])


def fednova(updates: Sequence[Update], believe: Believe = TRUSTING) -> Change:
    """Return the mean change per local step, times the mean number of steps (arXiv 2007.07481).

    Devices that took more steps, for they have more rows, do not pull the model their way. With momentum `steps` is
    how often their gradients count together, the paper's norm of a_i (see `Federation`).
    """
    rows = float(sum(update.rows for update in updates))
    shares = [update.rows / rows for update in updates]
    steps = sum(share * update.steps for share, update in zip(shares, updates, strict=True))
    return _weighted(updates, [s * steps / update.steps for s, update in zip(shares, updates, strict=True)])


def qfedavg(updates: Sequence[Update], believe: Believe = TRUSTING) -> Change:
    """Return q-FedAvg's change (arXiv 1905.10497, algorithm 2): the larger a device's loss, the more it counts.

    sum(p_i F_i^q d_i) / sum(p_i (q F_i^(q-1) |d_i|^2 / rate + F_i^q)) with F_i the loss before training. The paper
    draws devices by their share of rows p_i; here all of a round count, with p_i as their weight. A device that told
    no loss is left out; UserError when none told one.
    """
    q, told = believe.fairness, [u for u in updates if 0 <= u.metrics.get("loss.before", math.nan) < math.inf]
    if not told:
        raise UserError(f"none of {len(updates)} devices told its loss.before, which qfedavg weighs by: use fedavg")
    losses = [max(update.metrics["loss.before"], 1e-10) for update in told]
    weights = [update.rows * loss**q for update, loss in zip(told, losses, strict=True)]
    curved = [
        update.rows * q * loss ** (q - 1) * norm(update.delta) ** 2 / believe.rate
        for update, loss in zip(told, losses, strict=True)
    ]
    total = sum(weights) + sum(curved)
    return _weighted(told, [weight / total for weight in weights])


def median(updates: Sequence[Update], believe: Believe = TRUSTING) -> Change:
    """Return the median of every coordinate, devices counted alike (arXiv 1803.01498)."""
    return {name: np.median(_stack(updates, name), axis=0).astype(np.float32) for name in updates[0].delta}


def trimmed_mean(updates: Sequence[Update], believe: Believe = TRUSTING) -> Change:
    """Return the mean of every coordinate without the `byzantine` largest and smallest (arXiv 1803.01498)."""
    cut, count = believe.byzantine, len(updates)
    _need(updates, believe, rule="trimmed_mean")
    kept = {name: np.sort(_stack(updates, name), axis=0)[cut : count - cut] for name in updates[0].delta}
    return {name: values.mean(axis=0).astype(np.float32) for name, values in kept.items()}


def krum(updates: Sequence[Update], believe: Believe = TRUSTING) -> Change:
    """Return the change of the device that lies nearest to its neighbours (NeurIPS 2017, Blanchard and others)."""
    return dict(_nearest(updates, believe, 1, rule="krum")[0].delta)


def multi_krum(updates: Sequence[Update], believe: Believe = TRUSTING) -> Change:
    """Return the mean change of the n - byzantine devices that lie nearest to their neighbours."""
    chosen = _nearest(updates, believe, len(updates) - believe.byzantine, rule="multi_krum")
    return _weighted(chosen, [1 / len(chosen)] * len(chosen))


def bulyan(updates: Sequence[Update], believe: Believe = TRUSTING) -> Change:
    """Return, of devices that Krum chose one by one, the mean of values nearest to the median (arXiv 1802.07927)."""
    _need(updates, believe, rule="bulyan")
    left, chosen = list(updates), list[Update]()
    while len(chosen) < len(updates) - 2 * believe.byzantine:
        best = _ranked(left, believe)[0]
        chosen.append(best)
        left.remove(best)
    keep = len(chosen) - 2 * believe.byzantine
    found = {}
    for name in updates[0].delta:
        values = _stack(chosen, name)
        order = np.argsort(np.abs(values - np.median(values, axis=0)), axis=0, kind="stable")[:keep]
        found[name] = np.take_along_axis(values, order, axis=0).mean(axis=0).astype(np.float32)
    return found


AGGREGATORS: dict[str, Aggregator] = {
    "fedavg": fedavg,
    "fednova": fednova,
    "qfedavg": qfedavg,
    "median": median,
    "trimmed_mean": trimmed_mean,
    "krum": krum,
    "multi_krum": multi_krum,
    "bulyan": bulyan,
}


NEEDED = {"trimmed_mean": (2, 1), "krum": (2, 3), "multi_krum": (2, 3), "bulyan": (4, 3)}  # per byzantine device, more


def aggregate(updates: Sequence[Update], *, rule: str = "fedavg", believe: Believe = TRUSTING) -> Change:
    """Return the change that `rule` makes of checked `updates`, float32 by parameter.

    Raises UserError for an unknown rule, for no updates or fewer than the rule needs, and for one without rows.
    """
    if rule not in AGGREGATORS:
        raise UserError(f"unknown aggregation rule {rule!r}; known: {', '.join(AGGREGATORS)}")
    if not updates:
        raise UserError("0 updates to aggregate: at least one device must have trained")
    if empty := [update.device for update in updates if update.rows < 1]:
        raise UserError(f"the update of {empty[0]} has 0 rows: leave it out")
    ordered = sorted(updates, key=lambda update: update.device)  # the same sums whoever came first
    if believe.clip_norm is not None:
        ordered = [_clipped(update, believe.clip_norm) for update in ordered]
    return AGGREGATORS[rule](ordered, believe)


def apply_delta(parameters: Mapping[str, np.ndarray], delta: Mapping[str, np.ndarray]) -> Change:
    """Return `parameters` + `delta`, float32."""
    return {name: np.asarray(value + delta[name], dtype=np.float32) for name, value in parameters.items()}


def norm(delta: Mapping[str, np.ndarray]) -> float:
    """Return the 2-norm of a change, all parameters taken together."""
    return math.sqrt(sum(float(np.sum(np.square(value, dtype=np.float64))) for value in delta.values()))


def _weighted(updates: Sequence[Update], weights: Sequence[float]) -> Change:
    found = {}
    for name in updates[0].delta:
        total = np.zeros(updates[0].delta[name].shape, dtype=np.float64)
        for update, weight in zip(updates, weights, strict=True):
            total += weight * update.delta[name].astype(np.float64)
        found[name] = np.asarray(total, dtype=np.float32)
    return found


def _stack(updates: Sequence[Update], name: str) -> np.ndarray:
    return np.stack([update.delta[name].astype(np.float64) for update in updates])


def _clipped(update: Update, most: float) -> Update:
    share = np.float32(min(1.0, most / max(norm(update.delta), 1e-30)))
    return replace(update, delta={name: np.asarray(value * share) for name, value in update.delta.items()})


def _nearest(updates: Sequence[Update], believe: Believe, count: int, *, rule: str) -> list[Update]:
    _need(updates, believe, rule=rule)
    return _ranked(updates, believe)[:count]


def _ranked(updates: Sequence[Update], believe: Believe) -> list[Update]:
    """Return the updates by the sum of squared distances to their n - byzantine - 2 nearest, the smallest first."""
    flat = np.stack([np.concatenate([value.ravel() for value in u.delta.values()]) for u in updates]).astype(np.float64)
    squares = (flat**2).sum(1)
    distances = np.maximum(squares[:, None] + squares[None] - 2 * flat @ flat.T, 0.0)
    near = max(1, len(updates) - believe.byzantine - 2)
    scores = np.sort(distances, axis=1)[:, 1 : near + 1].sum(1)
    return [updates[i] for i in np.argsort(scores, kind="stable")]


def least_updates(rule: str, believe: Believe = TRUSTING) -> int:
    """Return how many updates `rule` needs to hold against the devices that may send anything."""
    factor, more = NEEDED.get(rule, (0, 1))
    return factor * believe.byzantine + more


def _need(updates: Sequence[Update], believe: Believe, *, rule: str) -> None:
    if len(updates) < (least := least_updates(rule, believe)):
        raise UserError(
            f"{rule} against {believe.byzantine} byzantine devices needs {least} updates and has {len(updates)}: "
            f"ask more devices, or expect fewer byzantine ones"
        )
