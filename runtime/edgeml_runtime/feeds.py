"""What a caller gives a model, held to what the model takes: names, types, shapes, and sizes that must agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeml_runtime.errors import ShapeMismatch
from edgeml_runtime.wire.manifest import TensorSpec

Symbols = Mapping[str, Sequence[Any]]  # input -> each axis: its size, its name, or None
NUMBERS = {
    name: np.dtype(name) for name in ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")
}


def checked(feeds: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec], symbols: Symbols) -> dict[str, np.ndarray]:
    """Return `feeds` as the model with these `inputs` takes them; raise ShapeMismatch when they do not fit."""
    names = {spec.name for spec in inputs}
    if feeds.keys() != names:
        wanted, given = ", ".join(sorted(names)), ", ".join(sorted(feeds))
        raise ShapeMismatch(f"the model takes the inputs {wanted or '(none)'}; got {given or 'nothing'}")
    found = {spec.name: cast(spec, np.asarray(feeds[spec.name])) for spec in inputs}
    for spec in inputs:
        if not agree(spec.shape, shape := found[spec.name].shape):
            raise misfit(spec, symbols[spec.name], shape)
    if len(found) > 1:
        _check_axes(found, symbols)
    return found


def one_row(row: np.ndarray, inputs: Sequence[TensorSpec], symbols: Symbols) -> dict[str, np.ndarray]:
    """Return the feeds of one row, given with or without its row axis, for a model with one input."""
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise ShapeMismatch(f"predict is for one input, this model has {len(inputs)} ({names}): use run")
    spec = inputs[0]
    rows = row[np.newaxis] if row.ndim == len(spec.shape) - 1 else row
    if rows.ndim and rows.shape[0] != 1:
        raise not_one_row(spec, symbols[spec.name], row.shape)
    return {spec.name: rows}


def not_one_row(spec: TensorSpec, axes: Sequence[Any], shape: tuple[int, ...]) -> ShapeMismatch:
    """Return the error for an array that `predict` does not take."""
    return ShapeMismatch(f"{misfit(spec, axes, shape)}: predict takes one row, run takes many")


def misfit(spec: TensorSpec, axes: Sequence[Any], shape: tuple[int, ...]) -> ShapeMismatch:
    """Return the error that says what shape an input takes and which it got."""
    wanted = ", ".join(str(axis) if isinstance(axis, int) else axis or "any" for axis in axes)
    got = ", ".join(map(str, shape))
    return ShapeMismatch(f"input {spec.name!r} takes {spec.dtype} of shape ({wanted}), got ({got})")


def cast(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    """Return `array` as `spec` wants it, where no value can change beyond float rounding."""
    if spec.dtype == "string":
        if array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(x, str) for x in array.flat)):
            return array.astype(object, copy=False)
        raise ShapeMismatch(f"input {spec.name!r} takes strings, got {array.dtype}: write a missing one as ''")
    wanted = NUMBERS[spec.dtype]
    if array.dtype == wanted:
        return array
    if np.can_cast(array.dtype, wanted, "safe") or (wanted.kind == "f" and array.dtype.kind in "fiu"):
        return array.astype(wanted)
    raise ShapeMismatch(f"input {spec.name!r} takes {spec.dtype}, got {array.dtype}: convert it first")


def agree(declared: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    """Return whether an array of `shape` is what `declared` asks for."""
    if declared[1:] == shape[1:] and declared and shape:  # nearly always; -1 is never a real size
        return declared[0] in (-1, shape[0])
    return len(declared) == len(shape) and all(want in (-1, got) for want, got in zip(declared, shape, strict=True))


def _check_axes(feeds: Mapping[str, np.ndarray], symbols: Symbols) -> None:
    """Refuse inputs that disagree on an axis the model gives one name, which onnxruntime lets through."""
    sizes: dict[str, int] = {}
    for name, array in feeds.items():
        for axis, size in zip(symbols[name], array.shape, strict=True):
            if isinstance(axis, str) and sizes.setdefault(axis, size) != size:
                raise ShapeMismatch(f"input {name!r} has {size} {axis}, another input has {sizes[axis]}")
