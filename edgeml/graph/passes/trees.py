"""Tree ensembles without what decides nothing: weights of zero, splits whose two leaves are equal, unused attributes.

For TreeEnsembleClassifier and TreeEnsembleRegressor of ai.onnx.ml 1 to 3, which keep nodes and leaf weights in parallel
lists. Exact: sums lose only zeros, and a row ends in a leaf of the same weights.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto

from edgeml.graph.proto import attribute

LEAF = (b"LEAF", "LEAF")
OF_NODES = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
OPTIONAL = "missing_value_tracks_true"
TWO_CLASSES = 2  # onnxruntime takes a row that reaches one score of two for the positive class: they keep their zeros
SUMS = (b"SUM", "SUM", b"AVERAGE", "AVERAGE")


@dataclass
class _Forest:
    """Parallel arrays: of nodes (n,), of leaf weights (m,)."""

    nodes: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    prefix: str

    def keys(self, tree: np.ndarray, node: np.ndarray) -> np.ndarray:
        """Return one number for every pair of tree and node."""
        return np.asarray(tree * (int(self.nodes["nodeids"].max(initial=0)) + 1) + node)

    def positions(self, tree: np.ndarray, node: np.ndarray) -> np.ndarray:
        """Return where in the arrays of nodes each pair of tree and node is."""
        own = self.keys(self.nodes["treeids"], self.nodes["nodeids"])
        order = np.argsort(own, kind="stable")
        found = np.searchsorted(own[order], self.keys(tree, node))
        return np.asarray(order[np.minimum(found, len(own) - 1)])


def trees(proto: ModelProto) -> list[str]:
    """Drop zero weights, equal leaves and attributes that runtimes do not read from every tree ensemble. Exact."""
    counts = np.zeros((2, 2), dtype=np.int64)
    for node in proto.graph.node:
        if node.op_type not in ("TreeEnsembleClassifier", "TreeEnsembleRegressor") or not node.domain:
            continue
        forest = _read(node)
        if forest is None:
            continue
        counts[0] += len(forest.nodes["treeids"]), len(forest.weights["ids"])
        _drop_zeros(forest)
        while _join_equal_leaves(forest):
            pass
        counts[1] += len(forest.nodes["treeids"]), len(forest.weights["ids"])
        _write(node, forest)
    if (counts[0] == counts[1]).all():
        return []
    (nodes, weights), (nodes_left, weights_left) = counts
    return [f"trees: {nodes_left:,} of {nodes:,} nodes and {weights_left:,} of {weights:,} leaf weights stay"]


def _read(node: NodeProto) -> _Forest | None:
    """Return the arrays of a node, None when it keeps them otherwise (as tensors, or not as a sum)."""
    prefix = "class" if node.op_type.endswith("Classifier") else "target"
    nodes = {name: np.array(attribute(node, f"nodes_{name}", [])) for name in OF_NODES}
    weights = {
        name: np.array(attribute(node, f"{prefix}_{name}", [])) for name in ("treeids", "nodeids", "ids", "weights")
    }
    if (missing := attribute(node, f"nodes_{OPTIONAL}")) is not None:
        nodes[OPTIONAL] = np.array(missing)
    sizes = {len(array) for array in nodes.values()}, {len(array) for array in weights.values()}
    if any(len(size) != 1 or 0 in size for size in sizes) or attribute(node, "aggregate_function", "SUM") not in SUMS:
        return None
    weights["weights"] = weights["weights"].astype(np.float32)
    nodes["values"] = nodes["values"].astype(np.float32)
    return _Forest(nodes, weights, prefix)


def _drop_zeros(forest: _Forest) -> None:
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


def _join_equal_leaves(forest: _Forest) -> bool:
    """Make leaves of the splits whose two children are leaves with the same weights; False when there is none."""
    nodes = forest.nodes
    leaf = np.array([mode in LEAF for mode in nodes["modes"].tolist()], dtype=bool)
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


def _leaf_texts(forest: _Forest) -> dict[int, bytes]:
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


def _write(node: NodeProto, forest: _Forest) -> None:
    arrays = {f"nodes_{name}": array for name, array in forest.nodes.items()}
    arrays |= {f"{forest.prefix}_{name}": array for name, array in forest.weights.items()}
    dropped = (
        {"nodes_hitrates"} if forest.nodes.get(OPTIONAL, np.ones(1)).any() else {"nodes_hitrates", f"nodes_{OPTIONAL}"}
    )
    kept = [one for one in node.attribute if one.name not in dropped]
    for one in kept:
        if one.name not in arrays:
            continue
        values = arrays[one.name]
        if one.type == AttributeProto.FLOATS:
            one.floats[:] = values.astype(float).tolist()
        elif one.type == AttributeProto.INTS:
            one.ints[:] = values.astype(np.int64).tolist()
        else:
            one.strings[:] = [text if isinstance(text, bytes) else str(text).encode() for text in values.tolist()]
    copies = [AttributeProto.FromString(one.SerializeToString()) for one in kept]
    del node.attribute[:]
    node.attribute.extend(copies)
