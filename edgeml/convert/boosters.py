"""LightGBM and XGBoost model files as one tree ensemble each, without either package.

    model.txt | model.json | model.ubj -> read -> OnnxModel over one input `numeric`

The files are parsed as their makers document them. The graph is compared with a walk through the parsed trees in
float64, on seeded rows on, beside and between their thresholds and with missing values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml import graph
from edgeml.artifacts import Answers, OnnxModel
from edgeml.convert import parity
from edgeml.convert.booster_trees import Boosted, Tree, margins
from edgeml.convert.dress import ROWS, dress
from edgeml.convert.lightgbm_file import parse_lightgbm
from edgeml.convert.xgboost_file import parse_xgboost
from edgeml.errors import UnsupportedModel
from edgeml_runtime.wire.manifest import LABEL, NUMERIC, PREDICTION, PROBABILITIES

DAMAGED = (KeyError, ValueError, IndexError, TypeError, AttributeError, UnicodeDecodeError)
OPSETS = [helper.make_opsetid("", graph.MAX_OPSET), helper.make_opsetid("ai.onnx.ml", 3)]
MISSING_SHARE = 0.1


def read(path: Path, *, trust: bool = False) -> OnnxModel:
    """Return the booster in the file at `path`; raise UnsupportedModel naming what it holds that a graph cannot."""
    data = path.read_bytes()
    try:
        boosted = parse_lightgbm(data.decode()) if path.suffix.lower() == ".txt" else parse_xgboost(data)
    except DAMAGED as error:
        raise UnsupportedModel(
            f"{path.name} ({len(data):,} bytes) is no LightGBM text or XGBoost JSON model, or cut short "
            f"({type(error).__name__}: {' '.join(str(error).split())[:80]}): save it again"
        ) from error
    model = to_graph(boosted, source=hashlib.sha256(data).hexdigest())
    rows = random_rows(boosted)
    agreed = parity.compare(model, {NUMERIC: rows}, answers_of(boosted, rows))
    note = f"{boosted.maker}, {len(boosted.trees)} trees; {agreed.sentence('a walk through its trees')}"
    return OnnxModel(model.data, model.source, (*model.notes, note))


def answers_of(boosted: Boosted, rows: np.ndarray) -> Answers:
    """Return what the trees say of `rows` (n, f) float32, summed in float64."""
    raw = margins(boosted, rows)
    if boosted.link == "softmax":
        powers = np.exp(raw - raw.max(axis=1, keepdims=True))
        return _labelled(powers / powers.sum(axis=1, keepdims=True))
    if boosted.link == "sigmoid":
        share = 1 / (1 + np.exp(-boosted.slope * raw))
        return _labelled(np.concatenate([1 - share, share], axis=1) if boosted.classes else share)
    return Answers(None, np.exp(raw) if boosted.link == "exp" else raw)


def _labelled(scores: np.ndarray) -> Answers:
    if scores.shape[1] == 1:
        return Answers(None, scores)
    return Answers(scores.argmax(axis=1).astype(np.int64), scores)


def to_graph(boosted: Boosted, *, source: str) -> OnnxModel:
    """Return `boosted` as a graph: one TreeEnsembleRegressor and its link."""
    nodes = [helper.make_node("TreeEnsembleRegressor", [NUMERIC], ["raw"], domain="ai.onnx.ml", **_attributes(boosted))]
    weights: dict[str, np.ndarray] = {}
    if boosted.link == "softmax":
        nodes.append(helper.make_node("Softmax", ["raw"], [PROBABILITIES], axis=1))
    elif boosted.link == "sigmoid" and boosted.classes:
        weights["slope"] = np.array(
            [[0.0, boosted.slope]], np.float32
        )  # softmax([0, z]) is [1 - sigmoid(z), sigmoid(z)]
        nodes.append(helper.make_node("Mul", ["raw", "slope"], ["logits"]))
        nodes.append(helper.make_node("Softmax", ["logits"], [PROBABILITIES], axis=1))
    else:
        link = {"exp": "Exp", "sigmoid": "Sigmoid"}.get(boosted.link, "Identity")
        nodes.append(helper.make_node(link, ["raw"], [PREDICTION]))
    if boosted.classes:
        nodes.append(helper.make_node("ArgMax", [PROBABILITIES], [LABEL], axis=1, keepdims=0))
        outputs = [_value(LABEL, TensorProto.INT64, [ROWS]), _value(PROBABILITIES, 1, [ROWS, boosted.classes])]
    else:
        outputs = [_value(PREDICTION, TensorProto.FLOAT, [ROWS, boosted.outputs])]
    inputs = [_value(NUMERIC, TensorProto.FLOAT, [ROWS, boosted.features])]
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    proto: onnx.ModelProto = helper.make_model(
        helper.make_graph(nodes, "booster", inputs, outputs, tensors), opset_imports=OPSETS, ir_version=graph.MAX_IR
    )
    return dress(proto, source=source, outputs={})


def _value(name: str, kind: int, shape: Sequence[Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def _attributes(boosted: Boosted) -> dict[str, Any]:
    found: dict[str, list[Any]] = {}
    for index, tree in enumerate(boosted.trees):
        for name, values in _columns(index, tree).items():
            found.setdefault(name, []).extend(np.asarray(values).tolist())
        found.setdefault("nodes_modes", []).extend("LEAF" if end else tree.mode for end in tree.leaf)
    return {
        **found,
        "n_targets": boosted.outputs,
        "base_values": [float(value) for value in boosted.base],
        "aggregate_function": "SUM",
    }


def _columns(index: int, tree: Tree) -> dict[str, np.ndarray]:
    ids, leaf = np.arange(len(tree.leaf)), tree.leaf
    return {
        "nodes_treeids": np.full(len(ids), index),
        "nodes_nodeids": ids,
        "nodes_featureids": np.where(leaf, 0, tree.feature),
        "nodes_values": np.where(leaf, 0.0, tree.threshold).astype(np.float64),
        "nodes_truenodeids": np.where(leaf, 0, tree.left),
        "nodes_falsenodeids": np.where(leaf, 0, tree.right),
        "nodes_missing_value_tracks_true": np.where(leaf, 0, tree.missing_left).astype(np.int64),
        "target_treeids": np.full(int(leaf.sum()), index),
        "target_nodeids": ids[leaf],
        "target_ids": np.full(int(leaf.sum()), tree.output),
        "target_weights": tree.value[leaf].astype(np.float64),
    }


def random_rows(boosted: Boosted, count: int = parity.MAX_ROWS) -> np.ndarray:
    """Return seeded rows (count, f) float32 on, just beside and between the thresholds, a tenth of them missing."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(count, boosted.features)).astype(np.float32)
    pairs = [
        (feature, value)
        for tree in boosted.trees
        for feature, value in zip(tree.feature[~tree.leaf], tree.threshold[~tree.leaf], strict=True)
    ]
    for feature in range(boosted.features):
        known = np.array([value for each, value in pairs if each == feature], dtype=np.float32)
        if len(known):
            drawn = rng.choice(known, count)
            beside = np.nextafter(drawn, np.where(rng.random(count) < 0.5, np.inf, -np.inf).astype(np.float32))
            rows[:, feature] = np.where(rng.random(count) < 0.3, drawn, beside)
    rows[rng.random(rows.shape) < MISSING_SHARE] = np.nan
    return rows
