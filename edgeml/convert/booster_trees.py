"""Boosted trees as arrays, whatever file they came from, and what they say of rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Link = Literal["identity", "sigmoid", "softmax", "exp"]


@dataclass(frozen=True)
class Tree:
    """One tree by node: `feature`, `threshold` float32, `left` and `right` int, `missing_left` and `leaf` bool,
    `value` of leaves; a row goes left when its number is `mode` the threshold."""

    feature: np.ndarray
    threshold: np.ndarray
    left: np.ndarray
    right: np.ndarray
    missing_left: np.ndarray
    leaf: np.ndarray
    value: np.ndarray
    output: int
    mode: Literal["BRANCH_LEQ", "BRANCH_LT"]


@dataclass(frozen=True)
class Boosted:
    """Trees whose values are added to `base` by output, then taken through `link`."""

    maker: str
    trees: tuple[Tree, ...]
    features: int
    base: np.ndarray  # (outputs,)
    link: Link
    classes: int  # 0: a regressor
    slope: float = 1.0  # of the sigmoid

    @property
    def outputs(self) -> int:
        return len(self.base)


def margins(boosted: Boosted, rows: np.ndarray) -> np.ndarray:
    """Return the sum of the trees for `rows` (n, f) float32 as float64 (n, outputs), before the link."""
    total = np.tile(boosted.base.astype(np.float64), (len(rows), 1))
    for tree in boosted.trees:
        total[:, tree.output] += tree.value[_leaves(tree, rows)]
    return total


def _leaves(tree: Tree, rows: np.ndarray) -> np.ndarray:
    here = np.zeros(len(rows), dtype=np.int64)
    for _ in range(len(tree.leaf)):
        inner = ~tree.leaf[here]
        if not inner.any():
            break
        value, threshold = rows[np.arange(len(rows)), tree.feature[here]], tree.threshold[here]
        goes_left = value <= threshold if tree.mode == "BRANCH_LEQ" else value < threshold
        goes_left = np.where(np.isnan(value), tree.missing_left[here], goes_left)
        here = np.where(inner, np.where(goes_left, tree.left[here], tree.right[here]), here)
    return here
