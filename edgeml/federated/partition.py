"""Rows of one data set dealt to many devices: evenly, by labels, or by what a column says. Pure; the seed decides.

iid           every device gets rows at random
dirichlet:A   the rows of every class go to devices by shares drawn from Dirichlet(A): the less A, the less alike
shards:K      rows sorted by label, cut into K pieces a device, dealt at random (arXiv 1602.05629)
COLUMN        rows of one value stay together; of more values than devices, several go to one
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from edgeml.errors import UserError

BINS = 10  # that numbers to predict are sorted into, in place of classes
Shares = list[np.ndarray]


def partition(
    spec: str, target: np.ndarray, *, devices: int, seed: int = 0, groups: np.ndarray | None = None
) -> Shares:
    """Return, for each device, the indices of its rows, int64 and increasing; every row goes to one device.

    `groups` holds what the column in `spec` says of each row. Raises UserError for an unknown spec, and where there are
    more devices than rows or groups.
    """
    if not 1 <= devices <= len(target):
        raise UserError(f"{devices} devices and {len(target):,} rows: ask for 1 to {len(target):,} devices")
    name, _, option = spec.partition(":")
    rng = np.random.default_rng([seed, devices])
    if groups is not None:
        found = _by_group(groups, devices, spec)
    elif name in PARTITIONS:
        found = PARTITIONS[name](_classes(target), devices, _number(spec, option), rng=rng)
    else:
        raise UserError(f"unknown partition {spec!r}; known: iid, dirichlet:ALPHA, shards:COUNT, or a column")
    return [np.sort(share).astype(np.int64) for share in found]


def is_column(spec: str) -> bool:
    """Return whether `spec` names a column, not a rule."""
    return spec.partition(":")[0] not in PARTITIONS


def check_spec(spec: str) -> None:
    """Raise UserError when `spec` is a rule with a number that cannot be."""
    if not is_column(spec):
        _number(spec, spec.partition(":")[2])


def _iid(labels: np.ndarray, devices: int, option: float, *, rng: np.random.Generator) -> Shares:
    return np.array_split(rng.permutation(len(labels)), devices)


def _dirichlet(labels: np.ndarray, devices: int, alpha: float, *, rng: np.random.Generator) -> Shares:
    parts: list[list[np.ndarray]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        ends = np.cumsum(rng.dirichlet(np.full(devices, alpha)))[:-1] * len(rows)
        for part, share in zip(parts, np.split(rows, ends.round().astype(int)), strict=True):
            part.append(share)
    return _nobody_empty([np.concatenate(part) for part in parts])


def _nobody_empty(shares: Shares) -> Shares:
    """Let the largest share give one row to each that has none."""
    for i, share in enumerate(shares):
        if not len(share):
            largest = int(np.argmax([len(other) for other in shares]))
            shares[i], shares[largest] = shares[largest][-1:], shares[largest][:-1]
    return shares


def _shards(labels: np.ndarray, devices: int, count: float, *, rng: np.random.Generator) -> Shares:
    pieces, each = devices * int(count), int(count)
    if pieces > len(labels):
        raise UserError(f"{devices} devices with {each} shards each are more than {len(labels):,} rows: ask for fewer")
    shuffled = rng.permutation(len(labels))
    cut = np.array_split(shuffled[np.argsort(labels[shuffled], kind="stable")], pieces)
    order = rng.permutation(pieces)
    return [np.concatenate([cut[i] for i in order[d * each : (d + 1) * each]]) for d in range(devices)]


def _by_group(groups: np.ndarray, devices: int, spec: str) -> Shares:
    """Give every group, the largest first, to the device that has the fewest rows."""
    values, member = np.unique(groups.astype(str), return_inverse=True)
    if devices > len(values):
        raise UserError(f"{devices} devices, and column {spec!r} has {len(values)} values: ask for at most that many")
    sizes = np.bincount(member)
    held, owner = np.zeros(devices, np.int64), np.zeros(len(values), np.int64)
    for group in np.argsort(-sizes, kind="stable"):
        owner[group] = int(np.argmin(held))
        held[owner[group]] += sizes[group]
    return [np.flatnonzero(owner[member] == device) for device in range(devices)]


class Rule(Protocol):
    """Deals rows with these `labels` to `devices`; `option` is the number behind the colon."""

    def __call__(self, labels: np.ndarray, devices: int, option: float, /, *, rng: np.random.Generator) -> Shares: ...


PARTITIONS: dict[str, Rule] = {"iid": _iid, "dirichlet": _dirichlet, "shards": _shards}


def _number(spec: str, option: str) -> float:
    """Return the number behind the colon; raise UserError where it is missing or cannot be."""
    name = spec.partition(":")[0]
    if name == "iid" and not option:
        return 0.0
    try:
        value = float(option)
    except ValueError:
        value = -1.0
    if name == "iid" or not 0 < value < float("inf") or (name == "shards" and value != int(value)):
        raise UserError(f"partition {spec!r}: write iid, dirichlet:0.1 (above 0) or shards:2 (a whole number)")
    return value


def _classes(target: np.ndarray) -> np.ndarray:
    """Return class indices as they are, and numbers by the bin of their rank."""
    if target.dtype.kind in "iub":
        return target
    ranks = np.argsort(np.argsort(target.ravel(), kind="stable"), kind="stable")
    return ranks * BINS // max(1, len(ranks))


def skew(labels: np.ndarray, shares: Sequence[np.ndarray]) -> float:
    """Return how far devices are from the whole: the mean total variation between their labels and all, 0 to 1."""
    classes = np.unique(labels)
    everywhere = np.array([np.mean(labels == label) for label in classes])
    here = [np.array([np.mean(labels[share] == label) for label in classes]) for share in shares if len(share)]
    return float(np.mean([0.5 * np.abs(mine - everywhere).sum() for mine in here]))
