"""Converters for estimators with two outputs: outlier detectors, and classifiers that skl2onnx lacks.

IsolationForest   one TreeEnsembleRegressor whose leaves carry path lengths: score = -2^(-sum / (n c)) - offset
EllipticEnvelope  the Mahalanobis distance
DummyClassifier   constants
LDA               a softmax
KNeighbors        MatMul distances and TopK
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from skl2onnx import update_registered_converter
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType
from sklearn.covariance import EllipticEnvelope
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor

from edgeml.convert.sklearn_algebra import squared_distances
from edgeml.convert.sklearn_emit import Emitter, convert_with
from edgeml.convert.sklearn_trees import float32_below
from edgeml.errors import UnsupportedModel

EULER = np.euler_gamma
Pair = tuple[str, str]  # names of a label (n,) int64 and of scores (n, k)
OPTIONS = {"zipmap": [True, False, "columns"], "nocl": [True, False], "output_class_labels": [False, True]}
BY_INDEX = (DummyClassifier, KNeighborsClassifier, LinearDiscriminantAnalysis)  # their label is an index already


def register() -> None:
    """Put these converters in place of skl2onnx's own, or where it has none."""
    _pair(IsolationForest, _isolation, lambda model: 1, options={"score_samples": [True, False]})
    _pair(EllipticEnvelope, _envelope, lambda model: 1)
    _pair(DummyClassifier, _constant, lambda model: len(model.classes_), options=OPTIONS)
    _pair(KNeighborsClassifier, _neighbour_votes, lambda model: len(model.classes_), options=OPTIONS)
    _pair(LinearDiscriminantAnalysis, _discriminant, lambda model: len(model.classes_), options=OPTIONS)
    convert_with(KNeighborsRegressor, _neighbour_mean, lambda model: _targets(model).shape[1])


def _pair(
    kind: type,
    emit: Callable[[Emitter, Any], Pair],
    columns: Callable[[Any], int],
    *,
    options: dict[str, Any] | None = None,
) -> None:
    def shapes(operator: Any) -> None:
        operator.outputs[0].type = Int64TensorType([None])
        operator.outputs[1].type = FloatTensorType([None, columns(operator.raw_operator)])

    def convert(scope: Any, operator: Any, container: Any) -> None:
        emitter = Emitter(scope, operator, container)
        for made, output in zip(emit(emitter, operator.raw_operator), operator.outputs, strict=True):
            name = scope.get_unique_operator_name("Identity")
            container.add_node("Identity", made, output.full_name, name=name)

    update_registered_converter(kind, f"Edgeml{kind.__name__}", shapes, convert, options=options)


def _sided(e: Emitter, scores: str) -> str:
    """Return +1 where the score is at least 0, -1 elsewhere: int64 (n,)."""
    inside = e.op("Cast", e.op("GreaterOrEqual", scores, e.constant(0.0)), to=7)
    sign = e.op("Sub", e.op("Mul", inside, e.constant(2, np.int64)), e.constant(1, np.int64))
    return str(e.op("Reshape", sign, e.constant([-1], np.int64)))


def _isolation(e: Emitter, forest: Any) -> Pair:
    """Liu, Ting and Zhou, "Isolation Forest" (2008): 2^(-mean path length / c(samples)), as scikit-learn offsets it."""
    trees = list(zip(forest.estimators_, forest.estimators_features_, strict=True))
    attributes: dict[str, Any] = {**_paths(trees), "n_targets": 1, "aggregate_function": "SUM"}
    depth = e.op("TreeEnsembleRegressor", e.floats(), domain="ai.onnx.ml", **attributes)
    scale = -1.0 / (len(trees) * float(_average_path(np.array([forest._max_samples]))[0]))
    powered = e.op("Pow", e.constant(2.0), e.op("Mul", depth, e.constant(scale)))
    scores = str(e.op("Sub", e.op("Neg", powered), e.constant(forest.offset_)))
    return _sided(e, scores), scores


def _paths(trees: list[tuple[Any, np.ndarray]]) -> dict[str, list[Any]]:
    """Return the attributes of a TreeEnsembleRegressor that sums the path lengths of all trees."""
    found: dict[str, list[Any]] = {name: [] for name in (*NODES, *LEAVES)}
    for index, (estimator, features) in enumerate(trees):
        tree = estimator.tree_
        count, leaf = tree.node_count, tree.children_left < 0
        lengths = _depths(tree) + _average_path(tree.n_node_samples)
        ids = np.arange(count)
        columns = {
            "nodes_treeids": np.full(count, index),
            "nodes_nodeids": ids,
            "nodes_featureids": np.where(leaf, 0, np.asarray(features)[np.maximum(tree.feature, 0)]),
            "nodes_values": np.where(leaf, 0.0, float32_below(tree.threshold)),
            "nodes_truenodeids": np.where(leaf, 0, tree.children_left),
            "nodes_falsenodeids": np.where(leaf, 0, tree.children_right),
            "nodes_missing_value_tracks_true": np.where(leaf, 0, tree.missing_go_to_left),
            "target_treeids": np.full(int(leaf.sum()), index),
            "target_nodeids": ids[leaf],
            "target_ids": np.zeros(int(leaf.sum()), np.int64),
            "target_weights": lengths[leaf],
        }
        for name, values in columns.items():
            kind = float if name in ("nodes_values", "target_weights") else int
            found[name] += [kind(value) for value in values]
        found["nodes_modes"] += ["LEAF" if end else "BRANCH_LEQ" for end in leaf]
    return found


NODES = (
    *("nodes_treeids", "nodes_nodeids", "nodes_featureids", "nodes_values", "nodes_modes"),
    *("nodes_truenodeids", "nodes_falsenodeids", "nodes_missing_value_tracks_true"),
)
LEAVES = ("target_treeids", "target_nodeids", "target_ids", "target_weights")


def _depths(tree: Any) -> np.ndarray:
    """Return the number of edges above each node; children come after their parents."""
    depths = np.zeros(tree.node_count)
    for node in range(tree.node_count):
        for child in (tree.children_left[node], tree.children_right[node]):
            if child >= 0:
                depths[child] = depths[node] + 1
    return depths


def _average_path(samples: np.ndarray) -> np.ndarray:
    """Return the mean path length of an unsuccessful search among so many samples."""
    many = np.maximum(samples, 3).astype(np.float64)
    length = 2 * (np.log(many - 1) + EULER) - 2 * (many - 1) / many
    return np.where(samples <= 1, 0.0, np.where(samples == 2, 1.0, length))


def _envelope(e: Emitter, model: Any) -> Pair:
    x = e.op("Sub", e.floats(), e.constant(model.location_[None]))
    product = e.op("Mul", e.op("MatMul", x, e.constant(model.precision_)), x)
    far = e.op("ReduceSum", product, e.constant([1], np.int64), keepdims=1)
    scores = str(e.op("Sub", e.op("Neg", far), e.constant(model.offset_)))
    return _sided(e, scores), scores


def _constant(e: Emitter, model: Any) -> Pair:
    if model.strategy in ("stratified", "uniform"):
        raise UnsupportedModel(f"DummyClassifier(strategy={model.strategy!r}) answers at random: use 'prior'")
    one_row = model.predict_proba(np.zeros((1, model.n_features_in_)))
    column = e.op("Mul", e.column(e.floats(), 0), e.constant(0.0))
    zero = e.op("Where", e.op("IsNaN", column), e.constant(0.0), column)
    scores = str(e.op("Add", zero, e.constant(one_row)))
    return _best(e, scores), scores


def _best(e: Emitter, scores: str) -> str:
    """Return the index of the best score: int64 (n,)."""
    return str(e.op("ArgMax", scores, axis=1, keepdims=0))


def _discriminant(e: Emitter, model: Any) -> Pair:
    """Softmax of the linear scores; of [0, z] where there are two classes, which is [1 - sigmoid(z), sigmoid(z)]."""
    logits = e.op("Gemm", e.floats(), e.constant(model.coef_.T), e.constant(model.intercept_))
    if len(model.classes_) == 2:
        logits = e.op("Mul", logits, e.constant([[0.0, 1.0]]))
    scores = str(e.op("Softmax", logits, axis=1))
    return _best(e, scores), scores


def _neighbours(e: Emitter, model: Any) -> tuple[str, str]:
    """Return the indices (n, k) of the nearest fitted rows and the weight of each (n, k), rows summing to 1."""
    if model.effective_metric_ != "euclidean" or callable(model.weights):
        how = f"metric {model.effective_metric_!r} and weights {model.weights!r}"
        raise UnsupportedModel(f"{type(model).__name__} with {how}: use the euclidean metric and named weights")
    points = np.asarray(model._fit_X.toarray() if hasattr(model._fit_X, "toarray") else model._fit_X, np.float64)
    rows = e.floats()
    squares = squared_distances(e, rows, points)
    count = e.constant([model.n_neighbors], np.int64)
    nearest, index = e.op("TopK", squares, count, outputs=2, axis=1, largest=0, sorted=1)
    if model.weights == "uniform":
        ones = e.op("Add", e.op("Mul", nearest, e.constant(0.0)), e.constant(1.0 / model.n_neighbors))
        return str(index), str(ones)
    chosen = e.op("Gather", e.constant(points), index, axis=0)  # (n, k, f): their distances without cancellation
    apart = e.op("Sub", chosen, e.op("Unsqueeze", rows, e.constant([1], np.int64)))
    exact = e.op("ReduceSum", e.op("Mul", apart, apart), e.constant([2], np.int64), keepdims=0)
    return str(index), _inverse(e, exact)


def _inverse(e: Emitter, squares: str) -> str:
    """Return 1 / distance as shares; where a distance is 0 only such neighbours count, as in scikit-learn."""
    zero = e.op("Equal", squares, e.constant(0.0))
    hits = e.op("Cast", zero, to=1)
    any_hit = e.op("Greater", e.op("ReduceSum", hits, e.constant([1], np.int64), keepdims=1), e.constant(0.0))
    safe = e.op("Where", zero, e.constant(1.0), squares)
    weights = e.op("Where", any_hit, hits, e.op("Reciprocal", e.op("Sqrt", safe)))
    total = e.op("ReduceSum", weights, e.constant([1], np.int64), keepdims=1)
    return str(e.op("Div", weights, total))


def _weighted(e: Emitter, model: Any, answers: np.ndarray) -> str:
    """Return the weighted mean (n, k) of `answers` (rows, k) over the neighbours."""
    index, weights = _neighbours(e, model)
    each = e.op("Gather", e.constant(answers), index, axis=0)  # (n, neighbours, k)
    shares = e.op("Unsqueeze", weights, e.constant([2], np.int64))
    return str(e.op("ReduceSum", e.op("Mul", each, shares), e.constant([1], np.int64), keepdims=0))


def _neighbour_votes(e: Emitter, model: Any) -> Pair:
    if getattr(model, "outputs_2d_", False):
        raise UnsupportedModel("KNeighborsClassifier of several targets at once: save one model per target")
    scores = _weighted(e, model, np.eye(len(model.classes_))[np.asarray(model._y)])
    return _best(e, scores), scores


def _targets(model: Any) -> np.ndarray:
    values = np.asarray(model._y, np.float64)
    return values.reshape(len(values), -1)


def _neighbour_mean(e: Emitter, model: Any) -> str:
    return _weighted(e, model, _targets(model))
