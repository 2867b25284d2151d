"""Which rows are for fitting, for choosing and for judging, without a leak.

    target, groups -> split -> index arrays

A fifth goes to the held-out side: of each class where there are classes, in whole groups where rows belong together.
Rows of a class too rare to be shared out stay on the fitting side, so that every class can be learned.
"""

from __future__ import annotations

import numpy as np

from edgeml.errors import DataError

SHARE = 5  # one row in so many is held out
SHUFFLES = 30  # group splits tried; the one nearest to the whole table in size and class shares is taken


def split(
    target: np.ndarray, rng: np.random.Generator, *, stratify: bool, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted row numbers to keep and to hold out; raise DataError when there are too few rows or groups."""
    if len(target) < SHARE:
        raise DataError(f"{len(target)} rows cannot be split: at least {SHARE} are needed on each level; add rows")
    held = _by_group(target, groups, rng, stratify=stratify) if groups is not None else _by_row(target, rng, stratify)
    return np.flatnonzero(~held), np.flatnonzero(held)


def _by_row(target: np.ndarray, rng: np.random.Generator, stratify: bool) -> np.ndarray:
    """Hold out every fifth row of the shuffled rows, laid out class by class when stratified."""
    order = rng.permutation(len(target))
    if stratify:
        order = order[np.argsort(target[order], kind="stable")]
    held = np.zeros(len(target), dtype=bool)
    held[order[int(rng.integers(SHARE)) :: SHARE]] = True
    if stratify:
        held &= np.bincount(target)[target] >= SHARE
    return held


def _by_group(target: np.ndarray, groups: np.ndarray, rng: np.random.Generator, *, stratify: bool) -> np.ndarray:
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        raise DataError(
            f"data.group has {len(names)} group: at least 2 are needed to hold one out; name another column"
        )
    tries = [_whole_groups(group, rng) for _ in range(SHUFFLES)]
    if not stratify:
        return min(tries, key=lambda held: abs(held.mean() - 1 / SHARE))
    classes = len(np.unique(target))
    fair = [held for held in tries if len(np.unique(target[~held])) == classes]
    if not fair:
        raise DataError(f"no split by data.group keeps all {classes} classes on the training side: each needs 2 groups")
    return min(fair, key=lambda held: abs(held.mean() - 1 / SHARE) + _skew(target, held))


def _whole_groups(group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hold out groups in random order until a fifth of the rows is reached, never all of them."""
    sizes = np.bincount(group)
    order = rng.permutation(len(sizes))
    before = np.concatenate([[0], np.cumsum(sizes[order])[:-1]])
    chosen = order[before < len(group) / SHARE][: len(sizes) - 1]
    return np.isin(group, chosen)


def _skew(target: np.ndarray, held: np.ndarray) -> float:
    classes = int(target.max()) + 1
    shares = [np.bincount(target[side], minlength=classes) / max(side.sum(), 1) for side in (held, ~held)]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)
