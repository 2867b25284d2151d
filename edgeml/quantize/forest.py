"""Smaller tree ensembles: subtrees that matter least on the calibration rows become leaves.

Minimal cost-complexity pruning (Breiman et al., Classification and Regression Trees, 1984) over the whole ensemble: a
subtree's price is the squared change of the sums over half of the calibration rows, per leaf that goes. The largest
price that keeps the metric within the bound on the other half is found by bisection: rows that the prices have seen
would say that nothing is lost.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper

from edgeml.artifacts import OnnxModel, Rows, Skipped, Variant
from edgeml.errors import UnsupportedModel
from edgeml.graph.forests import Forest, read_forest, write_forest
from edgeml.graph.passes import optimize
from edgeml.quantize.calibration import batches
from edgeml.quantize.judge import Judge
from edgeml.quantize.recipe import Made, Options, Stopped
from edgeml_runtime.session import Session

NAME = "forest-pruned"
STEPS = 12  # of the bisection: a four-thousandth of the range of prices
SHARE = 0.5  # of the bound: what is lost on few rows is less than what may be lost on others
NEAR = 0.05  # of the spread of the scores
SMALLER = 0.95  # of fp32's bytes: what gains less is not worth a second file
UNSEEN = 1e-3  # rows that a leaf counts for that no calibration row reaches
FEATURES = ("featureids", "values", "truenodeids", "falsenodeids", "missing_value_tracks_true")


@dataclass(frozen=True)
class _Priced:
    """A forest with the price of making each node a leaf, infinite for leaves, and what that leaf would say."""

    node: int  # which node of the graph
    forest: Forest
    sides: np.ndarray  # (n, 2) positions of the children
    roots: np.ndarray
    price: np.ndarray  # (n,)
    mean: np.ndarray  # (n, k)
    ids: np.ndarray  # (k,) classes or targets


def pruned(model: OnnxModel, rows: Rows, options: Options) -> Made:
    """Return the smallest forest whose answers stay within the bound on the calibration rows."""
    proto, held = ModelProto.FromString(model.data), np.arange(len(rows)) % 2 == 1
    rows, judged = rows.take(np.flatnonzero(~held)), rows.take(np.flatnonzero(held))
    priced = [
        found for index, node in enumerate(proto.graph.node) if (found := _priced(proto, index, rows)) is not None
    ]
    prices = np.unique(np.concatenate([one.price[np.isfinite(one.price)] for one in priced])) if priced else np.empty(0)
    if not len(prices):
        raise UnsupportedModel("no tree ensemble with splits to prune")
    judge, best, until = Judge(model, judged, options), b"", time.monotonic() + options.budget_s
    low, high, kept = 0, len(prices), 0.0
    try:
        for step in range(STEPS):
            middle = (low + high) // 2
            if middle >= high or time.monotonic() > until:
                break
            data = _collapsed(proto, priced, float(prices[middle]))
            drop = judge.drop(data)
            options.progress(f"{NAME} {step + 1} of {STEPS}: {len(data):,} bytes, {judge.unit} {drop:+.4f}")
            unknown = judge.unit != options.metric  # no truth to ask: the scores must stay near as well
            if drop <= SHARE * judge.limit and not (unknown and judge.distance(data) > NEAR):
                low, best, kept = middle + 1, data, drop
            else:
                high = middle
    except KeyboardInterrupt as stop:
        raise Stopped([_variant(model, best, f"{judge.unit} {kept:+.4f}")] if best else []) from stop
    return _variant(model, best, f"{judge.unit} {kept:+.4f} on every second calibration row")


def _variant(model: OnnxModel, best: bytes, note: str) -> Variant | Skipped:
    if not best or len(best) > SMALLER * len(model.data):
        share = len(best) / len(model.data) if best else 1.0
        return Skipped(NAME, f"pruning within the bound leaves {share:.0%} of the bytes: fp32 is as small")
    smaller = OnnxModel(
        best, model.digest, (*model.notes, f"pruned to {len(best):,} of {len(model.data):,} bytes; {note}")
    )
    return Variant(smaller, NAME, model.digest)


def _priced(proto: ModelProto, index: int, rows: Rows) -> _Priced | None:
    node = proto.graph.node[index]
    if not node.op_type.startswith("TreeEnsemble") or (forest := read_forest(node)) is None:
        return None
    nodes, leaf = forest.nodes, forest.is_leaf
    names = ("truenodeids", "falsenodeids")
    sides = np.stack([forest.positions(nodes["treeids"], nodes[name]) for name in names], axis=1)
    _, roots = np.unique(nodes["treeids"], return_index=True)
    hits = np.where(leaf, UNSEEN, 0.0)
    for inputs in _fed(proto, node, rows):
        hits += np.bincount(_walk(forest, inputs, sides, roots=roots).ravel(), minlength=len(leaf))
    ids, column = np.unique(forest.weights["ids"], return_inverse=True)
    values = np.zeros((len(leaf), len(ids)))
    owner = forest.positions(forest.weights["treeids"], forest.weights["nodeids"])
    np.add.at(values, (owner, column), forest.weights["weights"])
    return _Priced(index, forest, sides, roots, *_prices(sides, leaf, (hits, values)), ids)


def _prices(sides: np.ndarray, leaf: np.ndarray, said: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the price of each split and the mean of the leaves below it, weighted by the rows that reach them."""
    hits, values = said
    count, first, second = leaf.astype(float), hits[:, None] * values, hits * (values**2).sum(axis=1)
    total = hits.copy()
    for position in _children_first(sides, leaf):
        below = sides[position]
        total[position], count[position] = total[below].sum(), count[below].sum()
        first[position], second[position] = first[below].sum(axis=0), second[below].sum()
    mean = first / np.maximum(total, UNSEEN)[:, None]
    change = np.maximum(second - total * (mean**2).sum(axis=1), 0.0)
    return np.where(leaf, np.inf, change / np.maximum(count - 1, 1)), mean


def _children_first(sides: np.ndarray, leaf: np.ndarray) -> list[int]:
    """Return the splits, each behind its children."""
    parent = np.full(len(leaf), -1)
    splits = np.flatnonzero(~leaf)
    parent[sides[splits].ravel()] = np.repeat(splits, 2)
    depth, above = np.zeros(len(leaf), dtype=int), parent.copy()
    while (above >= 0).any():
        depth[above >= 0] += 1
        above = np.where(above >= 0, parent[above], -1)
    return [int(split) for split in splits[np.argsort(-depth[splits], kind="stable")]]


def _walk(forest: Forest, rows: np.ndarray, sides: np.ndarray, *, roots: np.ndarray) -> np.ndarray:
    """Return the leaf that each row reaches in each tree: positions (n, trees)."""
    nodes, leaf = forest.nodes, forest.is_leaf
    here = np.tile(roots, (len(rows), 1))
    missing = nodes.get("missing_value_tracks_true", np.zeros(len(leaf)))
    strict = np.array([mode in (b"BRANCH_LT", "BRANCH_LT") for mode in nodes["modes"].tolist()])
    while not leaf[here].all():
        value = np.take_along_axis(rows, nodes["featureids"][here].astype(int), axis=1)
        bound = nodes["values"][here]
        left = np.where(strict[here], value < bound, value <= bound) | (np.isnan(value) & (missing[here] > 0))
        here = np.where(leaf[here], here, np.where(left, sides[here, 0], sides[here, 1]))
    return here


def _fed(proto: ModelProto, node: NodeProto, rows: Rows) -> list[np.ndarray]:
    """Return what the ensemble is fed on the rows, in batches (n, features)."""
    name = node.input[0]
    tapped = ModelProto.FromString(proto.SerializeToString())
    if name in {value.name for value in proto.graph.input}:
        return [np.asarray(feeds[name], dtype=np.float32) for feeds in batches(proto, rows)]
    tapped.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    session = Session(tapped.SerializeToString())
    return [np.asarray(session.run(feeds)[name], dtype=np.float32) for feeds in batches(proto, rows)]


def _collapsed(proto: ModelProto, priced: list[_Priced], price: float) -> bytes:
    """Return the graph with every split of at most `price` made a leaf."""
    smaller = ModelProto.FromString(proto.SerializeToString())
    for one in priced:
        write_forest(smaller.graph.node[one.node], _pruned(one, price))
    optimize(smaller, ["trees"])
    onnx.checker.check_model(smaller)
    return bytes(smaller.SerializeToString(deterministic=True))


def _pruned(one: _Priced, price: float) -> Forest:
    forest, leaf = one.forest, one.forest.is_leaf
    ends = leaf | (one.price <= price)
    reached, here = np.zeros(len(leaf), dtype=bool), one.roots
    while len(here):
        reached[here] = True
        here = one.sides[here[~ends[here]]].ravel()
    nodes = {name: array.copy() for name, array in forest.nodes.items()}
    made = np.flatnonzero(reached & ends & ~leaf)
    nodes["modes"][made] = nodes["modes"][np.flatnonzero(leaf)[0]]
    for name in FEATURES:
        if name in nodes:
            nodes[name][made] = 0
    owner = forest.positions(forest.weights["treeids"], forest.weights["nodeids"])
    stays = reached[owner]
    at, target = np.nonzero(one.mean[made])
    added = {
        "treeids": nodes["treeids"][made][at],
        "nodeids": nodes["nodeids"][made][at],
        "ids": one.ids[target],
        "weights": one.mean[made][at, target].astype(np.float32),
    }
    weights = {name: np.concatenate([array[stays], added[name]]) for name, array in forest.weights.items()}
    return Forest({name: array[reached] for name, array in nodes.items()}, weights, forest.prefix)
