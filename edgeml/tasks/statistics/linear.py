"""Linear regressions from second moments: Ridge, LinearRegression, Lasso, ElasticNet."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeml.errors import UserError
from edgeml.tasks.program import Columns
from edgeml.tasks.statistics.fitted import fitted
from edgeml.tasks.statistics.moments import Moments, moments
from edgeml.tasks.study import Answer, Question

DESCENTS, DUAL_GAP = 100_000, 1e-13  # of coordinate descent: until rounding stops it
RANK = 1e-12  # of a correlation matrix: directions that vary less, relatively, are taken as collinear


def ridge(estimator: Any, columns: Columns) -> Question:
    """Return the study of Ridge: min |y - Xw - b|^2 + alpha |w|^2, b not penalized."""
    if np.ndim(estimator.alpha):
        raise UserError(f"Ridge(alpha={estimator.alpha!r}): one target is federated, so give one number")
    return _least_squares(estimator, columns, alpha=float(estimator.alpha))


def linear_regression(estimator: Any, columns: Columns) -> Question:
    """Return the study of LinearRegression; of collinear columns the shortest w, as scikit-learn has it."""
    return _least_squares(estimator, columns, alpha=0.0)


def sparse(estimator: Any, columns: Columns) -> Question:
    """Return the study of Lasso or ElasticNet: scikit-learn's own descent, on `features` rows of the same moments."""

    def descend(known: Moments, scatter: np.ndarray, cross: np.ndarray) -> np.ndarray:
        values, vectors = np.linalg.eigh(scatter)
        root = np.sqrt(np.maximum(values, 0.0))
        there = root > np.sqrt(RANK) * root[-1]
        rows = root[:, np.newaxis] * vectors.T  # rows' rows is the scatter
        target = np.where(there, vectors.T @ cross / np.where(there, root, 1.0), 0.0)  # rows' target is the cross
        inner = copy.deepcopy(estimator)
        alpha = estimator.alpha * known.rows / len(rows)  # it is counted per row, and these are fewer
        inner.set_params(alpha=alpha, fit_intercept=False, precompute=False, max_iter=DESCENTS, tol=DUAL_GAP)
        return np.asarray(inner.fit(rows, target).coef_)

    return _from_moments(estimator, columns, weigh=descend)


def _least_squares(estimator: Any, columns: Columns, *, alpha: float) -> Question:
    return _from_moments(
        estimator,
        columns,
        weigh=lambda _known, scatter, cross: solve_symmetric(scatter + alpha * np.eye(columns.features), cross),
    )


Weigh = Callable[[Moments, np.ndarray, np.ndarray], np.ndarray]  # moments, scatter, cross -> weights (d,)


def _from_moments(estimator: Any, columns: Columns, *, weigh: Weigh) -> Question:
    def solve(known: Moments) -> Answer:
        assert known.cross is not None
        scatter, cross = known.scatter, known.cross
        if not estimator.fit_intercept:  # about zero again: sums of squares only grow, nothing cancels
            scatter = scatter + known.rows * np.outer(known.mean, known.mean)
            cross = cross + known.rows * known.mean * known.target_mean
        weights = weigh(known, scatter, cross)
        intercept = known.target_mean - known.mean @ weights if estimator.fit_intercept else 0.0
        return Answer(fitted(estimator, columns, coef_=weights, intercept_=intercept), known.notes())

    return moments(columns, type(estimator).__name__, target="values", then=solve)


def solve_symmetric(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return x of matrix x = right for a positive semidefinite (d, d) matrix: the shortest x where many would do.

    Columns are scaled to unit diagonal first, so that their units do not decide what is collinear.
    """
    diagonal = np.diag(matrix)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(matrix / np.outer(scale, scale))
    if values[0] > RANK * values[-1]:
        scaled = np.linalg.solve(matrix / np.outer(scale, scale), (right.T / scale).T)
        return np.asarray((scaled.T / scale).T)
    # x lies in the row space of the data, spanned by scale * (vectors of the scaled matrix that vary)
    kept = values > RANK * max(values[-1], 0.0)
    basis = np.linalg.qr(scale[:, np.newaxis] * vectors[:, kept])[0]
    return np.asarray(basis @ np.linalg.solve(basis.T @ matrix @ basis, basis.T @ right))
