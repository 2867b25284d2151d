"""Generalized linear models by Newton: LogisticRegression, PoissonRegressor, GammaRegressor.

Columns are taken about their means, which the first round agrees on: the Hessian is better conditioned, and
the intercept takes the difference back. Formulas: McCullagh, Nelder, Generalized Linear Models, 1989.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto

from edgeml.artifacts import Task
from edgeml.errors import UserError
from edgeml.tasks.program import ROWS, Columns, Program, Target
from edgeml.tasks.statistics.fitted import fitted
from edgeml.tasks.statistics.groups import Groups, groups
from edgeml.tasks.statistics.moments import enough, left_out
from edgeml.tasks.statistics.newton import Descent
from edgeml.tasks.study import Answer, Question, Sums

MAX_EXPONENT = 300.0  # of exp in a step that went too far: large, and still summable
MAX_HESSIAN = 1 << 20  # numbers in one upload, 8 MB
Next = Question | Answer


def poisson(estimator: Any, columns: Columns) -> Question:
    """Return the study of PoissonRegressor: loss exp(z) - y z; rows with a negative target are left out."""

    def terms(p: Program, z: str) -> tuple[str, str, str]:
        mean = p.e.op("Exp", z)
        return p.e.op("Sub", mean, p.e.op("Mul", p.y, z)), p.e.op("Sub", mean, p.y), mean

    return _log_link(estimator, columns, target="counts", terms=terms)


def gamma(estimator: Any, columns: Columns) -> Question:
    """Return the study of GammaRegressor: loss z + y exp(-z); rows whose target is not above 0 are left out."""

    def terms(p: Program, z: str) -> tuple[str, str, str]:
        ratio = p.e.op("Mul", p.y, p.e.op("Exp", p.e.op("Neg", z)))
        return p.e.op("Add", z, ratio), p.e.op("Sub", p.e.real(1.0), ratio), ratio

    return _log_link(estimator, columns, target="positive", terms=terms)


Terms = Callable[[Program, str], tuple[str, str, str]]  # z (n,) -> loss, its first and its second derivative by z


def _log_link(estimator: Any, columns: Columns, *, target: Target, terms: Terms) -> Question:
    d, source = columns.features, type(estimator).__name__
    first = Program(columns, target=target)
    first.output("sum.x", first.total(first.x), (d,))
    first.output("sum.y", first.total(first.y), ())

    def begin(sums: Sums) -> Question:
        enough(sums, least=2)
        n = float(sums[ROWS])
        intercept = bool(estimator.fit_intercept)
        origin = sums["sum.x"] / n if intercept else np.zeros(d)
        task = _glm(columns, source, origin=origin, target=target, terms=(terms, intercept))
        start = np.zeros(d + intercept)
        penalty = np.full(d + intercept, n * float(estimator.alpha))
        if intercept:
            start[-1], penalty[-1] = np.log(max(float(sums["sum.y"]) / n, np.finfo(float).tiny)), 0.0

        def finish(weights: np.ndarray, last: Sums, turn: int) -> Answer:
            made = fitted(
                estimator,
                columns,
                coef_=weights[:d],
                intercept_=float(weights[d] - origin @ weights[:d]) if intercept else 0.0,
                n_iter_=turn,
                _base_loss=estimator._get_loss(),
            )
            return Answer(made, left_out(float(last["rows.left_out"])))

        return Descent(task, lambda given: given["hessian"], penalty, finish).ask(start)

    return Question(first.task("statistics", source), begin)


def _glm(columns: Columns, source: str, *, origin: np.ndarray, target: Target, terms: tuple[Terms, bool]) -> Task:
    p = Program(columns, target=target)
    e, (derivatives, intercept) = p.e, terms
    x = _design(p, origin, intercept=intercept)
    size = columns.features + intercept
    z = e.op("Squeeze", e.op("MatMul", x, p.column(p.parameter("weights", np.zeros(size)))), e.vector(1))
    z = e.op("Clip", z, e.real(-MAX_EXPONENT), e.real(MAX_EXPONENT))
    loss, slope, curvature = derivatives(p, z)
    p.output("loss", p.total(loss), ())
    p.output("gradient", e.op("Squeeze", p.gram(x, p.column(slope)), e.vector(1)), (size,))
    p.output("hessian", p.gram(x, e.op("Mul", x, p.column(curvature))), (size, size))
    return p.task("statistics", source)


def _design(p: Program, origin: np.ndarray, *, intercept: bool) -> str:
    x = p.e.op("Sub", p.x, p.parameter("origin", origin))
    return p.with_ones(x) if intercept else x


def logistic(estimator: Any, columns: Columns) -> Question:
    """Return the study of LogisticRegression with an L2 penalty: binary, or softmax over all classes."""

    def begin(known: Groups) -> Question:
        weights = _class_weights(estimator, known)
        return (_binary if len(known.seen) == 2 else _softmax)(estimator, known, weights)

    return groups(columns, "LogisticRegression", then=begin)


def _class_weights(estimator: Any, known: Groups) -> np.ndarray:
    """Return the weight of every class of the columns, (K,)."""
    weights, given = np.ones(len(known.columns.classes)), estimator.class_weight
    if given == "balanced":
        weights[known.seen] = known.rows / (len(known.seen) * known.counts)
    elif given is not None:
        unknown = [name for name in given if name not in known.columns.classes]
        if unknown:
            raise UserError(f"class_weight of {unknown}, and the classes are {list(known.columns.classes)}")
        weights = np.array([float(given.get(name, 1.0)) for name in known.columns.classes])
    return weights


def _binary(estimator: Any, known: Groups, class_weights: np.ndarray) -> Question:
    columns, intercept = known.columns, bool(estimator.fit_intercept)
    d, origin = columns.features, known.overall if intercept else np.zeros(columns.features)
    p = Program(columns, target="classes")
    e, size = p.e, d + intercept
    x = _design(p, origin, intercept=intercept)
    weight = e.op("Gather", p.parameter("class.weights", class_weights), p.y, axis=0)
    positive = e.op("Cast", e.op("Equal", p.y, e.number(int(known.seen[1]))), to=TensorProto.DOUBLE)
    z = e.op("Squeeze", e.op("MatMul", x, p.column(p.parameter("weights", np.zeros(size)))), e.vector(1))
    softplus = e.op("Log", e.op("Add", e.real(1.0), e.op("Exp", e.op("Neg", e.op("Abs", z)))))
    softplus = e.op("Add", softplus, e.op("Max", z, e.real(0.0)))
    probability = e.op("Sigmoid", z)
    slope = e.op("Mul", weight, e.op("Sub", probability, positive))
    curve = e.op("Mul", weight, e.op("Mul", probability, e.op("Sub", e.real(1.0), probability)))
    p.output("loss", p.total(e.op("Mul", weight, e.op("Sub", softplus, e.op("Mul", positive, z)))), ())
    p.output("gradient", e.op("Squeeze", p.gram(x, p.column(slope)), e.vector(1)), (size,))
    p.output("hessian", p.gram(x, e.op("Mul", x, p.column(curve))), (size, size))

    def finish(weights: np.ndarray, _last: Sums, turn: int) -> Answer:
        return _logistic_answer(estimator, known, weights[np.newaxis], origin=origin, turn=turn)

    penalty = _penalty(estimator, size, intercept=intercept)
    task = p.task("statistics", "LogisticRegression")
    return Descent(task, lambda sums: sums["hessian"], penalty, finish).ask(np.zeros(size))


def _penalty(estimator: Any, size: int, *, intercept: bool) -> np.ndarray:
    penalty = np.full(size, 1.0 / float(estimator.C))
    if intercept:
        penalty[-1] = 0.0
    return penalty


def _softmax(estimator: Any, known: Groups, class_weights: np.ndarray) -> Question:
    columns, intercept, k = known.columns, bool(estimator.fit_intercept), len(known.seen)
    size, origin = columns.features + intercept, known.overall if intercept else np.zeros(columns.features)
    pairs = [(i, j) for i in range(k) for j in range(i, k)]
    if len(pairs) * size * size > MAX_HESSIAN:
        raise UserError(
            f"{k} classes and {columns.features} features make a Hessian of {len(pairs) * size * size:,} numbers, and "
            f"{MAX_HESSIAN:,} are sent at most: put PCA in front, or train it as a network with edgeml.tasks.training"
        )
    p = Program(columns, target="classes")
    e = p.e
    x = _design(p, origin, intercept=intercept)
    weight = p.column(e.op("Gather", p.parameter("class.weights", class_weights), p.y, axis=0))
    matrix = e.op("Reshape", p.parameter("weights", np.zeros(k * size)), e.vector(k, size))
    logs = e.op("LogSoftmax", e.op("MatMul", x, e.transposed(matrix)), axis=1)
    seen = e.op("Equal", p.column(p.y), e.value(known.seen.astype(np.int64)[np.newaxis]))
    hot, probability = e.op("Cast", seen, to=TensorProto.DOUBLE), e.op("Exp", logs)
    slope = e.op("Mul", weight, e.op("Sub", probability, hot))
    p.output("loss", e.op("Neg", e.op("ReduceSum", e.op("Mul", weight, e.op("Mul", hot, logs)), keepdims=0)), ())
    p.output("gradient", e.op("Reshape", p.gram(slope, x), e.vector(-1)), (k * size,))
    p.output("hessian", _softmax_hessian(p, (x, probability, weight), pairs), (len(pairs), size, size))

    def hessian(sums: Sums) -> np.ndarray:
        whole = np.zeros((k, size, k, size))
        for (i, j), block in zip(pairs, sums["hessian"], strict=True):
            whole[i, :, j] = block
            whole[j, :, i] = block.T
        return whole.reshape(k * size, k * size)

    def finish(weights: np.ndarray, _last: Sums, turn: int) -> Answer:
        return _logistic_answer(estimator, known, weights.reshape(k, size), origin=origin, turn=turn)

    penalty = np.tile(_penalty(estimator, size, intercept=intercept), k)
    task = p.task("statistics", "LogisticRegression")
    return Descent(task, hessian, penalty, finish).ask(np.zeros(k * size))


def _softmax_hessian(p: Program, of: tuple[str, str, str], pairs: list[tuple[int, int]]) -> str:
    """Return the blocks X' diag(w p_i (1[i = j] - p_j)) X of the upper triangle, (pairs, size, size)."""
    e, (x, probability, weight) = p.e, of
    blocks = []
    for i, j in pairs:
        own = e.op("Gather", probability, e.vector(i), axis=1)
        other = own if i == j else e.op("Gather", probability, e.vector(j), axis=1)
        rest = e.op("Sub", e.real(float(i == j)), other)
        curve = e.op("Mul", weight, e.op("Mul", own, rest))
        blocks.append(e.op("Unsqueeze", p.gram(x, e.op("Mul", x, curve)), e.vector(0)))
    return e.op("Concat", *blocks, axis=0)


def _logistic_answer(estimator: Any, known: Groups, weights: np.ndarray, *, origin: np.ndarray, turn: int) -> Answer:
    d = known.columns.features
    coefficients = weights[:, :d]
    intercept = np.zeros(len(weights))
    if estimator.fit_intercept:
        intercept = weights[:, d] - coefficients @ origin
        if len(weights) > 1:
            intercept = intercept - intercept.mean()  # softmax does not see what all classes share
    made = fitted(
        estimator,
        known.columns,
        classes_=known.classes(),
        coef_=coefficients,
        intercept_=intercept,
        n_iter_=np.array([turn], dtype=np.int32),
    )
    return Answer(made, known.notes())
