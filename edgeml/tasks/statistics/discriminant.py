"""Linear and quadratic discriminant analysis, from class means and scatter about them.

The formulas are those of scikit-learn's solvers, with the eigenvectors of a scatter matrix in place of the
singular vectors of the rows that it was made of.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeml.errors import DataError, UserError
from edgeml.tasks.program import Columns, Program
from edgeml.tasks.statistics.fitted import fitted
from edgeml.tasks.statistics.groups import Groups, about_means, groups, moved
from edgeml.tasks.study import Answer, Question, Sums


def lda(estimator: Any, columns: Columns) -> Question:
    """Return the study of LinearDiscriminantAnalysis (solver "svd")."""

    def scatter(known: Groups) -> Question:
        d, p = columns.features, Program(columns, target="classes")
        x = about_means(p, known)
        p.output("sum.xx", p.gram(x, x), (d, d))
        if estimator.store_covariance:
            raise UserError("LinearDiscriminantAnalysis(store_covariance=True): this option is not federated")
        return Question(p.task("statistics", "LinearDiscriminantAnalysis"), lambda sums: _lda(estimator, known, sums))

    return groups(columns, "LinearDiscriminantAnalysis", then=scatter)


def _lda(estimator: Any, before: Groups, sums: Sums) -> Answer:
    known, shift = moved(before, sums)
    n, k, d = known.rows, len(known.seen), known.columns.features
    if n <= k:
        raise DataError(f"{n:.0f} rows of {k} classes on all devices: label more rows than there are classes")
    means = known.means
    within = sums["sum.xx"] - shift.T @ (known.counts[:, np.newaxis] * shift)
    priors = priors_of(estimator.priors, known)
    centre = priors @ means
    deviation = np.sqrt(np.diag(within) / n)
    deviation[deviation == 0] = 1.0
    values, vectors = descending(within / n / np.outer(deviation, deviation))
    singular = np.sqrt(np.maximum(values, 0.0))
    rank = int((singular > estimator.tol).sum())
    scalings = (vectors[:, :rank] / deviation[:, np.newaxis]) / singular[:rank]
    between = (np.sqrt(n * priors / (k - 1)) * (means - centre).T).T @ scalings
    _, spread, directions = np.linalg.svd(between, full_matrices=False)
    most = min(k - 1, d)
    if estimator.n_components is not None and estimator.n_components > most:
        raise UserError(f"LinearDiscriminantAnalysis(n_components={estimator.n_components}): at most {most} here")
    kept = most if estimator.n_components is None else estimator.n_components
    scalings = scalings @ directions.T[:, : int((spread > estimator.tol * spread[0]).sum())]
    coefficients = (means - centre) @ scalings
    intercept = -0.5 * np.sum(coefficients**2, axis=1) + np.log(priors)
    coefficients = coefficients @ scalings.T
    intercept = intercept - centre @ coefficients.T
    if k == 2:
        coefficients, intercept = coefficients[1:] - coefficients[:1], intercept[1:] - intercept[:1]
    made = fitted(
        estimator,
        known.columns,
        classes_=known.classes(),
        priors_=priors,
        means_=means,
        xbar_=centre,
        scalings_=scalings,
        explained_variance_ratio_=(spread**2 / np.sum(spread**2))[:kept],
        coef_=coefficients,
        intercept_=intercept,
        _max_components=kept,
        _n_features_out=kept,
    )
    return Answer(made, known.notes())


def qda(estimator: Any, columns: Columns) -> Question:
    """Return the study of QuadraticDiscriminantAnalysis (solver "svd"): one scatter matrix by class."""

    def scatter(known: Groups) -> Question:
        d, p, e_parts = columns.features, Program(columns, target="classes"), []
        x = about_means(p, known)
        for index in known.seen.tolist():
            own = p.e.op("Compress", x, p.e.op("Equal", p.y, p.e.number(index)), axis=0)
            e_parts.append(p.e.op("Unsqueeze", p.gram(own, own), p.e.vector(0)))
        p.output("sum.xx", p.e.op("Concat", *e_parts, axis=0), (len(e_parts), d, d))
        task = p.task("statistics", "QuadraticDiscriminantAnalysis")
        return Question(task, lambda sums: _qda(estimator, known, sums))

    return groups(columns, "QuadraticDiscriminantAnalysis", then=scatter)


def _qda(estimator: Any, before: Groups, sums: Sums) -> Answer:
    known, shift = moved(before, sums)
    d = known.columns.features
    scalings, rotations, covariances = [], [], []
    for index, name in enumerate(known.columns.classes[i] for i in known.seen):
        n = float(known.counts[index])
        values, vectors = descending(sums["sum.xx"][index] / n - np.outer(shift[index], shift[index]))
        scaling = (1 - estimator.reg_param) * np.maximum(values, 0.0) + estimator.reg_param
        if n <= 1 or int((scaling > estimator.tol).sum()) < d:
            raise DataError(
                f"the {n:.0f} rows of class {name!r} do not vary in all {d} features: give reg_param, "
                f"leave constant features out, or take GaussianNB or LinearDiscriminantAnalysis"
            )
        scalings.append(scaling)
        rotations.append(vectors)
        covariances.append(scaling * vectors @ vectors.T)
    made = fitted(
        estimator,
        known.columns,
        classes_=known.classes(),
        priors_=priors_of(estimator.priors, known),
        means_=known.means,
        scalings_=scalings,
        rotations_=rotations,
    )
    if estimator.store_covariance:
        made.covariance_ = covariances
    return Answer(made, known.notes())


def priors_of(given: Any, known: Groups) -> np.ndarray:
    """Return the classes' priors: those `given`, or how often each was seen."""
    if given is None:
        return known.counts / known.rows
    priors = np.asarray(given, dtype=np.float64)
    if priors.shape != known.counts.shape or (priors < 0).any() or priors.sum() <= 0:
        raise DataError(
            f"priors {priors.tolist()} for the {len(known.seen)} classes that devices have seen: "
            f"give one number for each, or leave priors out"
        )
    return np.asarray(priors / priors.sum())


def descending(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return eigenvalues and eigenvectors (as columns) of a symmetric matrix, the largest first."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    return values[::-1], vectors[:, ::-1]
