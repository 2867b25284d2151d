"""Converters for functions by name and for splines.

FunctionTransformer takes any of FUNCTIONS; TransformedTargetRegressor any of them as its `inverse_func`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.interpolate import BSpline, PPoly
from sklearn.preprocessing import FunctionTransformer, SplineTransformer

from edgeml.convert.sklearn_emit import Emitter, convert_with
from edgeml.errors import UnsupportedModel

LIMIT = 0.5  # below it, log1p and expm1 take another form: log(1 + x) would round x away


def _log1p(e: Emitter, x: str) -> str:
    """2 artanh(x / (2 + x)) near 0 (Abramowitz and Stegun 4.1.27), log(1 + x) elsewhere."""
    near = e.op("Less", e.op("Abs", x), e.constant(LIMIT))
    ratio = e.op("Div", x, e.op("Add", x, e.constant(2.0)))
    small = e.op("Mul", e.op("Atanh", e.op("Where", near, ratio, e.constant(0.0))), e.constant(2.0))
    return str(e.op("Where", near, small, e.op("Log", e.op("Add", x, e.constant(1.0)))))


def _expm1(e: Emitter, x: str) -> str:
    """2 t / (1 - t) with t = tanh(x / 2) near 0, exp(x) - 1 elsewhere."""
    near = e.op("Less", e.op("Abs", x), e.constant(LIMIT))
    half = e.op("Tanh", e.op("Mul", e.op("Where", near, x, e.constant(0.0)), e.constant(0.5)))
    small = e.op("Div", e.op("Mul", half, e.constant(2.0)), e.op("Sub", e.constant(1.0), half))
    return str(e.op("Where", near, small, e.op("Sub", e.op("Exp", x), e.constant(1.0))))


def _operator(name: str) -> Callable[[Emitter, str], str]:
    return lambda e, x: str(e.op(name, x))


def _scaled(name: str, factor: float) -> Callable[[Emitter, str], str]:
    return lambda e, x: str(e.op("Mul", e.op(name, x), e.constant(factor)))


FUNCTIONS: dict[Any, Callable[[Emitter, str], str]] = {
    None: lambda e, x: x,
    np.log1p: _log1p,
    np.expm1: _expm1,
    np.log: _operator("Log"),
    np.log2: _scaled("Log", 1 / np.log(2)),
    np.log10: _scaled("Log", 1 / np.log(10)),
    np.exp: _operator("Exp"),
    np.sqrt: _operator("Sqrt"),
    np.square: lambda e, x: str(e.op("Mul", x, x)),
    np.abs: _operator("Abs"),
    np.negative: _operator("Neg"),
    np.reciprocal: _operator("Reciprocal"),
    np.sin: _operator("Sin"),
    np.cos: _operator("Cos"),
    np.tanh: _operator("Tanh"),
    np.arctan: _operator("Atan"),
    np.floor: _operator("Floor"),
    np.ceil: _operator("Ceil"),
    np.sign: _operator("Sign"),
}


def register() -> None:
    """Put these converters in place of skl2onnx's own, or where it has none."""
    convert_with(FunctionTransformer, _function, lambda model: int(model.n_features_in_))
    convert_with(SplineTransformer, _spline, lambda model: model.n_features_out_)


def _function(e: Emitter, model: Any) -> str:
    if model.func not in FUNCTIONS or model.kw_args:
        known = ", ".join(f"numpy.{each.__name__}" for each in FUNCTIONS if each)
        name = getattr(model.func, "__name__", repr(model.func))
        raise UnsupportedModel(f"FunctionTransformer({name}) is code that no graph can hold: use one of {known}")
    return FUNCTIONS[model.func](e, e.floats())


def _spline(e: Emitter, model: Any) -> str:
    """Each B-spline as a polynomial per interval between knots (de Boor, "A Practical Guide to Splines")."""
    if model.extrapolation not in ("constant", "continue", "error"):
        raise UnsupportedModel(
            f"SplineTransformer(extrapolation={model.extrapolation!r}): use 'constant' or 'continue'"
        )
    x = e.floats()
    columns = [_basis(e, e.column(x, i), (model, spline)) for i, spline in enumerate(model.bsplines_)]
    return columns[0] if len(columns) == 1 else str(e.op("Concat", *columns, axis=1))


def _basis(e: Emitter, column: str, of: tuple[Any, BSpline]) -> str:
    model, spline = of
    degree, knots = spline.k, spline.t[spline.k : len(spline.t) - spline.k]
    if model.extrapolation != "continue":
        column = e.op("Min", e.op("Max", column, e.constant(knots[0])), e.constant(knots[-1]))
    each = [PPoly.from_spline(BSpline(spline.t, one, degree)).c for one in np.asarray(spline.c).T]
    pieces = np.stack(each, axis=2)[:, degree : degree + len(knots) - 1]  # (degree + 1, intervals, splines)
    kept = pieces.shape[2] if model.include_bias else pieces.shape[2] - 1
    over = e.op("Cast", e.op("GreaterOrEqual", column, e.constant(knots[None, 1:-1])), to=7)
    index = e.op("ReduceSum", over, e.constant([1], np.int64), keepdims=0)
    reach = e.op("Sub", column, e.op("Gather", e.constant(knots[:-1, None]), index, axis=0))
    value = e.op("Gather", e.constant(pieces[0, :, :kept]), index, axis=0)
    for power in range(1, degree + 1):
        value = e.op(
            "Add", e.op("Mul", value, reach), e.op("Gather", e.constant(pieces[power, :, :kept]), index, axis=0)
        )
    return str(value)
