"""How far a row walks through a tree ensemble: visits of nodes, summed over the trees."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from edgeml.graph.proto import attribute

OPERATORS = ("TreeEnsembleClassifier", "TreeEnsembleRegressor", "TreeEnsemble")
LEAF, ENDS = -1, -2  # in place of a child: the node is a leaf itself, or the branch ends in a leaf of the leaf table


def visits(node: NodeProto) -> float:
    """Return the node visits of one row: for every tree the mean depth of its leaves, plus one."""
    children, roots = _flat(node) if node.op_type == "TreeEnsemble" else _by_id(node)
    return _mean_depths(children, roots)


def _by_id(node: NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """Return child positions (n, 2) and root positions of the attributes of ai.onnx.ml 1 to 3."""
    tree, ident = _ints(node, "nodes_treeids"), _ints(node, "nodes_nodeids")
    stride = int(ident.max(initial=0)) + 1
    keys = tree * stride + ident
    order = np.argsort(keys, kind="stable")
    leaf = np.array([mode in (b"LEAF", "LEAF") for mode in _list(node, "nodes_modes")], dtype=bool)
    found = []
    for name in ("nodes_truenodeids", "nodes_falsenodeids"):
        at = np.searchsorted(keys[order], tree * stride + _ints(node, name))
        found.append(np.where(leaf, LEAF, order[np.minimum(at, len(order) - 1)]))
    _, roots = np.unique(tree, return_index=True)
    return np.stack(found, axis=1), roots


def _flat(node: NodeProto) -> tuple[np.ndarray, np.ndarray]:
    """The same of ai.onnx.ml 5, where leaves are a table of their own."""
    sides = [
        np.where(_ints(node, f"nodes_{side}leafs") == 1, ENDS, _ints(node, f"nodes_{side}nodeids"))
        for side in ("true", "false")
    ]
    return np.stack(sides, axis=1), _ints(node, "tree_roots")


def _mean_depths(children: np.ndarray, roots: np.ndarray) -> float:
    """Return the sum over trees of (mean leaf depth + 1), walking all trees level by level."""
    owner, here = np.arange(len(roots)), roots
    leaves, depths = np.zeros(len(roots)), np.zeros(len(roots))
    for depth in range(1, len(children) + 2):  # a cycle in broken attributes must not hang us
        below = children[here]
        is_leaf = (below == LEAF).all(axis=1)
        np.add.at(leaves, owner[is_leaf], 1)
        np.add.at(depths, owner[is_leaf], depth)
        ends = (below == ENDS).sum(axis=1)
        np.add.at(leaves, owner, ends)
        np.add.at(depths, owner, ends * (depth + 1))
        owner = np.repeat(owner, (below >= 0).sum(axis=1))
        here = below[below >= 0]
        if not len(here):
            break
    return float((depths / np.maximum(leaves, 1)).sum())


def _list(node: NodeProto, name: str) -> list[object]:
    value = attribute(node, name, [])
    return list(value) if isinstance(value, list | tuple) else []


def _ints(node: NodeProto, name: str) -> np.ndarray:
    return np.array(_list(node, name), dtype=np.int64)
