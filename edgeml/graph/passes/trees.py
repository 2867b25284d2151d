"""Tree ensembles without what decides nothing: weights of zero, splits whose two leaves are equal, unused attributes.

For TreeEnsembleClassifier and TreeEnsembleRegressor of ai.onnx.ml 1 to 3. Exact: sums lose only zeros, and a row ends
in a leaf of the same weights.
"""

from __future__ import annotations

import numpy as np
from onnx import ModelProto

from edgeml.graph.forests import OF_NODES, OPTIONAL, Forest, read_forest, write_forest

TWO_CLASSES = 2  # onnxruntime takes a row that reaches one score of two for the positive class: they keep their zeros


def trees(proto: ModelProto) -> list[str]:
    """Drop zero weights, equal leaves and attributes that runtimes do not read from every tree ensemble. Exact."""
    counts = np.zeros((2, 2), dtype=np.int64)
    for node in proto.graph.node:
        if node.op_type not in ("TreeEnsembleClassifier", "TreeEnsembleRegressor") or not node.domain:
            continue
        forest = read_forest(node)
        if forest is None:
            continue
        counts[0] += len(forest.nodes["treeids"]), len(forest.weights["ids"])
        _drop_zeros(forest)
        while _join_equal_leaves(forest):
            pass
        counts[1] += len(forest.nodes["treeids"]), len(forest.weights["ids"])
        write_forest(node, forest)
    if (counts[0] == counts[1]).all():
        return []
    (nodes, weights), (nodes_left, weights_left) = counts
    return [f"trees: {nodes_left:,} of {nodes:,} nodes and {weights_left:,} of {weights:,} leaf weights stay"]


def _drop_zeros(forest: Forest) -> None:
    """Drop weights of zero, but the first one of a leaf that has no other, and of a class that has no other."""
    weights = forest.weights
    if forest.prefix == "class" and len(np.unique(weights["ids"])) <= TWO_CLASSES:
        return
    keep = weights["weights"] != 0
    for group in (forest.keys(weights["treeids"], weights["nodeids"]), weights["ids"]):
        alive = np.unique(group[keep])
        values, first = np.unique(group, return_index=True)
        keep[first[~np.isin(values, alive)]] = True
    forest.weights = {name: array[keep] for name, array in weights.items()}


def _join_equal_leaves(forest: Forest) -> bool:
    """Make leaves of the splits whose two children are leaves with the same weights; False when there is none."""
    nodes = forest.nodes
    leaf = forest.is_leaf
    sides = [forest.positions(nodes["treeids"], nodes[name]) for name in ("truenodeids", "falsenodeids")]
    said = _leaf_texts(forest)
    chosen = [
        index
        for index in np.flatnonzero(~leaf & leaf[sides[0]] & leaf[sides[1]])
        if said.get(int(sides[0][index])) == said.get(int(sides[1][index]))
    ]
    if not chosen:
        return False
    owner = forest.positions(forest.weights["treeids"], forest.weights["nodeids"])
    gone = np.isin(np.arange(len(leaf)), sides[1][chosen])
    left = dict(zip(sides[0][chosen].tolist(), chosen, strict=True))
    forest.weights = {name: array[~gone[owner]] for name, array in forest.weights.items()}
    for row, position in enumerate(owner[~gone[owner]].tolist()):
        if position in left:
            forest.weights["nodeids"][row] = nodes["nodeids"][left[position]]
    nodes["modes"][chosen] = nodes["modes"][sides[0][chosen]]
    for name in (*OF_NODES[2:4], *OF_NODES[5:], OPTIONAL):
        if name in nodes:
            nodes[name][chosen] = 0
    stays = ~np.isin(np.arange(len(leaf)), np.concatenate([side[chosen] for side in sides]))
    forest.nodes = {name: array[stays] for name, array in nodes.items()}
    return True


def _leaf_texts(forest: Forest) -> dict[int, bytes]:
    """Return for every leaf, by its position, the bytes of its ids and weights."""
    owner = forest.positions(forest.weights["treeids"], forest.weights["nodeids"])
    order = np.lexsort((forest.weights["ids"], owner))
    starts = np.flatnonzero(np.r_[True, np.diff(owner[order]) != 0])
    ids, values = forest.weights["ids"][order], forest.weights["weights"][order]
    ends = [*starts[1:].tolist(), len(order)]
    return {
        int(owner[order[start]]): ids[start:end].tobytes() + values[start:end].tobytes()
        for start, end in zip(starts.tolist(), ends, strict=True)
    }
