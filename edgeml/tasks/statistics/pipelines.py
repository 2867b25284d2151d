"""A scikit-learn Pipeline over a fleet: each step is studied on what the fitted steps before it make of the rows."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from edgeml.errors import UserError
from edgeml.tasks.emitter import Emitter
from edgeml.tasks.program import Columns
from edgeml.tasks.study import Answer, Question, after

PIPELINE = "Pipeline"
Next = Question | Answer
Begin = Callable[[Any, Columns], Next]


def pipeline(estimator: Any, columns: Columns, *, begin: Begin) -> Next:
    """Return the study of all steps of `estimator`, whose own studies `begin` begins; rounds add up."""
    return _step(copy.copy(estimator), columns, begin=begin, index=0, notes=())


def acting(estimator: Any) -> list[Any]:
    """Return the steps of a Pipeline that do something; raise UserError for one that no task graph can go through."""
    steps = [step for _name, step in estimator.steps if _acts(step)]
    names = [type(step).__name__ for step in steps]
    unknown = [name for name in names[:-1] if name not in EMIT]
    if unknown or not steps or not _acts(estimator.steps[-1][1]):
        raise UserError(
            f"a pipeline of {', '.join(names) or 'nothing'}: before its last step, which must not be passed over, "
            f"federated are {', '.join(EMIT)}"
        )
    return steps


def _acts(step: Any) -> bool:
    return step is not None and step != "passthrough"


def _step(made: Any, columns: Columns, *, begin: Begin, index: int, notes: tuple[str, ...]) -> Next:
    name, step = made.steps[index]
    if not _acts(step):
        return _step(made, columns, begin=begin, index=index + 1, notes=notes)

    def follow(answer: Answer) -> Next:
        whole = copy.copy(made)
        whole.steps = [*made.steps[:index], (name, answer.value), *made.steps[index + 1 :]]
        heard = (*notes, *answer.notes)
        if index + 1 == len(made.steps):
            return Answer(whole, tuple(dict.fromkeys(heard)))
        further = _through(answer.value, columns)
        return _step(whole, further, begin=begin, index=index + 1, notes=heard)

    return after(begin(step, columns), follow)


def _through(fitted: Any, columns: Columns) -> Columns:
    emit = EMIT[type(fitted).__name__]
    width = int(getattr(fitted, "n_components_", columns.features))
    return columns.through(lambda e, x: emit(fitted, e, x), features=width)


def _standard(fitted: Any, e: Emitter, x: str) -> str:
    if fitted.with_mean:
        x = e.op("Sub", x, e.value(fitted.mean_))
    return e.op("Div", x, e.value(fitted.scale_)) if fitted.with_std else x


def _min_max(fitted: Any, e: Emitter, x: str) -> str:
    x = e.op("Add", e.op("Mul", x, e.value(fitted.scale_)), e.value(fitted.min_))
    return _clipped(e, x, fitted.feature_range) if fitted.clip else x


def _clipped(e: Emitter, x: str, ends: tuple[float, float]) -> str:
    low, high = (e.real(float(end)) for end in ends)
    return e.op("Where", e.op("IsNaN", x), x, e.op("Clip", x, low, high))  # a missing number stays missing


def _imputer(fitted: Any, e: Emitter, x: str) -> str:
    return e.op("Where", e.op("IsNaN", x), e.value(fitted.statistics_.astype(np.float64)), x)


def _max_abs(fitted: Any, e: Emitter, x: str) -> str:
    x = e.op("Div", x, e.value(fitted.scale_))
    return _clipped(e, x, (-1.0, 1.0)) if fitted.clip else x


def _robust(fitted: Any, e: Emitter, x: str) -> str:
    if fitted.with_centering:
        x = e.op("Sub", x, e.value(fitted.center_))
    return e.op("Div", x, e.value(fitted.scale_)) if fitted.with_scaling else x


def _pca(fitted: Any, e: Emitter, x: str) -> str:
    turned = e.op("MatMul", e.op("Sub", x, e.value(fitted.mean_)), e.value(np.ascontiguousarray(fitted.components_.T)))
    if not fitted.whiten:
        return turned
    scale = np.sqrt(fitted.explained_variance_)
    least = np.finfo(scale.dtype).eps  # scikit-learn's own guard against directions without variance
    return e.op("Div", turned, e.value(np.maximum(scale, least)))


def _tfidf(fitted: Any, e: Emitter, x: str) -> str:
    if fitted.sublinear_tf:
        there = e.op("Not", e.op("Equal", x, e.real(0.0)))
        log = e.op("Add", e.op("Log", e.op("Where", there, x, e.real(1.0))), e.real(1.0))
        x = e.op("Where", there, log, e.real(0.0))
    if fitted.use_idf:
        x = e.op("Mul", x, e.value(fitted.idf_))
    if fitted.norm is None:
        return x
    kind = {"l1": "ReduceL1", "l2": "ReduceL2"}[fitted.norm]
    length = e.op(kind, x, e.vector(1), keepdims=1)
    empty = e.op("Equal", length, e.real(0.0))
    return e.op("Div", x, e.op("Where", empty, e.real(1.0), length))


EMIT: Mapping[str, Callable[[Any, Emitter, str], str]] = {
    "SimpleImputer": _imputer,
    "StandardScaler": _standard,
    "MaxAbsScaler": _max_abs,
    "MinMaxScaler": _min_max,
    "RobustScaler": _robust,
    "PCA": _pca,
    "TfidfTransformer": _tfidf,
}
