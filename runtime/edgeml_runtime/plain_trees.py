"""Tree ensembles in numpy: every row walks every tree at once, one level a step, never more steps than nodes.

The rules for two classes and for missing values are onnxruntime's (core/providers/cpu/ml/tree_ensemble_aggregator.h).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgeml_runtime.errors import ModelRefused

BRANCHES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "BRANCH_LEQ": np.less_equal,
    "BRANCH_LT": np.less,
    "BRANCH_GTE": np.greater_equal,
    "BRANCH_GT": np.greater,
    "BRANCH_EQ": np.equal,
    "BRANCH_NEQ": np.not_equal,
}
LEAF = "LEAF"
AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "SUM": lambda values: values.sum(axis=1),
    "AVERAGE": lambda values: values.mean(axis=1),
    "MIN": lambda values: values.min(axis=1),
    "MAX": lambda values: values.max(axis=1),
}


def regress_trees(rows: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    """Return the outputs of a TreeEnsembleRegressor for `rows`."""
    walked = _walk(rows, attributes)
    values = attributes["plan"]["weights"][walked]
    how = attributes.get("aggregate_function", "SUM")
    scores = np.asarray(AGGREGATES[how](values), dtype=np.float32)
    return transformed(scores + np.asarray(attributes.get("base_values", 0), dtype=np.float32), attributes)


def classify_trees(
    rows: np.ndarray, attributes: Mapping[str, Any], labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return labels and scores of a TreeEnsembleClassifier for `rows`."""
    walked = _walk(rows, attributes)
    scores = attributes["plan"]["weights"][walked].sum(axis=1)
    base = np.asarray(attributes.get("base_values", ()), dtype=np.float32)
    kinds = np.unique(attributes["class_ids"])
    if len(labels) != 2 or len(kinds) != 1:
        scores = scores + base if len(base) == scores.shape[1] else scores
        if len(labels) == 2:  # a row that no leaf gives the second class: what the first has is taken for it
            told = attributes["plan"]["told"][walked][..., 1].any(axis=1)
            second = np.where(told, scores[:, 1], scores[:, 0])
            both = np.where(told[:, np.newaxis], scores, np.stack([-second, second], axis=1))
            return labels[(second > 0).astype(int)], transformed(both, attributes)
        return labels[scores.argmax(axis=1)], transformed(scores, attributes)
    single = scores[:, int(kinds[0])] + (base[-1] if len(base) else np.float32(0))
    if (np.asarray(attributes["class_weights"]) >= 0).all():
        return labels[(single > 0.5).astype(int)], np.stack([1 - single, single], axis=1)
    both = np.stack([-single, single], axis=1)
    return labels[(single > 0).astype(int)], transformed(both, attributes)


def transformed(scores: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    """Return `scores` after the post_transform of `attributes`."""
    how = attributes.get("post_transform", "NONE")
    if how == "NONE":
        return scores
    if how == "LOGISTIC":
        return np.asarray(0.5 * (1 + np.tanh(0.5 * scores)), dtype=scores.dtype)
    if how == "SOFTMAX":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))
    raise ModelRefused(f"post_transform {how!r} is not among NONE, LOGISTIC, SOFTMAX: use the ONNX variant")


def _walk(rows: np.ndarray, attributes: Mapping[str, Any]) -> np.ndarray:
    """Return the index of the leaf that each row reaches in each tree: (rows, trees)."""
    rows = np.atleast_2d(rows).astype(np.float32, copy=False)
    plan = attributes["plan"]  # made once, by `planned`
    at = np.repeat(plan["roots"][np.newaxis], len(rows), axis=0)
    lines = np.arange(len(rows))[:, np.newaxis]
    for _ in range(len(plan["leaf"])):
        if plan["leaf"][at].all():
            return np.asarray(at)
        value = rows[lines, plan["feature"][at]]
        taken = plan["branch"](value, plan["value"][at])
        if plan["missing"] is not None:
            taken = taken | (np.isnan(value) & plan["missing"][at])
        at = np.where(taken, plan["yes"][at], plan["no"][at])  # a leaf leads to itself
    raise ModelRefused("a tree goes round in a circle: build the release anew")


def planned(attributes: Mapping[str, Any], kind: str, width: int) -> dict[str, Any]:
    """Return the trees of `attributes` as arrays by node, with what each leaf adds to `width` outputs of `kind`.

    Raises ModelRefused when they are no trees.
    """
    modes = {str(mode) for mode in attributes["nodes_modes"]}
    if len(modes - {LEAF}) > 1 or not modes <= {LEAF, *BRANCHES}:
        raise ModelRefused(f"trees that branch by {', '.join(sorted(modes))}: one kind at a time, of {list(BRANCHES)}")
    trees, nodes = (np.asarray(attributes[f"nodes_{name}"], np.int64) for name in ("treeids", "nodeids"))
    index = {pair: i for i, pair in enumerate(zip(trees.tolist(), nodes.tolist(), strict=True))}
    leaf = np.array([str(mode) == LEAF for mode in attributes["nodes_modes"]], dtype=bool)
    here = np.arange(len(nodes))
    yes, no = (_children(attributes[f"nodes_{name}nodeids"], trees, index, leaf=leaf) for name in ("true", "false"))
    missing = np.asarray(attributes.get("nodes_missing_value_tracks_true", ()), dtype=bool)
    values = attributes["nodes_values"] if "nodes_values" in attributes else attributes["nodes_values_as_tensor"]
    weights, told = _leaves(attributes, kind, index, width=width)
    return {
        "roots": np.array([np.flatnonzero(trees == tree)[0] for tree in dict.fromkeys(trees.tolist())]),
        "leaf": leaf,
        "feature": np.where(leaf, 0, np.asarray(attributes["nodes_featureids"], np.int64)),
        "value": np.asarray(values, np.float32),
        "yes": np.where(leaf, here, yes),
        "no": np.where(leaf, here, no),
        "missing": missing if len(missing) == len(nodes) and missing.any() else None,
        "branch": BRANCHES[next(iter(modes - {LEAF}), "BRANCH_LEQ")],
        "weights": weights,
        "told": told,  # which outputs a leaf says anything of
    }


def _children(ids: Any, trees: np.ndarray, index: Mapping[tuple[int, int], int], *, leaf: np.ndarray) -> np.ndarray:
    try:
        pairs = zip(trees.tolist(), np.asarray(ids).tolist(), leaf.tolist(), strict=True)
        return np.array([0 if ends else index[tree, child] for tree, child, ends in pairs], dtype=np.int64)
    except KeyError as error:
        raise ModelRefused(f"a tree names node {error.args[0]}, which is not there: build the release anew") from error


def _leaves(
    attributes: Mapping[str, Any], kind: str, index: Mapping[tuple[int, int], int], *, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return what each node adds to each output, and whether it says anything of it: (nodes, width) both."""
    found, told = np.zeros((len(index), width), np.float32), np.zeros((len(index), width), bool)
    owners = (np.asarray(attributes[f"{kind}_{name}"]).tolist() for name in ("treeids", "nodeids", "ids"))
    name = f"{kind}_weights"
    weights = attributes[name] if name in attributes else attributes[f"{name}_as_tensor"]
    for tree, node, column, weight in zip(*owners, np.asarray(weights).tolist(), strict=True):
        found[index[tree, node], column] += np.float32(weight)
        told[index[tree, node], column] = True
    return found, told
