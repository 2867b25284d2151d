"""Converters for estimators that are one formula: a product, a kernel, a distance, a comparison.

Each entry is the formula of the estimator's own `transform` or `predict` in scikit-learn 1.9, in float32. Distances are
taken from centred rows, so that float32 does not cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import sparse
from sklearn import (
    cluster,
    cross_decomposition,
    decomposition,
    dummy,
    impute,
    isotonic,
    neural_network,
    random_projection,
)
from sklearn import kernel_approximation as approximation
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.kernel_ridge import KernelRidge
from sklearn.preprocessing import KBinsDiscretizer, PowerTransformer

from edgeml.convert.sklearn_emit import Emit, Emitter, convert_indices, convert_same, convert_with, reads_text
from edgeml.convert.sklearn_wrappers import Selection
from edgeml.errors import UnsupportedModel

Weights = tuple[np.ndarray, np.ndarray]  # (f, k) and (k,): the answer is x @ weights + bias


def register() -> None:
    """Put these converters in place of skl2onnx's own, or where it has none."""
    for kind, weights in LINEAR.items():
        convert_with(kind, _gemm(weights), lambda model, weights=weights: weights(model)[0].shape[1])  # type: ignore[misc]
    for kind, (emit, columns) in FORMULAS.items():
        convert_with(kind, emit, columns)
    convert_same(impute.SimpleImputer, _imputed, _imputed_width)
    for kind in (cluster.MeanShift, cluster.AffinityPropagation):
        convert_indices(kind, _nearest)


def _gemm(weights: Callable[[Any], Weights]) -> Emit:
    def emit(e: Emitter, model: Any) -> str:
        matrix, bias = weights(model)
        return str(e.op("Gemm", e.floats(), e.constant(matrix), e.constant(bias)))

    return emit


def _factors(model: Any) -> Weights:
    scaled = model.components_ / model.noise_variance_
    inverse = np.linalg.inv(np.eye(len(model.components_)) + scaled @ model.components_.T)
    return _centred(scaled.T @ inverse, model.mean_)


def _centred(matrix: np.ndarray, mean: np.ndarray) -> Weights:
    return matrix, -np.asarray(mean) @ matrix


def _plain(matrix: Any) -> Weights:
    dense = matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)
    return dense, np.zeros(dense.shape[1])


def _pooled(model: Any) -> Weights:
    if model.pooling_func is not np.mean:
        raise UnsupportedModel("FeatureAgglomeration pools by a function of its own: use numpy.mean")
    member = np.eye(model.n_clusters_)[model.labels_]
    return _plain(member / member.sum(axis=0))


def _ridge(model: Any) -> Weights:
    """Least squares on the components with a penalty: x C' (C C' + a I)^-1."""
    parts = model.components_
    inverse = np.linalg.inv(parts @ parts.T + model.ridge_alpha * np.eye(len(parts)))
    return _centred(parts.T @ inverse, model.mean_)


def _pls(model: Any) -> Weights:
    matrix = np.asarray(model.coef_).T
    return matrix, np.asarray(model.intercept_).ravel() - np.asarray(model._x_mean) @ matrix


LINEAR: dict[type, Callable[[Any], Weights]] = {
    decomposition.FactorAnalysis: _factors,
    decomposition.SparsePCA: _ridge,
    decomposition.MiniBatchSparsePCA: _ridge,
    decomposition.FastICA: lambda m: (
        _centred(m.components_.T, m.mean_) if hasattr(m, "mean_") else _plain(m.components_.T)
    ),
    random_projection.SparseRandomProjection: lambda m: _plain(m.components_.T),
    random_projection.GaussianRandomProjection: lambda m: _plain(m.components_.T),
    cluster.FeatureAgglomeration: _pooled,
    cross_decomposition.CCA: _pls,
    cross_decomposition.PLSCanonical: _pls,
    cross_decomposition.PLSSVD: lambda m: _centred(m.x_weights_ / np.asarray(m._x_std)[:, None], m._x_mean),
    dummy.DummyRegressor: lambda m: (np.zeros((m.n_features_in_, m.constant_.size)), m.constant_.ravel()),
}


def kernel(e: Emitter, model: Any, points: np.ndarray) -> str:
    """Return the name of the kernel matrix (n, len(points)) of the operator's rows with `points`."""
    name, x = model.kernel, e.floats()
    gamma = 1.0 / points.shape[1] if getattr(model, "gamma", None) is None else model.gamma
    offset = 1.0 if getattr(model, "coef0", None) is None else model.coef0
    if name == "rbf":
        return str(e.op("Exp", e.op("Mul", squared_distances(e, x, points), e.constant(-gamma))))
    product = str(e.op("MatMul", x, e.constant(points.T)))
    if name == "linear":
        return product
    scaled = e.op("Add", e.op("Mul", product, e.constant(gamma)), e.constant(offset))
    if name == "sigmoid":
        return str(e.op("Tanh", scaled))
    if name in ("poly", "polynomial"):
        return str(e.op("Pow", scaled, e.constant(3.0 if getattr(model, "degree", None) is None else model.degree)))
    raise UnsupportedModel(f"{type(model).__name__} with kernel {name!r}: use rbf, linear, polynomial or sigmoid")


def squared_distances(e: Emitter, rows: str, points: np.ndarray) -> str:
    """Return the name of |x - p|^2 (n, len(points)): |x|^2 - 2xp + |p|^2 after moving the centre of `points` to 0."""
    centre = points.mean(axis=0)
    moved = points - centre
    x = e.op("Sub", rows, e.constant(centre))
    square = e.op("ReduceSum", e.op("Mul", x, x), e.constant([1], np.int64), keepdims=1)
    cross = e.op("Gemm", x, e.constant(-2 * moved.T), e.constant((moved**2).sum(axis=1)))
    return str(e.op("Max", e.op("Add", cross, square), e.constant(0.0)))


def _nearest(e: Emitter, model: Any) -> str:
    return str(e.op("ArgMin", squared_distances(e, e.floats(), model.cluster_centers_), axis=1, keepdims=0))


def _kernel_ridge(e: Emitter, model: Any) -> str:
    duals = model.dual_coef_.reshape(len(model.dual_coef_), -1)
    return str(e.op("MatMul", kernel(e, model, np.asarray(model.X_fit_)), e.constant(duals)))


def _nystroem(e: Emitter, model: Any) -> str:
    return str(e.op("MatMul", kernel(e, model, np.asarray(model.components_)), e.constant(model.normalization_.T)))


def _waves(e: Emitter, model: Any, rows: str) -> str:
    turned = e.op("Gemm", rows, e.constant(model.random_weights_), e.constant(model.random_offset_))
    return str(e.op("Mul", e.op("Cos", turned), e.constant(np.sqrt(2.0 / model.n_components))))


def _skewed(e: Emitter, model: Any) -> str:
    return _waves(e, model, e.op("Log", e.op("Add", e.floats(), e.constant(model.skewedness))))


def _additive(e: Emitter, model: Any) -> str:
    """Vedaldi and Zisserman, "Efficient additive kernels via explicit feature maps" (2012), equation 11."""
    x, step = e.floats(), _interval(model)
    empty = e.op("LessOrEqual", x, e.constant(0.0))
    log = e.op("Log", e.op("Where", empty, e.constant(1.0), x))
    parts = [e.op("Sqrt", e.op("Mul", x, e.constant(step)))]
    for turn in range(1, model.sample_steps):
        factor = e.op("Sqrt", e.op("Mul", x, e.constant(2 * step / np.cosh(np.pi * turn * step))))
        angle = e.op("Mul", log, e.constant(turn * step))
        parts += [e.op("Mul", factor, e.op(wave, angle)) for wave in ("Cos", "Sin")]
    return str(e.op("Concat", *parts, axis=1))


def _interval(model: Any) -> float:
    return float(model.sample_interval or {1: 0.8, 2: 0.5, 3: 0.4}[model.sample_steps])


def _imputed(e: Emitter, model: Any) -> str:
    """SimpleImputer over numbers, whose indicator columns come last, or over text, where "" is missing."""
    if reads_text(e.operator):
        if model.indicator_ is not None:
            raise UnsupportedModel("SimpleImputer(add_indicator=True) over text: put a MissingIndicator beside it")
        texts = e.strings()
        return str(
            e.op("Where", e.op("Equal", texts, e.constant("", str)), e.constant([model.statistics_], str), texts)
        )
    if not isinstance(model.missing_values, float) or not np.isnan(model.missing_values):
        raise UnsupportedModel(
            f"SimpleImputer fills {model.missing_values!r}: only NaN can be missing in a float32 row"
        )
    statistics = np.asarray(model.statistics_, dtype=np.float64)
    x = e.floats()
    filled = e.op("Where", e.op("IsNaN", x), e.constant(np.nan_to_num(statistics)[None]), x)
    if np.isnan(statistics).any() and not model.keep_empty_features:
        filled = e.op("Gather", filled, e.constant(np.flatnonzero(~np.isnan(statistics)), np.int64), axis=1)
    if model.indicator_ is None:
        return str(filled)
    return str(e.op("Concat", filled, _missing_columns(e, x, model.indicator_.features_), axis=1))


def _missing_columns(e: Emitter, rows: str, features: np.ndarray) -> str:
    told = e.op("Gather", rows, e.constant(features, np.int64), axis=1)
    return str(e.op("Cast", e.op("IsNaN", told), to=1))


def _imputed_width(model: Any) -> int:
    values = model.statistics_
    text = any(isinstance(one, str) for one in values)
    empty = 0 if text or model.keep_empty_features else int(np.isnan(values.astype(np.float64)).sum())
    return len(values) - empty + (0 if model.indicator_ is None else len(model.indicator_.features_))


def _isotonic(e: Emitter, model: Any) -> str:
    """Linear between thresholds: y0 plus, for each interval, its slope times how far x reaches into it."""
    if model.out_of_bounds == "raise":
        raise UnsupportedModel(
            "IsotonicRegression(out_of_bounds='raise') cannot raise on a device: use 'clip' or 'nan'"
        )
    x, known, values = (
        e.floats(),
        np.asarray(model.X_thresholds_, np.float64),
        np.asarray(model.y_thresholds_, np.float64),
    )
    widths = np.diff(known)
    reach = e.op("Sub", x, e.constant(known[None, :-1]))
    inside = e.op("Min", e.op("Max", reach, e.constant(0.0)), e.constant(widths[None]))
    slopes = np.diff(values) / np.maximum(widths, np.finfo(float).tiny)
    answer = e.op("Gemm", inside, e.constant(slopes[:, None]), e.constant(values[:1]))
    if model.out_of_bounds == "clip":
        return str(answer)
    low, high = np.float32(known[0]), np.float32(known[-1])
    outside = e.op("Or", e.op("Less", x, e.constant(low)), e.op("Greater", x, e.constant(high)))
    return str(e.op("Where", outside, e.constant(np.nan), answer))


def _binned(e: Emitter, model: Any) -> str:
    x, columns = e.floats(), []
    for column, edges in enumerate(model.bin_edges_):
        one = e.column(x, column)
        inner = _float32_not_below(np.asarray(edges[1:-1], np.float64))
        over = e.op("Cast", e.op("GreaterOrEqual", one, e.constant(inner[None])), to=1)
        number = e.op("ReduceSum", over, e.constant([1], np.int64), keepdims=1)
        if model.encode != "ordinal":
            bins = e.constant(np.arange(len(edges) - 1, dtype=np.float32)[None])
            number = e.op("Cast", e.op("Equal", number, bins), to=1)
        columns.append(number)
    return columns[0] if len(columns) == 1 else str(e.op("Concat", *columns, axis=1))


def _float32_not_below(values: np.ndarray) -> np.ndarray:
    """Return the smallest float32 not below each value: x >= value says the same for every float32 x."""
    narrow = values.astype(np.float32)
    return np.where(narrow < values, np.nextafter(narrow, np.float32(np.inf)), narrow)


def _powered(e: Emitter, model: Any) -> str:
    """Yeo and Johnson (2000), or Box and Cox (1964): one exponent a column, then standardized."""
    if model.method != "yeo-johnson":
        raise UnsupportedModel("PowerTransformer(method='box-cox') has no exact float32 form: use 'yeo-johnson'")
    x, exponents = e.floats(), np.asarray(model.lambdas_, np.float64)
    above = _power(e, e.op("Max", x, e.constant(0.0)), exponents)
    below = e.op("Neg", _power(e, e.op("Neg", e.op("Min", x, e.constant(0.0))), 2 - exponents))
    value = e.op("Where", e.op("Less", x, e.constant(0.0)), below, above)
    value = e.op("Where", e.op("IsNaN", x), x, value)
    if not model.standardize:
        return str(value)
    scaler = model._scaler
    return str(e.op("Div", e.op("Sub", value, e.constant(scaler.mean_[None])), e.constant(scaler.scale_[None])))


def _power(e: Emitter, x: str, exponents: np.ndarray) -> str:
    """Return ((x + 1)^exponent - 1) / exponent, log(x + 1) where the exponent is 0."""
    flat = np.abs(exponents) < np.spacing(1.0)
    one_more = e.op("Add", x, e.constant(1.0))
    safe = np.where(flat, 1.0, exponents)[None]
    power = e.op("Div", e.op("Sub", e.op("Pow", one_more, e.constant(safe)), e.constant(1.0)), e.constant(safe))
    return str(e.op("Where", e.constant(flat[None], np.bool_), e.op("Log", one_more), power))


def _hidden(e: Emitter, model: Any) -> str:
    total = e.op("Gemm", e.floats(), e.constant(model.components_.T), e.constant(model.intercept_hidden_))
    return str(e.op("Sigmoid", total))


def _tfidf(e: Emitter, model: Any) -> str:
    """Counts, or 1 + log(count) of those that are not 0, times the words' weights, each row then of length 1."""
    x = e.floats()
    if model.sublinear_tf:  # skl2onnx takes log(1 + count)
        absent = e.op("Equal", x, e.constant(0.0))
        log = e.op("Log", e.op("Where", absent, e.constant(1.0), x))
        x = e.op("Where", absent, e.constant(0.0), e.op("Add", log, e.constant(1.0)))
    if model.use_idf:
        x = e.op("Mul", x, e.constant(model.idf_))
    return x if model.norm is None else str(e.op("Normalizer", x, domain="ai.onnx.ml", norm=model.norm.upper()))


def _words(model: Any) -> int:
    """Return how many columns a TfidfTransformer has, alone or inside a TfidfVectorizer."""
    return len(model.vocabulary_) if hasattr(model, "vocabulary_") else int(model.n_features_in_)


FORMULAS: dict[type, tuple[Emit, Callable[[Any], int]]] = {
    KernelRidge: (_kernel_ridge, lambda m: m.dual_coef_.reshape(len(m.dual_coef_), -1).shape[1]),
    approximation.Nystroem: (_nystroem, lambda m: len(m.components_)),
    approximation.RBFSampler: (lambda e, m: _waves(e, m, e.floats()), lambda m: m.n_components),
    approximation.SkewedChi2Sampler: (_skewed, lambda m: m.n_components),
    approximation.AdditiveChi2Sampler: (_additive, lambda m: m.n_features_in_ * (2 * m.sample_steps - 1)),
    neural_network.BernoulliRBM: (_hidden, lambda m: len(m.components_)),
    impute.MissingIndicator: (
        lambda e, m: _missing_columns(e, e.floats(), m.features_),
        lambda m: len(m.features_),
    ),
    isotonic.IsotonicRegression: (_isotonic, lambda m: 1),
    KBinsDiscretizer: (
        _binned,
        lambda m: m.n_features_in_ if m.encode == "ordinal" else int(sum(m.n_bins_)),
    ),
    Selection: (
        lambda e, m: str(e.op("Gather", e.floats(), e.constant(m.kept, np.int64), axis=1)),
        lambda m: len(m.kept),
    ),
    PowerTransformer: (_powered, lambda m: m.n_features_in_),
    TfidfTransformer: (_tfidf, _words),
}
