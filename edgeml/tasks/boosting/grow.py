"""From summed histograms to the splits of one level, and to the values of the leaves below it.

The gain of a split is GL^2 / (HL + l2) + GR^2 / (HR + l2) - G^2 / (H + l2) (Friedman 2001; Chen and Guestrin 2016,
equation 7); equal gains go to the first feature, then to missing values on the right, then to the first bin, as in
scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from edgeml.tasks.boosting.program import BIN_BITS, COUNT, GRADIENT, HESSIAN, WHOLE
from edgeml.tasks.study import Sums

MIN_HESSIAN = 1e-3  # of a child, as in scikit-learn
_TINY = 1e-15


@dataclass(frozen=True)
class Rule:
    """What decides about a split; `bins` (features,) counts bins of numbers, `missing` (features,) says if any lack."""

    learning_rate: float
    l2: float
    min_rows: int
    bins: np.ndarray
    missing: np.ndarray


@dataclass(frozen=True)
class Histograms:
    """Sums by (output, node, feature, bin), the last bin of missing values; all exact multiples of 1 / scale."""

    gradient: np.ndarray
    hessian: np.ndarray
    count: np.ndarray

    def minus(self, other: Histograms) -> Histograms:
        """Return what is left of every sum without `other`."""
        return Histograms(self.gradient - other.gradient, self.hessian - other.hessian, self.count - other.count)

    def at(self, slot: np.ndarray, *, instead: Histograms) -> Histograms:
        """Return the sums of the node in each `slot` (outputs, nodes), or those of `instead` where it is -1."""
        where = slot[..., np.newaxis, np.newaxis]

        def taken(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
            return np.where(where < 0, theirs, np.take_along_axis(mine, np.maximum(where, 0), axis=1))

        return Histograms(
            taken(self.gradient, instead.gradient),
            taken(self.hessian, instead.hessian),
            taken(self.count, instead.count),
        )

    def totals(self) -> tuple[np.ndarray, np.ndarray]:
        """Return gradient and hessian of every node, (outputs, nodes)."""
        return self.gradient[:, :, 0].sum(axis=-1), self.hessian[:, :, 0].sum(axis=-1)


@dataclass(frozen=True)
class Splits:
    """One level: `code` int32 (outputs, nodes), WHOLE where a node stays; of the children, (outputs, nodes, 2) sums."""

    code: np.ndarray
    gradient: np.ndarray
    hessian: np.ndarray

    @property
    def slots(self) -> np.ndarray:
        """Return int32 (outputs, nodes): the place of each split node among those that are, -1 for the others."""
        split = self.code != WHOLE
        return np.where(split, np.cumsum(split, axis=1) - 1, -1).astype(np.int32)

    @property
    def any(self) -> bool:
        """Return whether any node is split."""
        return bool((self.code != WHOLE).any())


def read(sums: Sums, scale: float, above: tuple[Histograms, np.ndarray] | None) -> Histograms:
    """Return the histograms of a level; `above` is the level before it with the `slots` of its nodes.

    What was summed is of left children, the rest is of right ones; a node that was not split is its own left child.
    """
    gradient, count = sums[GRADIENT] / scale, sums[COUNT]
    summed = Histograms(gradient, sums[HESSIAN] / scale if HESSIAN in sums else count, count)
    if above is None:
        return summed
    parents, slot = above
    left = summed.at(slot, instead=parents)
    right = parents.minus(left)
    pairs = [
        np.stack([a, b], axis=2).reshape(len(a), -1, *a.shape[2:])
        for a, b in ((left.gradient, right.gradient), (left.hessian, right.hessian), (left.count, right.count))
    ]
    return Histograms(*pairs)


def best_splits(found: Histograms, rule: Rule) -> Splits:
    """Return the best split of every node, or none where no split gains anything or leaves too few rows on a side."""
    g, h, n = (_left_sums(part) for part in (found.gradient, found.hessian, found.count))  # (..., features, candidates)
    total_g, total_h = found.totals()
    total_n = found.count[:, :, 0].sum(axis=-1)
    G, H, N = (total[..., np.newaxis, np.newaxis] for total in (total_g, total_h, total_n))
    allowed = _candidates(rule, found.gradient.shape[-1] - 1)
    allowed = allowed & (n >= rule.min_rows) & (N - n >= rule.min_rows)
    allowed &= (h >= MIN_HESSIAN) & (H - h >= MIN_HESSIAN)

    def score(gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
        return np.asarray(gradient * gradient / (np.maximum(hessian, 0.0) + rule.l2 + _TINY))

    gain = np.where(allowed, score(g, h) + score(G - g, H - h) - score(G, H), -np.inf)
    flat = gain.reshape(*gain.shape[:2], -1)
    at = flat.argmax(axis=-1)[..., np.newaxis]
    split = np.take_along_axis(flat, at, axis=-1)[..., 0] > 0

    def chosen(part: np.ndarray) -> np.ndarray:
        return np.asarray(np.take_along_axis(part.reshape(flat.shape), at, axis=-1)[..., 0])

    code = _codes(at[..., 0], rule, rows=(chosen(n), total_n), candidates=gain.shape[-1])
    left_g, left_h = np.where(split, chosen(g), total_g), np.where(split, chosen(h), total_h)
    return Splits(
        np.where(split, code, WHOLE).astype(np.int32),
        np.stack([left_g, total_g - left_g], axis=-1),
        np.stack([left_h, total_h - left_h], axis=-1),
    )


def _left_sums(part: np.ndarray) -> np.ndarray:
    """Return what is left of each candidate: bins upwards, missing right; then bins downwards, missing left."""
    below = np.cumsum(part[..., :-1], axis=-1)
    return np.concatenate([below, (below + part[..., -1:])[..., ::-1]], axis=-1)


def _candidates(rule: Rule, values: int) -> np.ndarray:
    """Return bool (features, candidates): a split leaves numbers on both sides, or numbers here and missing there."""
    position = np.arange(values)
    last = rule.bins[:, np.newaxis] - 1
    missing = rule.missing[:, np.newaxis]
    return np.concatenate([position < last + missing, ((position < last) & missing)[:, ::-1]], axis=1)


def _codes(at: np.ndarray, rule: Rule, *, rows: tuple[np.ndarray, np.ndarray], candidates: int) -> np.ndarray:
    feature, candidate = at // candidates, at % candidates
    values = candidates // 2
    left = candidate >= values
    bin_ = np.where(left, candidates - 1 - candidate, candidate)
    on_left, total = rows
    # a feature that never lacks sends what lacks later where most rows go, as in scikit-learn
    goes_left = np.where(rule.missing[feature], left, 2 * on_left > total)
    return np.asarray((feature << (BIN_BITS + 1)) | (bin_ << 1) | goes_left)


@dataclass(frozen=True)
class Trees:
    """Complete trees in heap order: codes int32 (trees, outputs, 2^d - 1), leaves float32 (trees, outputs, 2^d)."""

    split: np.ndarray
    leaf: np.ndarray

    def __len__(self) -> int:
        return len(self.split)

    @classmethod
    def none(cls, *, outputs: int, depth: int) -> Trees:
        """Return no trees yet."""
        width = 2**depth - 1
        return cls(np.zeros((0, outputs, width), np.int32), np.zeros((0, outputs, width + 1), np.float32))

    def add(self, levels: list[Splits], rule: Rule) -> Trees:
        """Return these and one tree of each output, grown by `levels`."""
        _, outputs, width = self.split.shape
        code = np.full((outputs, width), WHOLE, np.int32)
        for level, splits in enumerate(levels):
            code[:, 2**level - 1 : 2 ** (level + 1) - 1] = splits.code
        last = levels[-1]
        value = -rule.learning_rate * last.gradient / (np.maximum(last.hessian, 0.0) + rule.l2 + _TINY)
        leaf = np.zeros((outputs, width + 1), np.float32)
        step = (width + 1) >> len(levels)  # rows of a node that stays whole go to its first leaf
        leaf[:, ::step] = value.reshape(outputs, -1)
        return replace(
            self,
            split=np.concatenate([self.split, code[np.newaxis]]),
            leaf=np.concatenate([self.leaf, leaf[np.newaxis]]),
        )

    def padded(self, room: int) -> Trees:
        """Return these with empty ones behind, `room` in all."""
        more = ((0, room - len(self)), (0, 0), (0, 0))
        return Trees(np.pad(self.split, more, constant_values=WHOLE), np.pad(self.leaf, more))


def answers(trees: Trees, bins: np.ndarray, *, missing: int) -> np.ndarray:
    """Return by numpy what the trees add up to for binned rows (n, features): float64 (n, outputs)."""
    total = np.zeros((len(bins), trees.split.shape[1]))
    depth = int(np.log2(trees.leaf.shape[2]))
    rows = np.arange(len(bins))
    for split, leaf in zip(trees.split, trees.leaf, strict=True):
        for output, (code, value) in enumerate(zip(split, leaf, strict=True)):
            node = np.zeros(len(bins), dtype=np.int64)
            for _ in range(depth):
                at = code[node]
                found = bins[rows, at >> (BIN_BITS + 1)]
                right = (found > (at >> 1 & 255)) & ~((found == missing) & (at & 1 == 1))
                node = 2 * node + 1 + right
            total[:, output] += value[node - len(code)]
    return total
