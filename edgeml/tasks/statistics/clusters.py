"""KMeans by Lloyd's iteration: every round sums the rows nearest to each agreed centre."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from edgeml.artifacts import Task
from edgeml.errors import UserError
from edgeml.tasks.program import ROWS, Columns, Program
from edgeml.tasks.statistics.fitted import fitted
from edgeml.tasks.statistics.moments import enough, left_out
from edgeml.tasks.study import Answer, Question, Sums

Next = Question | Answer


def k_means(estimator: Any, columns: Columns) -> Question:
    """Return the study of KMeans from the centres in `init`; a centre that loses all rows stays where it was."""
    if isinstance(estimator.init, str) or callable(estimator.init):
        raise UserError(
            f"KMeans(init={estimator.init!r}) picks rows, and none leave a device: give init as an array of "
            f"({estimator.n_clusters}, {columns.features}) centres, of rows you have or spread over what you expect"
        )
    centres = np.asarray(estimator.init, dtype=np.float64)
    if centres.shape != (estimator.n_clusters, columns.features):
        raise UserError(f"init of shape {centres.shape}, and it must be ({estimator.n_clusters}, {columns.features})")
    return _Lloyd(estimator, columns).ask(centres, turn=1, done=False)


class _Lloyd:
    """The rounds of one KMeans; its graph is the same in all of them."""

    def __init__(self, estimator: Any, columns: Columns) -> None:
        self.estimator, self.columns = estimator, columns
        self.origin = np.asarray(estimator.init, dtype=np.float64).mean(axis=0)
        self.task_of = _nearest(columns, self.origin, estimator.n_clusters)

    def ask(self, centres: np.ndarray, *, turn: int, done: bool) -> Question:
        """Return the question at `centres`; with `done`, only their inertia is still wanted."""
        task = replace(self.task_of, parameters={**self.task_of.parameters, "centres": centres - self.origin})

        def follow(sums: Sums) -> Next:
            enough(sums, least=self.estimator.n_clusters)
            if done:
                return self.answer(centres, sums, turn=turn - 1)
            counts = sums["counts"][:, np.newaxis]
            moved = self.origin + sums["sum.x"] / np.maximum(counts, 1)
            new = np.where(counts > 0, moved, centres)
            shift = float(((new - centres) ** 2).sum())
            if shift == 0:
                return self.answer(centres, sums, turn=turn)
            return self.ask(new, turn=turn + 1, done=shift <= self.tolerance(sums) or turn >= self.estimator.max_iter)

        return Question(task, follow)

    def tolerance(self, sums: Sums) -> float:
        """Return `tol` in the data's own units: times the mean variance of the columns."""
        n = sums[ROWS]
        variance = sums["columns.xx"] / n - (sums["sum.x"].sum(axis=0) / n) ** 2
        return float(self.estimator.tol * variance.mean())

    def answer(self, centres: np.ndarray, sums: Sums, *, turn: int) -> Answer:
        empty = np.flatnonzero(sums["counts"] == 0).tolist()
        lonely = (f"centres {empty} have no rows and stay where they were: scikit-learn would have moved them",)
        made = fitted(
            self.estimator,
            self.columns,
            cluster_centers_=centres,
            inertia_=float(sums["inertia"]),
            n_iter_=turn,
            _n_features_out=len(centres),
            _n_threads=1,
        )
        return Answer(made, left_out(float(sums["rows.left_out"])) + (lonely if empty else ()))


def _nearest(columns: Columns, origin: np.ndarray, k: int) -> Task:
    d, p = columns.features, Program(columns)
    e = p.e
    x = e.op("Sub", p.x, p.parameter("origin", origin))
    centres = p.parameter("centres", np.zeros((k, d)))
    cross = e.op("MatMul", x, e.transposed(centres))
    squares = e.op("ReduceSum", e.op("Mul", centres, centres), e.vector(1), keepdims=0)
    distance = e.op("Sub", squares, e.op("Mul", e.real(2.0), cross))  # without |x|^2, the same for all centres
    nearest = e.op("ArgMin", distance, axis=1, keepdims=0)
    hot = p.one_hot(nearest, k)
    gap = e.op("Sub", x, e.op("Gather", centres, nearest, axis=0))
    p.output("counts", p.total(hot), (k,))
    p.output("sum.x", p.gram(hot, x), (k, d))
    p.output("columns.xx", p.total(e.op("Mul", x, x)), (d,))
    p.output("inertia", e.op("ReduceSum", e.op("Mul", gap, gap), keepdims=0), ())
    return p.task("statistics", "KMeans")
