"""Counts over documents and baskets: TF-IDF's document frequencies, co-occurrence for recommendations."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from onnx import TensorProto

from edgeml.errors import UserError
from edgeml.tasks.program import LEFT_OUT, ROWS, Columns, Program
from edgeml.tasks.statistics.fitted import fitted
from edgeml.tasks.statistics.moments import enough, left_out
from edgeml.tasks.study import Answer, Question, Sums


def tfidf(estimator: Any, columns: Columns) -> Question:
    """Return the study of TfidfTransformer: in how many rows each term stands."""
    p = Program(columns)
    present = p.e.op("Cast", p.e.op("Not", p.e.op("Equal", p.x, p.e.real(0.0))), to=TensorProto.DOUBLE)
    p.output("documents", p.total(present), (columns.features,))

    def finish(sums: Sums) -> Answer:
        enough(sums, least=1)
        notes = left_out(float(sums[LEFT_OUT]))
        if not estimator.use_idf:
            return Answer(fitted(estimator, columns), notes)
        smooth = int(estimator.smooth_idf)
        frequency = sums["documents"] + smooth
        if not frequency.all():
            raise UserError("a term stands in no document: TfidfTransformer(smooth_idf=True) can weigh it")
        return Answer(fitted(estimator, columns, idf_=np.log((sums[ROWS] + smooth) / frequency) + 1.0), notes)

    return Question(p.task("statistics", "TfidfTransformer"), finish)


@dataclass(frozen=True)
class Cooccurrence:
    """Recommend items by what stands together in a row (a basket, a user's history): scores = history @ weights.

    `count`: in how many rows two items stand together. `cosine`: that by the root of both items' own counts.
    `ease`: the item weights of Steck 2019 (arXiv 1905.03375), ridge regression of each item on all others.
    """

    weights: Literal["count", "cosine", "ease"] = "cosine"
    penalty: float = 100.0  # of ease

    def of(self, counts: np.ndarray) -> np.ndarray:
        """Return weights (items, items), zero on the diagonal, from how often two items stand together."""
        if self.weights == "ease":
            inverse = np.linalg.inv(counts + self.penalty * np.eye(len(counts)))
            found = -inverse / np.diag(inverse)
        elif self.weights == "cosine":
            own = np.sqrt(np.maximum(np.diag(counts), 1.0))
            found = counts / np.outer(own, own)
        else:
            found = counts.copy()
        np.fill_diagonal(found, 0.0)
        return np.asarray(found)


def cooccurrence(estimator: Cooccurrence, columns: Columns) -> Question:
    """Return the study whose result is a LinearRegression from a history (rows, items) to scores (rows, items)."""
    if estimator.weights not in ("count", "cosine", "ease") or estimator.penalty <= 0:
        raise UserError(f"{estimator}: weights are 'count', 'cosine' or 'ease', and the penalty is above 0")
    d, p = columns.features, Program(columns)
    present = p.e.op("Cast", p.e.op("Not", p.e.op("Equal", p.x, p.e.real(0.0))), to=TensorProto.DOUBLE)
    p.output("together", p.gram(present, present), (d, d))

    def finish(sums: Sums) -> Answer:
        enough(sums, least=1)
        model = importlib.import_module("sklearn.linear_model").LinearRegression(fit_intercept=False)
        weights = estimator.of(sums["together"])
        made = fitted(model, columns, coef_=weights.T, intercept_=np.zeros(d))
        return Answer(made, left_out(float(sums[LEFT_OUT])))

    return Question(p.task("statistics", "Cooccurrence"), finish)
