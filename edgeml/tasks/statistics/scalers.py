"""Scalers and bins of columns: StandardScaler, MinMaxScaler, MaxAbsScaler, RobustScaler, KBinsDiscretizer.

Missing numbers are passed over column by column, as scikit-learn's scalers do.
"""

from __future__ import annotations

import importlib
from statistics import NormalDist
from typing import Any, get_args

import numpy as np
from onnx import TensorProto

from edgeml.errors import DataError, UserError
from edgeml.tasks.program import Columns, Program
from edgeml.tasks.statistics.fitted import fitted
from edgeml.tasks.statistics.order import Method, order_statistics, quantiles
from edgeml.tasks.study import Answer, Question, Sums

EPSILON = float(np.finfo(np.float64).eps)
THIN = 1e-8  # scikit-learn drops bins that are not wider


def standard_scaler(estimator: Any, columns: Columns) -> Question:
    """Return the study of StandardScaler: sums, then squares about the means that they give."""
    zero = np.zeros(columns.features)

    def about(sums: Sums) -> Question:
        return _squares(columns, origin=_mean(sums, zero), then=lambda second, origin: finish(second, origin))

    def finish(sums: Sums, origin: np.ndarray) -> Answer:
        n, mean = sums["counts"], _mean(sums, origin)
        shift = mean - origin
        variance = np.maximum(sums["sum.xx"] / n - shift**2, 0.0)
        constant = variance <= n * EPSILON * variance + (n * mean * EPSILON) ** 2  # Chan, Golub, LeVeque 1983
        scale = np.where(constant, 1.0, np.sqrt(variance)) if estimator.with_std else None
        spread = variance if estimator.with_std else None
        same = bool((n == n[0]).all())
        seen = int(n[0]) if same else n.astype(np.int64)
        kept = mean if estimator.with_mean or estimator.with_std else None
        made = fitted(estimator, columns, mean_=kept, var_=spread, scale_=scale, n_samples_seen_=seen)
        return Answer(made, missing_notes(float(sums["rows"]), n))

    return _squares(columns, origin=zero, then=lambda sums, _origin: about(sums))


def _mean(sums: Sums, origin: np.ndarray) -> np.ndarray:
    if not sums["counts"].all():
        empty = np.flatnonzero(sums["counts"] == 0).tolist()
        raise DataError(f"columns {empty} have no number on any device: leave them out")
    return np.asarray(origin + sums["sum.x"] / sums["counts"])


def _squares(columns: Columns, *, origin: np.ndarray, then: Any) -> Question:
    """Ask for counts, sums and squares about `origin` of the numbers that are there, all (d,)."""
    d, p = (columns.features,), Program(columns, missing=True)
    there = p.finite(p.x)
    x = p.e.op("Sub", p.x, p.parameter("origin", origin))
    x = p.e.op("Where", there, x, p.e.real(0.0))
    p.output("counts", p.total(p.e.op("Cast", there, to=TensorProto.DOUBLE)), d)
    p.output("sum.x", p.total(x), d)
    p.output("sum.xx", p.total(p.e.op("Mul", x, x)), d)
    return Question(p.task("statistics", "StandardScaler"), lambda sums: then(sums, origin))


def missing_notes(rows: float, counts: np.ndarray) -> tuple[str, ...]:
    """Return a note about numbers that were passed over, none where there were none."""
    missing = float((rows - counts).sum())
    return (f"{missing:.0f} missing numbers were passed over",) if missing else ()


def min_max_scaler(estimator: Any, columns: Columns) -> Question:
    """Return the study of MinMaxScaler: the first and the last rank of every column."""
    low, high = estimator.feature_range
    if low >= high:
        raise UserError(f"MinMaxScaler(feature_range=({low}, {high})): the first must be the smaller")

    def finish(counts: np.ndarray, values: np.ndarray) -> Answer:
        least, most = values.T
        width = most - least
        scale = (high - low) / without_zeros(width)
        made = fitted(
            estimator,
            columns,
            data_min_=least,
            data_max_=most,
            data_range_=width,
            scale_=scale,
            min_=low - least * scale,
            n_samples_seen_=int(counts.max()),
        )
        return Answer(made)

    return order_statistics(columns, "MinMaxScaler", ranks=first_and_last, then=finish)


def max_abs_scaler(estimator: Any, columns: Columns) -> Question:
    """Return the study of MaxAbsScaler, from the first and the last rank of every column."""

    def finish(counts: np.ndarray, values: np.ndarray) -> Answer:
        most = np.abs(values).max(axis=1)
        scale = without_zeros(most)
        made = fitted(estimator, columns, max_abs_=most, scale_=scale, n_samples_seen_=int(counts.max()))
        return Answer(made)

    return order_statistics(columns, "MaxAbsScaler", ranks=first_and_last, then=finish)


def first_and_last(counts: np.ndarray) -> np.ndarray:
    """Return the ranks (d, 2) of the smallest and the largest of `counts` (d,) numbers."""
    return np.stack([np.zeros_like(counts), counts - 1], axis=1)


def robust_scaler(estimator: Any, columns: Columns) -> Question:
    """Return the study of RobustScaler: median and the two quantiles of `quantile_range`."""
    low, high = (float(level) for level in estimator.quantile_range)
    if not 0 <= low <= high <= 100:
        raise UserError(f"RobustScaler(quantile_range=({low}, {high})): both must be within 0 and 100, in this order")

    def finish(_counts: np.ndarray, values: np.ndarray) -> Answer:
        least, median, most = values.T
        scale = without_zeros(most - least)
        if estimator.unit_variance:
            normal = NormalDist()
            scale = scale / (normal.inv_cdf(high / 100) - normal.inv_cdf(low / 100))
        return Answer(
            fitted(
                estimator,
                columns,
                center_=median if estimator.with_centering else None,
                scale_=scale if estimator.with_scaling else None,
            )
        )

    return quantiles(columns, "RobustScaler", levels=(low / 100, 0.5, high / 100), then=finish)


def without_zeros(scale: np.ndarray) -> np.ndarray:
    """Return `scale` with 1 in place of what is too small to divide by."""
    return np.where(scale < 10 * EPSILON, 1.0, scale)


def k_bins(estimator: Any, columns: Columns) -> Question:
    """Return the study of KBinsDiscretizer, its edges at quantiles or of equal width."""
    if estimator.strategy not in ("quantile", "uniform"):
        raise UserError(f"KBinsDiscretizer(strategy={estimator.strategy!r}): federated are 'quantile' and 'uniform'")
    bins = np.broadcast_to(np.asarray(estimator.n_bins, dtype=np.int64), (columns.features,))
    by_quantile = estimator.strategy == "quantile"
    # all columns answer all levels; each takes its own
    steps = sorted({float(level) for n in bins for level in (np.linspace(0, 100, n + 1) if by_quantile else (0, 100))})

    def finish(_counts: np.ndarray, values: np.ndarray) -> Answer:
        edges, notes = np.zeros(columns.features, dtype=object), []
        for f, n in enumerate(bins):
            known = dict(zip(steps, values[f], strict=True))
            least, most = known[0.0], known[100.0]
            if least == most:
                edges[f] = np.array([-np.inf, np.inf])
                notes.append(f"column {f} is constant and becomes 0")
                continue
            edges[f] = np.array([known[level] for level in np.linspace(0, 100, n + 1)]) if by_quantile else None
            if not by_quantile:
                edges[f] = np.linspace(least, most, n + 1)
                continue
            edges[f] = edges[f][np.ediff1d(edges[f], to_begin=np.inf) > THIN]
            if len(edges[f]) <= n:
                notes.append(f"column {f} has {len(edges[f]) - 1} bins in place of {n}: quantiles coincide")
        return Answer(_binned(estimator, columns, edges), tuple(notes))

    method: Method = estimator.quantile_method if by_quantile else "linear"
    if method not in get_args(Method):
        raise UserError(f"KBinsDiscretizer(quantile_method={method!r}): federated is 'averaged_inverted_cdf'")
    levels = [level / 100 for level in steps]
    return quantiles(columns, "KBinsDiscretizer", levels=levels, method=method, then=finish)


def _binned(estimator: Any, columns: Columns, edges: np.ndarray) -> Any:
    counts = np.array([len(own) - 1 for own in edges])
    made = fitted(estimator, columns, bin_edges_=edges, n_bins_=counts)
    if "onehot" in estimator.encode:
        encoder = importlib.import_module("sklearn.preprocessing").OneHotEncoder
        made._encoder = encoder(
            categories=[np.arange(n) for n in counts],
            sparse_output=estimator.encode == "onehot",
            dtype=estimator.dtype or np.float64,
        ).fit(np.zeros((1, len(counts))))
    return made
