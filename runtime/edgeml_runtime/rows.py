"""Rows that people and programs write (CSV, JSON) to the arrays a model takes, by the manifest's features.

A row is a list in the order of the features, or a dict by their names; columns the model does not
know are left out. Every error names row, column and value.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgeml_runtime.errors import ShapeMismatch
from edgeml_runtime.wire.manifest import CATEGORICAL, NUMERIC, Feature, Manifest, TensorSpec

MAX_SHOWN = 12  # names in a message
SHORT = 40  # characters of a value in a message
FLOAT32_MAX = float(np.finfo(np.float32).max)


def parse(manifest: Manifest, rows: Any) -> dict[str, np.ndarray]:
    """Return the model's inputs for `rows`, a list of rows; raise ShapeMismatch naming the first wrong value."""
    if not isinstance(rows, list) or not rows:
        raise ShapeMismatch('no rows: send {"rows": [[...], ...]} or {"rows": [{"column": value}, ...]}')
    if not manifest.features:
        return _tensors(manifest.inputs, rows)
    table = [_cells(manifest.features, row, number) for number, row in enumerate(rows, start=1)]
    inputs: dict[str, np.ndarray] = {}
    for name, kind in ((NUMERIC, "numeric"), (CATEGORICAL, "categorical")):
        columns = [(index, one.name) for index, one in enumerate(manifest.features) if one.kind == kind]
        if columns:
            read = _number if kind == "numeric" else _word
            cells = [
                [read(row[index], number, column) for index, column in columns]
                for number, row in enumerate(table, start=1)
            ]
            inputs[name] = np.array(cells, dtype=np.float32 if kind == "numeric" else object)
    return inputs


def parse_bytes(manifest: Manifest, data: bytes) -> dict[str, np.ndarray]:
    """Return the model's one numeric input from raw little-endian float32, whole rows."""
    if (
        len(manifest.inputs) != 1
        or manifest.inputs[0].dtype != "float32"
        or any(a < 0 for a in manifest.inputs[0].shape[1:])
    ):
        raise ShapeMismatch("raw float32 is for models with one float32 input of fixed size: send JSON")
    spec = manifest.inputs[0]
    width = math.prod(spec.shape[1:])
    if not data or len(data) % (4 * width):
        raise ShapeMismatch(
            f"{len(data)} bytes are no whole rows: a row of {spec.name!r} is {width} float32, {4 * width} bytes"
        )
    return {spec.name: np.frombuffer(data, dtype="<f4").reshape(-1, *spec.shape[1:]).astype(np.float32)}


def parse_targets(manifest: Manifest, targets: Any) -> list[float | int]:
    """Return targets as the training task takes them: the index of a class name (or an index), or a number."""
    if not isinstance(targets, list):
        raise ShapeMismatch('"targets" is not a list: give one class name or number for each row')
    return [parse_target(manifest, target, row=number) for number, target in enumerate(targets, start=1)]


def parse_target(manifest: Manifest, target: Any, *, row: int = 1) -> float | int:
    """Return one target. A class name wins over an index that is spelled the same."""
    if manifest.task == "classification":
        spelled = str(target)
        if spelled in manifest.classes:
            return manifest.classes.index(spelled)
        if type(target) is int and 0 <= target < len(manifest.classes):
            return target
        raise ShapeMismatch(
            f"row {row}: target {_show(target)} is no class of {manifest.model}: {_names(manifest.classes)}"
        )
    if isinstance(target, bool) or not isinstance(target, int | float) or not math.isfinite(target):
        raise ShapeMismatch(f"row {row}: target {_show(target)} is not a finite number")
    return float(target) if manifest.task == "regression" else target


def read_text(manifest: Manifest, text: str, *, name: str) -> list[Any]:
    """Return the rows in `text`, JSON or CSV: what `parse` takes. A CSV may have a header or be in order."""
    if text.lstrip()[:1] in ("[", "{"):
        return _read_json(text, name)
    lines = [row for row in csv.reader(io.StringIO(text)) if any(cell.strip() for cell in row)]
    if not lines:
        raise ShapeMismatch(f"{name} holds no rows")
    header = [cell.strip() for cell in lines[0]]
    known = [feature.name for feature in manifest.features if feature.name in header]
    if not known:
        return list(lines)
    if len(lines) == 1:
        raise ShapeMismatch(f"{name} holds a header and no rows")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(header):
            raise ShapeMismatch(
                f"{name}: row {number} has {len(line)} values, its header {len(header)}: correct that row"
            )
    return [dict(zip(header, line, strict=True)) for line in lines[1:]]


def _read_json(text: str, name: str) -> list[Any]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ShapeMismatch(f"{name} is not JSON: {error}") from error
    rows = found.get("rows") if isinstance(found, dict) else found
    if not isinstance(rows, list):
        raise ShapeMismatch(f'{name} holds no rows: write [[...], ...] or {{"rows": [...]}}')
    return rows


def _cells(features: Sequence[Feature], row: Any, number: int) -> Sequence[Any]:
    names = [feature.name for feature in features]
    if isinstance(row, dict):
        if missing := [name for name in names if name not in row]:
            raise ShapeMismatch(
                f"row {number}: column {missing[0]!r} is missing; it has {_names([str(key) for key in row])}"
            )
        return [row[name] for name in names]
    if not isinstance(row, list):
        raise ShapeMismatch(f"row {number}: {_show(row)} is neither a list nor an object by column name")
    if len(row) != len(names):
        raise ShapeMismatch(f"row {number} has {len(row)} values, the model takes {len(names)}: {_names(names)}")
    return row


def _number(value: Any, row: int, column: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, str):
        if not value.strip():
            return math.nan
        try:
            value = float(value)
        except ValueError as error:
            raise ShapeMismatch(f"row {row}, column {column!r}: {_show(value)} is not a number") from error
    if not isinstance(value, int | float):
        raise ShapeMismatch(f"row {row}, column {column!r}: {_show(value)} is not a number")
    if not math.isnan(value) and abs(value) > FLOAT32_MAX:
        raise ShapeMismatch(f"row {row}, column {column!r}: {_show(value)} is beyond the range of float32")
    return float(value)


def _word(value: Any, row: int, column: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, list | dict):
        raise ShapeMismatch(f"row {row}, column {column!r}: {_show(value)} is not a category")
    return str(value)


def _tensors(inputs: Sequence[TensorSpec], rows: list[Any]) -> dict[str, np.ndarray]:
    """Return the inputs of a model without features: each row is its one input, or a dict by input name."""
    if len(inputs) == 1 and not isinstance(rows[0], dict):
        rows = [{inputs[0].name: row} for row in rows]
    found = {}
    for spec in inputs:
        values = []
        for number, row in enumerate(rows, start=1):
            if not isinstance(row, dict) or spec.name not in row:
                raise ShapeMismatch(f"row {number}: input {spec.name!r} is missing")
            values.append(_tensor(spec, row[spec.name], number))
        try:
            found[spec.name] = np.stack(values)
        except ValueError as error:
            raise ShapeMismatch(f"input {spec.name!r}: the rows have different shapes") from error
    return found


def _tensor(spec: TensorSpec, value: Any, row: int) -> np.ndarray:
    dtype = object if spec.dtype == "string" else spec.dtype
    try:
        with np.errstate(over="raise"):
            array = np.array(value, dtype=dtype)
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ShapeMismatch(f"row {row}, input {spec.name!r}: {_show(value)} is not {spec.dtype}") from error
    wanted = spec.shape[1:]
    if array.ndim != len(wanted) or any(a not in (-1, b) for a, b in zip(wanted, array.shape, strict=True)):
        if array.size == math.prod(wanted) and all(axis >= 0 for axis in wanted):
            return array.reshape(wanted)
        raise ShapeMismatch(f"row {row}, input {spec.name!r}: shape {array.shape}, the model takes {wanted}")
    return array


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHORT else text[: SHORT - 3] + "..."


def _names(names: Sequence[str]) -> str:
    return ", ".join(names[:MAX_SHOWN]) + (f" and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else "")


def count(inputs: Mapping[str, np.ndarray]) -> int:
    """Return how many rows `inputs` has."""
    return len(next(iter(inputs.values())))
