"""The trees of a TreeEnsembleClassifier or TreeEnsembleRegressor of ai.onnx.ml 1 to 3 as arrays, and back.

NodeProto -read_forest-> Forest -write_forest-> the same NodeProto
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, NodeProto

from edgeml.graph.proto import attribute

LEAF = (b"LEAF", "LEAF")
OF_NODES = ("treeids", "nodeids", "featureids", "values", "modes", "truenodeids", "falsenodeids")
OPTIONAL = "missing_value_tracks_true"
SUMS = (b"SUM", "SUM", b"AVERAGE", "AVERAGE")


@dataclass
class Forest:
    """Parallel arrays: of nodes (n,), of leaf weights (m,)."""

    nodes: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    prefix: str

    def keys(self, tree: np.ndarray, node: np.ndarray) -> np.ndarray:
        """Return one number for every pair of tree and node."""
        return np.asarray(tree * (int(self.nodes["nodeids"].max(initial=0)) + 1) + node)

    @property
    def is_leaf(self) -> np.ndarray:
        """Which nodes are leaves: bool (n,)."""
        return np.array([mode in LEAF for mode in self.nodes["modes"].tolist()], dtype=bool)

    def positions(self, tree: np.ndarray, node: np.ndarray) -> np.ndarray:
        """Return where in the arrays of nodes each pair of tree and node is."""
        own = self.keys(self.nodes["treeids"], self.nodes["nodeids"])
        order = np.argsort(own, kind="stable")
        found = np.searchsorted(own[order], self.keys(tree, node))
        return np.asarray(order[np.minimum(found, len(own) - 1)])


def read_forest(node: NodeProto) -> Forest | None:
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
    return Forest(nodes, weights, prefix)


def write_forest(node: NodeProto, forest: Forest) -> None:
    """Put the arrays back into `node`, nodes numbered from 0 in each tree, without attributes that say nothing.

    Hit rates say nothing, nor do flags for missing values where none is set.
    """
    _renumber(forest)
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


def _renumber(forest: Forest) -> None:
    """Number the nodes of each tree from 0: onnxruntime loads no id beyond the number of nodes."""
    nodes, weights = forest.nodes, forest.weights
    leaf = forest.is_leaf
    order = np.argsort(nodes["treeids"], kind="stable")
    _, starts, counts = np.unique(nodes["treeids"][order], return_index=True, return_counts=True)
    rank = np.empty(len(leaf), dtype=np.int64)
    rank[order] = np.arange(len(leaf)) - np.repeat(starts, counts)
    places = {name: forest.positions(nodes["treeids"], nodes[name]) for name in ("truenodeids", "falsenodeids")}
    owners = forest.positions(weights["treeids"], weights["nodeids"])
    for name, place in places.items():
        nodes[name] = np.where(leaf, 0, rank[place])
    nodes["nodeids"], weights["nodeids"] = rank, rank[owners]
