"""LightGBM's text model: `key=value` lines, one block for each tree.

A row goes left when its float64 value is at most the threshold. `decision_type` has bit 0 for a categorical split,
bit 1 for missing to the left, bits 2 and 3 for what is missing: nothing (NaN counts as 0), zero, or NaN
(LightGBM, src/io/tree.cpp and include/LightGBM/tree.h).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeml.convert.booster_trees import Boosted, Link, Tree
from edgeml.convert.sklearn_trees import float32_below
from edgeml.errors import UnsupportedModel

CATEGORICAL, MISSING_LEFT, MISSING_ZERO, MISSING_NAN = 1, 2, 1, 2
LINKS: dict[str, Link] = {
    **dict.fromkeys(("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank"), "identity"),
    **dict.fromkeys(("rank_xendcg",), "identity"),
    **dict.fromkeys(("poisson", "gamma", "tweedie"), "exp"),
    **dict.fromkeys(("binary", "cross_entropy"), "sigmoid"),
    "multiclass": "softmax",
}


def parse_lightgbm(text: str) -> Boosted:
    """Return the model written in `text`; raise UnsupportedModel for what no tree ensemble can say."""
    if not text.startswith("tree") or "\nend of trees" not in text:
        raise ValueError("does not start with 'tree' or lacks its end")
    head, *blocks = (_pairs(block) for block in text.split("\nend of trees")[0].split("\nTree="))
    name, *words = head["objective"].split()
    options = dict(word.split(":", 1) for word in words if ":" in word)
    if name not in LINKS or "sqrt" in words:
        raise UnsupportedModel(f"LightGBM objective {head['objective']!r}: there is {', '.join(LINKS)}")
    outputs = int(head["num_tree_per_iteration"])
    trees = [_tree(block, index % outputs) for index, block in enumerate(blocks)]
    if "average_output" in head:
        raise UnsupportedModel("LightGBM boosting=rf averages its trees: use gbdt or dart")
    classes = {"sigmoid": 2 if name == "binary" else 0, "softmax": outputs}.get(LINKS[name], 0)
    return Boosted(
        "LightGBM",
        tuple(trees),
        int(head["max_feature_idx"]) + 1,
        np.zeros(outputs),
        LINKS[name],
        classes,
        float(options.get("sigmoid", 1.0)),
    )


def _pairs(block: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in block.splitlines() if line)


def _tree(block: Mapping[str, str], output: int) -> Tree:
    leaves = int(block["num_leaves"])
    if block.get("is_linear", "0") != "0":
        raise UnsupportedModel("LightGBM linear_tree=true has linear models in its leaves: train without it")
    inner = leaves - 1

    def whole(name: str) -> np.ndarray:
        return np.array(block[name].split(), dtype=np.int64) if inner else np.zeros(0, np.int64)

    decision, left, right = whole("decision_type"), whole("left_child"), whole("right_child")
    if (decision & CATEGORICAL).any():
        raise UnsupportedModel("LightGBM splits on native categories: one-hot encode them before training")
    missing = (decision >> 2) & 3
    if (missing == MISSING_ZERO).any():
        raise UnsupportedModel("LightGBM zero_as_missing=true: train without it")
    exact = np.array(block["threshold"].split(), dtype=np.float64) if inner else np.zeros(0)
    nan_left = np.where(missing == MISSING_NAN, decision & MISSING_LEFT > 0, exact >= 0)
    values = np.array(block["leaf_value"].split(), dtype=np.float64)
    pad = np.zeros(leaves)
    return Tree(
        np.concatenate([whole("split_feature"), pad.astype(np.int64)]),
        np.concatenate([float32_below(exact), pad.astype(np.float32)]),
        np.concatenate([_nodes(left, inner), pad.astype(np.int64)]),
        np.concatenate([_nodes(right, inner), pad.astype(np.int64)]),
        np.concatenate([nan_left, pad.astype(bool)]),
        np.arange(inner + leaves) >= inner,
        np.concatenate([np.zeros(inner), values]),
        output,
        "BRANCH_LEQ",
    )


def _nodes(children: np.ndarray, inner: int) -> np.ndarray:
    """Return node numbers: leaves, written as ~leaf, come after the inner nodes."""
    return np.where(children < 0, inner + ~children, children)
