"""What each operator of a numpy program does: ONNX's semantics, as onnxruntime carries them out, in numpy alone.

A function takes the input arrays (None for one left out) and the attributes, and returns the output arrays. The table
is the whole vocabulary: a program that names anything else is refused before it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeml_runtime.plain_trees import classify_trees, regress_trees, transformed

Array = np.ndarray
Inputs = Sequence[Any]
Attributes = Mapping[str, Any]
Operator = Callable[[Inputs, Attributes], tuple[Array, ...]]

CASTS = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 11: "float64"}  # onnx.TensorProto


def _unary(of: Callable[[Array], Any]) -> Operator:
    return lambda given, _: (np.asarray(of(given[0]), dtype=given[0].dtype),)


def _binary(of: Callable[[Array, Array], Any]) -> Operator:
    return lambda given, _: (np.asarray(of(given[0], given[1])),)


def _chained(of: Callable[[Array, Array], Any]) -> Operator:
    def run(given: Inputs, _attributes: Attributes) -> tuple[Array, ...]:
        result = given[0]
        for other in given[1:]:
            result = of(result, other)
        return (np.asarray(result),)

    return run


def _reduced(of: Callable[..., Any]) -> Operator:
    def run(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
        axes = given[1] if len(given) > 1 and given[1] is not None else attributes.get("axes")
        if axes is None and attributes.get("noop_with_empty_axes"):
            return (given[0],)
        chosen = None if axes is None or not len(axes) else tuple(int(axis) for axis in axes)
        result = of(given[0], axis=chosen, keepdims=bool(attributes.get("keepdims", 1)))
        return (np.asarray(result, dtype=given[0].dtype),)

    return run


def _log_sum_exp(array: Array, *, axis: Any, keepdims: bool) -> Array:
    highest = array.max(axis=axis, keepdims=True)
    highest = np.where(np.isfinite(highest), highest, 0)
    total = np.log(np.exp(array - highest).sum(axis=axis, keepdims=True)) + highest
    return np.asarray(total if keepdims else np.squeeze(total, axis=axis))


def _arg(of: Callable[..., Any]) -> Operator:
    def run(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
        axis, array = int(attributes.get("axis", 0)), given[0]
        if attributes.get("select_last_index"):
            found = array.shape[axis] - 1 - of(np.flip(array, axis), axis=axis)
        else:
            found = of(array, axis=axis)
        return (np.asarray(np.expand_dims(found, axis) if attributes.get("keepdims", 1) else found, dtype=np.int64),)

    return run


def _sigmoid(array: Array) -> Array:
    return np.asarray(0.5 * (1 + np.tanh(0.5 * array)))


def _softmax(array: Array, axis: int) -> Array:
    powers = np.exp(array - array.max(axis=axis, keepdims=True))
    return np.asarray(powers / powers.sum(axis=axis, keepdims=True))


def _log_softmax(array: Array, axis: int) -> Array:
    centred = array - array.max(axis=axis, keepdims=True)
    return np.asarray(centred - np.log(np.exp(centred).sum(axis=axis, keepdims=True)))


def _along(of: Callable[[Array, int], Array]) -> Operator:
    return lambda given, attributes: (of(given[0], int(attributes.get("axis", -1))).astype(given[0].dtype),)


def _gemm(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    left = given[0].T if attributes.get("transA") else given[0]
    right = given[1].T if attributes.get("transB") else given[1]
    result = left @ right
    if (alpha := attributes.get("alpha", 1.0)) != 1.0:
        result = result * left.dtype.type(alpha)
    if len(given) > 2 and given[2] is not None:
        beta = attributes.get("beta", 1.0)
        result = result + (given[2] if beta == 1.0 else given[2] * left.dtype.type(beta))
    return (result,)


def _divide(given: Inputs, _attributes: Attributes) -> tuple[Array, ...]:
    top, bottom = given[0], given[1]
    if top.dtype.kind == "f":
        return (top / bottom,)
    whole = np.where(bottom == 0, 1, bottom)
    return (np.trunc(top / whole).astype(top.dtype),)


def _clip(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    low = given[1] if len(given) > 1 and given[1] is not None else attributes.get("min")
    high = given[2] if len(given) > 2 and given[2] is not None else attributes.get("max")
    result = given[0] if low is None else np.maximum(given[0], low)
    return (np.asarray(result if high is None else np.minimum(result, high), dtype=given[0].dtype),)


def _cast(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    return (given[0].astype(CASTS[attributes["to"]]),)


def _reshape(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    array, wanted = given[0], [int(size) for size in given[1]]
    if not attributes.get("allowzero"):
        wanted = [array.shape[i] if size == 0 else size for i, size in enumerate(wanted)]
    return (array.reshape(wanted),)


def _flatten(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    axis = int(attributes.get("axis", 1))
    axis += given[0].ndim if axis < 0 else 0
    return (given[0].reshape(int(np.prod(given[0].shape[:axis], dtype=np.int64)), -1),)


def _axes(given: Inputs, attributes: Attributes) -> tuple[int, ...] | None:
    axes = given[1] if len(given) > 1 and given[1] is not None else attributes.get("axes")
    return None if axes is None else tuple(int(axis) for axis in axes)


def _squeeze(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    return (np.squeeze(given[0], axis=_axes(given, attributes)),)


def _unsqueeze(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    return (np.expand_dims(given[0], _axes(given, attributes) or ()),)


def _slice(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    array, starts, ends = given[0], given[1], given[2]
    axes = given[3] if len(given) > 3 and given[3] is not None else range(len(starts))
    steps = given[4] if len(given) > 4 and given[4] is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * array.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if step < 0 and end < -array.shape[int(axis)] else int(end)
        index[int(axis)] = slice(int(start), stop, int(step))
    return (array[tuple(index)],)


def _gather(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    return (np.take(given[0], given[1], axis=int(attributes.get("axis", 0))),)


def _concat(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    return (np.concatenate(list(given), axis=int(attributes["axis"])),)


def _transpose(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    return (np.transpose(given[0], [int(axis) for axis in attributes["perm"]] if "perm" in attributes else None),)


def _filled(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    value = attributes.get("value", np.zeros(1, np.float32))
    return (np.full([int(size) for size in given[0]], value[0], dtype=value.dtype),)


def _expand(given: Inputs, _attributes: Attributes) -> tuple[Array, ...]:
    shape = np.broadcast_shapes(given[0].shape, tuple(int(size) for size in given[1]))
    return (np.broadcast_to(given[0], shape),)


def _top_k(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    axis, count = int(attributes.get("axis", -1)), int(np.ravel(given[1])[0])
    order = np.argsort(-given[0] if attributes.get("largest", 1) else given[0], axis=axis, kind="stable")
    index = np.take(order, np.arange(count), axis=axis)
    return np.take_along_axis(given[0], index, axis=axis), index.astype(np.int64)


def _scaler(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    offset, scale = (np.asarray(attributes[name], dtype=np.float32) for name in ("offset", "scale"))
    return ((given[0].astype(np.float32) - offset) * scale,)


def _normalizer(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    array, norm = given[0].astype(np.float32), attributes.get("norm", "MAX")
    if norm == "L1":
        size = np.abs(array).sum(axis=-1, keepdims=True)
    elif norm == "L2":
        size = np.sqrt((array * array).sum(axis=-1, keepdims=True))
    else:
        size = array.max(axis=-1, keepdims=True)
    return (array / np.where(size == 0, np.float32(1), size),)


def _linear(given: Inputs, attributes: Attributes) -> Array:
    array = np.atleast_2d(given[0]).astype(np.float32)
    weights = np.asarray(attributes["coefficients"], dtype=np.float32).reshape(-1, array.shape[1])
    return np.asarray(array @ weights.T + np.asarray(attributes.get("intercepts", 0), dtype=np.float32))


def _linear_regressor(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    return (transformed(_linear(given, attributes), attributes),)


def _linear_classifier(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    scores, labels = _linear(given, attributes), labels_of(attributes)
    if scores.shape[1] > 1:
        return labels[scores.argmax(axis=1)], transformed(scores, attributes)
    positive = scores[:, 0] > 0
    if len(labels) != 2:
        return positive.astype(np.int64), transformed(scores, attributes)
    second = transformed(scores, attributes)
    return labels[positive.astype(int)], np.concatenate([1 - second, second], axis=1)


def labels_of(attributes: Attributes) -> Array:
    """Return the class labels of a classifier by index."""
    for name in ("classlabels_ints", "classlabels_int64s", "classlabels_strings"):
        if name in attributes:
            return np.asarray(attributes[name])
    return np.arange(2)


def _columns(given: Inputs, _attributes: Attributes) -> tuple[Array, ...]:
    array, index = given[0], np.ravel(given[1])
    return (np.atleast_2d(array[..., index]),)


def _imputer(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    array, missing = given[0], attributes.get("replaced_value_float", np.nan)
    filled = np.asarray(attributes["imputed_value_floats"], dtype=array.dtype)
    absent = np.isnan(array) if np.isnan(missing) else array == missing
    return (np.where(absent, filled, array),)


def _one_hot(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    kinds = attributes["cats_strings"] if "cats_strings" in attributes else attributes["cats_int64s"]
    return ((given[0][..., np.newaxis] == np.asarray(kinds)).astype(np.float32),)


def _label_encoder(given: Inputs, attributes: Attributes) -> tuple[Array, ...]:
    keys = next(attributes[name] for name in KEYS if name in attributes)
    values = next(attributes[name] for name in VALUES if name in attributes)
    kind = np.asarray(values).dtype
    fallback = next((attributes[name] for name in DEFAULTS[kind.kind] if name in attributes), FALLBACKS[kind.kind])
    known: dict[Any, Any] = {_key(key): value for key, value in zip(np.ravel(keys), np.ravel(values), strict=True)}
    default = np.ravel(fallback)[0] if isinstance(fallback, np.ndarray) else fallback
    flat = [known.get(_key(item), default) for item in given[0].ravel()]
    return (np.array(flat, dtype=kind).reshape(given[0].shape),)


KEYS = ("keys_strings", "keys_int64s", "keys_floats", "keys_tensor")
VALUES = ("values_strings", "values_int64s", "values_floats", "values_tensor")
DEFAULTS = {"f": ("default_float", "default_tensor"), "i": ("default_int64", "default_tensor")}
DEFAULTS |= {"O": ("default_string", "default_tensor"), "U": ("default_string", "default_tensor")}
FALLBACKS: Mapping[str, Any] = {"f": -0.0, "i": -1, "O": "_Unused", "U": "_Unused"}


def _key(item: Any) -> Any:
    """Return `item` as a key of a dictionary; NaN is no equal of itself."""
    plain = item.item() if isinstance(item, np.generic) else item
    return "nan" if isinstance(plain, float) and plain != plain else plain


def _where(given: Inputs, _attributes: Attributes) -> tuple[Array, ...]:
    return (np.asarray(np.where(given[0], given[1], given[2])),)


OPERATORS: dict[str, Operator] = {
    "Identity": lambda given, _: (given[0],),
    "Relu": _unary(lambda array: np.maximum(array, 0)),
    "Sigmoid": _unary(_sigmoid),
    "Tanh": _unary(np.tanh),
    "Exp": _unary(np.exp),
    "Log": _unary(np.log),
    "Sqrt": _unary(np.sqrt),
    "Abs": _unary(np.abs),
    "Neg": _unary(np.negative),
    "Sign": _unary(np.sign),
    "Floor": _unary(np.floor),
    "Ceil": _unary(np.ceil),
    "Reciprocal": _unary(lambda array: 1 / array),
    "Softplus": _unary(lambda array: np.logaddexp(array, 0)),
    "LeakyRelu": lambda given, a: (np.where(given[0] < 0, given[0] * np.float32(a.get("alpha", 0.01)), given[0]),),
    "Elu": lambda given, a: (
        np.where(given[0] < 0, np.float32(a.get("alpha", 1.0)) * np.expm1(np.minimum(given[0], 0)), given[0]),
    ),
    "Softmax": _along(_softmax),
    "LogSoftmax": _along(_log_softmax),
    "Add": _binary(np.add),
    "Sub": _binary(np.subtract),
    "Mul": _binary(np.multiply),
    "Div": _divide,
    "Pow": lambda given, _: (np.power(given[0], given[1]).astype(given[0].dtype),),
    "Sum": _chained(np.add),
    "Max": _chained(np.maximum),
    "Min": _chained(np.minimum),
    "Less": _binary(np.less),
    "LessOrEqual": _binary(np.less_equal),
    "Greater": _binary(np.greater),
    "GreaterOrEqual": _binary(np.greater_equal),
    "Equal": _binary(np.equal),
    "And": _binary(np.logical_and),
    "Or": _binary(np.logical_or),
    "Not": lambda given, _: (np.logical_not(given[0]),),
    "IsNaN": lambda given, _: (np.asarray(np.isnan(given[0])),),
    "Where": _where,
    "Clip": _clip,
    "Cast": _cast,
    "Gemm": _gemm,
    "MatMul": _binary(np.matmul),
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Gather": _gather,
    "Slice": _slice,
    "Shape": lambda given, _: (np.array(given[0].shape, dtype=np.int64),),
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "TopK": _top_k,
    "ReduceSum": _reduced(np.sum),
    "ReduceMean": _reduced(np.mean),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "ReduceProd": _reduced(np.prod),
    "ReduceLogSumExp": _reduced(_log_sum_exp),
    "ReduceSumSquare": _reduced(lambda array, **how: np.sum(array * array, **how)),
    "ReduceL1": _reduced(lambda array, **how: np.sum(np.abs(array), **how)),
    "ReduceL2": _reduced(lambda array, **how: np.sqrt(np.sum(array * array, **how))),
    "ArgMax": _arg(np.argmax),
    "ArgMin": _arg(np.argmin),
    "ai.onnx.ml.Scaler": _scaler,
    "ai.onnx.ml.Normalizer": _normalizer,
    "ai.onnx.ml.LinearRegressor": _linear_regressor,
    "ai.onnx.ml.LinearClassifier": _linear_classifier,
    "ai.onnx.ml.ArrayFeatureExtractor": _columns,
    "ai.onnx.ml.Binarizer": lambda given, a: ((given[0] > np.float32(a.get("threshold", 0.0))).astype(np.float32),),
    "ai.onnx.ml.Imputer": _imputer,
    "ai.onnx.ml.OneHotEncoder": _one_hot,
    "ai.onnx.ml.LabelEncoder": _label_encoder,
    "ai.onnx.ml.TreeEnsembleRegressor": lambda given, a: (regress_trees(given[0], a),),
    "ai.onnx.ml.TreeEnsembleClassifier": lambda given, a: classify_trees(given[0], a, labels_of(a)),
}
