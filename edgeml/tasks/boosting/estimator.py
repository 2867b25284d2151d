"""From trees to a fitted HistGradientBoosting estimator, which predicts, converts and compares as any other.

scikit-learn has no door for given trees: a small fit makes the object, and its trees are put in place. What it then
says is compared with what the trees say, so that another version's internals are an error and no wrong answer.
"""

from __future__ import annotations

import copy
import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeml.errors import UnsupportedModel
from edgeml.tasks import binning
from edgeml.tasks.boosting.grow import Trees, answers
from edgeml.tasks.boosting.program import BIN_BITS, WHOLE
from edgeml.tasks.program import Columns

BOOSTING = "sklearn.ensemble._hist_gradient_boosting"  # private: `_checked` guards what is used of it
CHECKED_ROWS = 64


@dataclass(frozen=True)
class Found:
    """What the study knows in the end: padded edges, the first answer (outputs,), trees, the loss before each tree."""

    columns: Columns
    edges: np.ndarray
    base: np.ndarray
    trees: Trees
    curve: tuple[float, ...]


def fill(estimator: Any, found: Found) -> Any:
    """Return `estimator` fitted, with the trees of `found`; raise UnsupportedModel when scikit-learn differs inside."""
    options = estimator.get_params(deep=False)
    made = copy.deepcopy(estimator)
    made.set_params(max_iter=1, min_samples_leaf=1, early_stopping=False, max_leaf_nodes=2, max_depth=1, verbose=0)
    made.fit(*_few_rows(found))
    made.set_params(**options)
    made._predictors = [
        [_predictor(code, leaf, found.edges) for code, leaf in zip(codes, leaves, strict=True)]
        for codes, leaves in zip(found.trees.split, found.trees.leaf, strict=True)
    ]
    made._baseline_prediction = found.base[np.newaxis].astype(np.float64)
    made._bin_mapper.bin_thresholds_ = [one[np.isfinite(one)] for one in found.edges]
    made._bin_mapper.n_bins_non_missing_ = np.isfinite(found.edges).sum(axis=1).astype(np.uint32) + 1
    if found.columns.classes:
        made.classes_ = np.array(found.columns.classes)  # by index, whatever their order
    made.train_score_ = -np.array(found.curve)
    _check(made, found)
    return made


def _few_rows(found: Found) -> tuple[np.ndarray, np.ndarray]:
    """Return rows on which any estimator of these columns can be fitted."""
    classes = np.array(found.columns.classes) if found.columns.classes else np.arange(2.0)
    x = np.arange(2 * len(classes), dtype=np.float64)[:, np.newaxis] * np.ones((1, found.columns.features))
    return x, np.tile(classes, 2)


def _predictor(code: np.ndarray, leaf: np.ndarray, edges: np.ndarray) -> Any:
    """Return one tree as scikit-learn keeps it: nodes in depth-first order."""
    common = importlib.import_module(f"{BOOSTING}.common")
    nodes: list[dict[str, Any]] = []

    def put(at: int, depth: int) -> int:
        while at < len(code) and code[at] == WHOLE:  # a node that stays whole ends in its first leaf
            at, depth = 2 * at + 1, depth + 1
        mine = len(nodes)
        if at >= len(code):
            nodes.append({"is_leaf": True, "value": leaf[at - len(code)]})
            return mine
        feature, bin_ = code[at] >> (BIN_BITS + 1), code[at] >> 1 & 255
        nodes.append({"feature_idx": feature, "bin_threshold": bin_, "missing_go_to_left": code[at] & 1})
        nodes[mine] |= {"num_threshold": edges[feature, bin_] if bin_ < edges.shape[1] else np.inf}
        nodes[mine] |= {"left": put(2 * at + 1, depth + 1), "right": put(2 * at + 2, depth + 1)}
        return mine

    put(0, 0)
    records = np.zeros(len(nodes), common.PREDICTOR_RECORD_DTYPE)
    for record, node in zip(records, nodes, strict=True):
        for name, value in node.items():
            record[name] = value
    none = np.zeros((0, 8), common.X_BITSET_INNER_DTYPE)
    return importlib.import_module(f"{BOOSTING}.predictor").TreePredictor(records, none, none)


def _check(made: Any, found: Found) -> None:
    """Compare `made` with the trees on rows on, beside and between the edges, and without a number."""
    rng = np.random.default_rng(0)
    finite = [np.append(one[np.isfinite(one)], 0.0) for one in found.edges]
    x = np.stack([rng.choice(np.concatenate([one, one + 1e-3, [np.nan]]), CHECKED_ROWS) for one in finite], axis=1)
    x = x.astype(np.float32).astype(np.float64)
    bins = binning.bins_of(x, found.edges)
    expected = found.base + answers(found.trees, bins, missing=found.edges.shape[1] + 1)
    said = np.reshape(made._raw_predict(x), expected.shape)
    if not np.allclose(said, expected, rtol=1e-9, atol=1e-9):
        version, off = importlib.import_module("sklearn").__version__, float(np.abs(said - expected).max())
        raise UnsupportedModel(
            f"scikit-learn {version} keeps boosted trees otherwise: it answers up to {off:.3g} away from the trees "
            f"that the devices grew; install the version of constraints.txt"
        )
