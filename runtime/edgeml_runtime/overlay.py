"""A model's file with other weights in it, everything around them byte for byte as it was.

`SessionOptions.add_initializer` of onnxruntime promises the same and is not used: at every level of optimization above
`disabled` its optimizers have by then made new weights of the old ones (a BatchNormalization folded into a
convolution), and those stay, without a word (seen with 1.19 and 1.32; tests/runtime/test_overlay.py). A file that has
the weights in place is optimized, prepacked and mapped as any other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeml_runtime.errors import ModelRefused
from edgeml_runtime.sidefile import (
    RAW_DATA,
    VARINT,
    WEIGHTS,
    Field,
    fields,
    framed,
    mapped,
    read_varint,
    restored,
    rewritten,
)

DIMS, DATA_TYPE, NAME = 1, 2, 8  # of TensorProto
FLOAT = 1  # of TensorProto.DataType


def write(source: Path, target: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write the model `source`, or the one that it and WEIGHTS beside it are, to `target` with `arrays` by name in it.

    Raises ModelRefused, with no file, when an array is not float32, or none of the model's weights is of this name
    and shape.
    """
    found: set[str] = set()
    weights = source.with_name(WEIGHTS)
    with contextlib.ExitStack() as stack:
        data = stack.enter_context(mapped(source))
        beside = stack.enter_context(mapped(weights)) if weights.is_file() else memoryview(b"")

        def rewrite(tensor: Field) -> list[memoryview] | None:
            name = _name(tensor)
            if name not in arrays:
                return restored(tensor, lambda start, length: _cut(beside, start, length))
            found.add(name)
            return _replaced(tensor, name, arrays[name])

        pieces = rewritten(data, rewrite)
        if missing := sorted(arrays.keys() - found):
            raise ModelRefused(f"{len(missing)} of {len(arrays)} tensors have no place in it: {missing[0]!r}")
        with target.open("wb") as stream:
            stream.writelines(pieces)


def _cut(weights: memoryview, start: int, length: int) -> memoryview:
    if start + length > len(weights):
        raise ModelRefused(f"bytes {start:,} to {start + length:,} of {WEIGHTS}, which has {len(weights):,}")
    return weights[start : start + length]


def _name(tensor: Field) -> str:
    names = [field for field in fields(tensor.data, tensor.body, tensor.end) if field.number == NAME]
    return bytes(names[-1].value()).decode(errors="replace") if names else ""


def _replaced(tensor: Field, name: str, array: np.ndarray) -> list[memoryview]:
    """Return the pieces of `tensor` with the values of `array`."""
    parts = list(fields(tensor.data, tensor.body, tensor.end))
    kinds = [number for field in parts if field.number == DATA_TYPE for number in _numbers(field)]
    shape = tuple(number for field in parts if field.number == DIMS for number in _numbers(field))
    if kinds != [FLOAT] or array.dtype != np.float32:
        raise ModelRefused(f"tensor {name!r} is {array.dtype}, in place of ONNX type {kinds}: both must be float32")
    if shape != array.shape:
        raise ModelRefused(f"tensor {name!r} has the shape {array.shape}, and the model wants {shape}")
    values = np.ascontiguousarray(array, dtype="<f4").tobytes()
    assert len(values) == 4 * math.prod(shape)
    kept = [field.whole() for field in parts if field.number in (DIMS, DATA_TYPE, NAME)]
    return [*kept, *framed(RAW_DATA, [memoryview(values)])]


def _numbers(field: Field) -> list[int]:
    """Return the whole numbers of a field, which may be packed."""
    found, at = [], field.body
    while at < field.end:
        number, at = read_varint(field.data, at, field.end)
        found.append(number)
        if field.kind == VARINT:
            break
    return found
