"""SimpleImputer: what stands in for a missing number, so that rows with holes can be learned from."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from edgeml.errors import DataError, UserError
from edgeml.tasks.program import Columns, Program
from edgeml.tasks.statistics.fitted import fitted
from edgeml.tasks.statistics.order import quantiles
from edgeml.tasks.statistics.scalers import missing_notes
from edgeml.tasks.study import Answer, Question, Sums


def simple_imputer(estimator: Any, columns: Columns) -> Question | Answer:
    """Return the study of SimpleImputer by mean or median; a constant needs no question."""
    if estimator.strategy == "constant":
        number = 0 if estimator.fill_value is None else float(estimator.fill_value)
        return _made(estimator, columns, np.full(columns.features, number, dtype=np.object_))
    if estimator.strategy == "median":
        return quantiles(
            columns,
            "SimpleImputer",
            levels=(0.5,),
            method="averaged_inverted_cdf",
            then=lambda _counts, found: _made(estimator, columns, found[:, 0]),
        )
    if estimator.strategy != "mean":
        raise UserError(f"SimpleImputer(strategy={estimator.strategy!r}): federated are mean, median and constant")
    return _means(estimator, columns)


def _means(estimator: Any, columns: Columns) -> Question:
    d, p = (columns.features,), Program(columns, missing=True)
    there = p.finite(p.x)
    p.output("counts", p.total(p.e.op("Cast", there, to=TensorProto.DOUBLE)), d)
    p.output("sum.x", p.total(p.e.op("Where", there, p.x, p.e.real(0.0))), d)

    def finish(sums: Sums) -> Answer:
        counts = sums["counts"]
        if not counts.all():
            empty = np.flatnonzero(counts == 0).tolist()
            raise DataError(f"columns {empty} have no number on any device: leave them out")
        made = _made(estimator, columns, sums["sum.x"] / counts)
        return Answer(made.value, missing_notes(float(sums["rows"]), counts))

    return Question(p.task("statistics", "SimpleImputer"), finish)


def _made(estimator: Any, columns: Columns, statistics: np.ndarray) -> Answer:
    inside = {"_fill_dtype": np.dtype(np.float64), "_fit_dtype": np.dtype(np.float64)}
    return Answer(fitted(estimator, columns, statistics_=statistics, indicator_=None, **inside))
