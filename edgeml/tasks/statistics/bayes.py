"""Naive Bayes: GaussianNB from class means and variances, MultinomialNB and BernoulliNB from counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from edgeml.errors import DataError, UserError
from edgeml.tasks.program import LEFT_OUT, Columns, Program
from edgeml.tasks.statistics.fitted import fitted
from edgeml.tasks.statistics.groups import Groups, about_means, groups, moved
from edgeml.tasks.statistics.moments import enough
from edgeml.tasks.study import Answer, Question, Sums

LEAST_ALPHA = 1e-10  # what scikit-learn puts in place of a smaller smoothing, unless it is forced


def gaussian_nb(estimator: Any, columns: Columns) -> Question:
    """Return the study of GaussianNB: means by class, then variances about them."""
    return groups(columns, "GaussianNB", least=1, then=lambda known: _variances(estimator, columns, known))


def _variances(estimator: Any, columns: Columns, known: Groups) -> Question:
    k, d = len(columns.classes), columns.features
    p = Program(columns, target="classes")
    x = about_means(p, known)
    p.output("sum.xx", p.gram(p.one_hot(p.y, k), p.e.op("Mul", x, x)), (k, d))

    def finish(sums: Sums) -> Answer:
        now, shift = moved(known, sums)
        counts, theta = now.counts, now.means
        variance = np.maximum(sums["sum.xx"][known.seen] / counts[:, np.newaxis] - shift**2, 0.0)
        prior = _priors(estimator.priors, counts)
        total = counts @ (variance + (theta - now.overall) ** 2) / now.rows
        epsilon = estimator.var_smoothing * total.max()
        made = fitted(
            estimator,
            columns,
            theta_=theta,
            var_=variance + epsilon,
            epsilon_=epsilon,
            class_count_=counts,
            class_prior_=prior,
            classes_=now.classes(),
        )
        return Answer(made, now.notes())

    return Question(p.task("statistics", "GaussianNB"), finish)


def _priors(given: Any, counts: np.ndarray) -> np.ndarray:
    if given is None:
        return np.asarray(counts / counts.sum())
    priors = np.asarray(given, dtype=np.float64)
    if priors.shape != counts.shape or (priors < 0).any() or not np.isclose(priors.sum(), 1.0):
        raise DataError(
            f"priors {priors.tolist()} for the {len(counts)} classes that devices have seen: "
            f"give {len(counts)} numbers of sum 1, or leave priors out"
        )
    return priors


def multinomial_nb(estimator: Any, columns: Columns) -> Question:
    """Return the study of MultinomialNB: sums of features by class; rows with a negative number are left out."""

    def finish(known: Groups, total: np.ndarray) -> dict[str, np.ndarray]:
        smoothed = total + _alpha(estimator, columns)
        log_prob = np.log(smoothed) - np.log(smoothed.sum(axis=1, keepdims=True))
        return {"feature_count_": total, "feature_log_prob_": log_prob}

    p = Program(columns, target="classes", least=0.0)
    return _counted(estimator, columns, (p, p.x), finish=finish)


def bernoulli_nb(estimator: Any, columns: Columns) -> Question:
    """Return the study of BernoulliNB: how many rows of a class have each feature above `binarize`."""
    p = Program(columns, target="classes")
    x = p.x
    if estimator.binarize is not None:
        x = p.e.op("Cast", p.e.op("Greater", p.x, p.e.real(float(estimator.binarize))), to=TensorProto.DOUBLE)

    def finish(known: Groups, total: np.ndarray) -> dict[str, np.ndarray]:
        alpha = _alpha(estimator, columns)
        log_prob = np.log(total + alpha) - np.log(known.counts + 2 * alpha).reshape(-1, 1)
        return {"feature_count_": total, "feature_log_prob_": log_prob}

    return _counted(estimator, columns, (p, x), finish=finish)


def _counted(estimator: Any, columns: Columns, begun: tuple[Program, str], *, finish: Any) -> Question:
    p, x = begun
    k, d, source = len(columns.classes), columns.features, type(estimator).__name__
    hot = p.one_hot(p.y, k)
    p.output("counts", p.total(hot), (k,))
    p.output("sum.x", p.gram(hot, x), (k, d))

    def answer(sums: Sums) -> Answer:
        enough(sums, least=1)
        seen = np.flatnonzero(sums["counts"])
        counts, total = sums["counts"][seen], sums["sum.x"][seen]
        known = Groups(seen, counts, total / counts[:, np.newaxis], float(sums[LEFT_OUT]), columns)
        learned = finish(known, total)
        prior = _log_prior(estimator, counts)
        made = fitted(
            estimator, columns, class_count_=counts, class_log_prior_=prior, classes_=known.classes(), **learned
        )
        return Answer(made, known.notes())

    return Question(p.task("statistics", source), answer)


def _log_prior(estimator: Any, counts: np.ndarray) -> np.ndarray:
    if estimator.class_prior is not None:
        return np.asarray(np.log(_priors(estimator.class_prior, counts)))
    if estimator.fit_prior:
        return np.asarray(np.log(counts) - np.log(counts.sum()))
    return np.full(len(counts), -np.log(len(counts)))


def _alpha(estimator: Any, columns: Columns) -> Any:
    """Return the smoothing: one number, or one for each feature."""
    alpha = np.asarray(estimator.alpha, dtype=np.float64)
    if (alpha.ndim and alpha.shape != (columns.features,)) or (alpha < 0).any():
        raise UserError(f"alpha {alpha.tolist()}: give one number, or {columns.features}, none below 0")
    return alpha if estimator.force_alpha else np.maximum(alpha, LEAST_ALPHA)
