"""Rows that a finished model is to see: the same columns, or arrays of the same shape, or one clear refusal.

    file + Manifest -> read_rows -> Rows        file + TensorSpecs -> read_arrays -> Rows

Columns are found by name, or by position in a file without a header; arrays by the names of the model's inputs.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from edgeml.artifacts import Rows
from edgeml.data import columns
from edgeml.data.sources import SOURCES
from edgeml.data.table import Table, read_records, read_table
from edgeml.data.target import indices_of, values_of
from edgeml.data.truth import Takes, truth_of
from edgeml.errors import DataError, NotFound
from edgeml.project import Read
from edgeml_runtime.wire.manifest import CATEGORICAL, Feature, TensorSpec

SINGLE, LABELS = "x", "y"  # names in an .npz besides the model's own input names
ARRAYS = (".npz", ".npy")
PICKLE = b"\x80"  # the first byte of one
MOST_BYTES = 8 << 30  # that an .npz may unpack to


def read_rows(path: Path, manifest: Takes, *, target: str | None = None) -> Rows:
    """Return the rows in the file at `path` as the inputs of the model in `manifest`, with the target when it is there.

    The target column is `target`, or the one that the manifest names. Raises NotFound or DataError.
    """
    if not manifest.features or path.suffix in ARRAYS:
        rows, labels = _arrays(path, manifest.inputs)
        return Rows(rows.inputs, None if labels is None else truth_of(labels, manifest, path.name))
    table = _table(path, manifest.features)
    inputs, _ = columns.inputs_of(table, manifest.features)
    name = target or manifest.target
    if name not in table.frame.columns:
        return Rows(inputs)
    if manifest.task == "classification":
        return Rows(inputs, indices_of(table, name, manifest.classes))
    return Rows(inputs, values_of(table, name))


def read_arrays(path: Path, inputs: tuple[TensorSpec, ...]) -> Rows:
    """Return the rows in the file at `path` for a model of which only the inputs are known.

    Raises NotFound or DataError, with both shapes, when they do not fit.
    """
    rows, labels = _arrays(path, inputs)
    return Rows(rows.inputs, labels)


def _arrays(path: Path, inputs: Sequence[TensorSpec]) -> tuple[Rows, np.ndarray | None]:
    found = _load(path, inputs)
    if len(inputs) == 1 and inputs[0].name not in found and SINGLE in found:
        found[inputs[0].name] = found[SINGLE]
    missing = [spec.name for spec in inputs if spec.name not in found]
    if missing:
        wanted = ", ".join(f"{spec.name} {_shown(spec.shape)}" for spec in inputs)
        raise DataError(
            f"{path.name} holds {', '.join(found) or 'nothing'}; the model takes {wanted}: name the arrays so"
        )
    arrays = {spec.name: _fitted(found[spec.name], spec, path.name) for spec in inputs}
    labels = found.get(LABELS)
    counts = {name: len(array) for name, array in [*arrays.items(), *([] if labels is None else [(LABELS, labels)])]}
    if len(set(counts.values())) > 1:
        raise DataError(f"{path.name}: arrays of different lengths: {counts}; every array needs the same rows")
    return Rows(arrays), labels


def _load(path: Path, inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise NotFound(f"no data at {path}: check the path")
    if path.suffix not in ARRAYS:
        return _numbers_in_order(path, inputs)
    try:
        _refuse_bomb(path)
        loaded = np.load(path, allow_pickle=False)
        return {SINGLE: loaded} if path.suffix == ".npy" else {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        if "Object arrays" in str(error) or path.read_bytes()[:1] == PICKLE:
            raise DataError(
                f"{path.name} holds Python objects (a pickle, which can run code): save numbers or plain text instead"
            ) from error
        raise DataError(
            f"{path.name} is no {path.suffix} file that can be read: {error}; write it with numpy.save"
        ) from error


def _refuse_bomb(path: Path) -> None:
    """Refuse an .npz that unpacks to more than a workstation holds."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as packed:
        size = sum(entry.file_size for entry in packed.infolist())
    if size > MOST_BYTES:
        raise DataError(f"{path.name} unpacks to {size:,} bytes, {MOST_BYTES:,} at most are taken: give fewer rows")


def _numbers_in_order(path: Path, inputs: Sequence[TensorSpec]) -> dict[str, np.ndarray]:
    """Return a delimited file as one matrix; a first line that is not all numbers is the header.

    A column called y or target, besides those that the model takes, is the truth.
    """
    if len(inputs) != 1 or len(inputs[0].shape) != 2:
        shapes = ", ".join(f"{spec.name} {_shown(spec.shape)}" for spec in inputs)
        raise DataError(f"{path.name}: a table cannot feed a model that takes {shapes}; write an .npz with those names")
    first = read_records(path).rows[0]
    heads = pd.to_numeric(pd.Series(first, dtype=object), errors="coerce")
    table = read_table(path, Read(header=bool(heads.isna().any())))
    names = [str(name) for name in table.frame.columns]
    truth = next((name for name in (LABELS, "target") if name in names), None)
    if truth is None or len(names) == inputs[0].shape[1]:
        return {SINGLE: np.column_stack([columns.numbers(table, name) for name in names])}
    marks, bad = columns.as_numbers(table, truth)
    labels = np.array(table.frame[truth].tolist(), dtype=str) if bad.any() else marks
    names.remove(truth)
    return {SINGLE: np.column_stack([columns.numbers(table, name) for name in names]), LABELS: labels}


def _fitted(array: np.ndarray, spec: TensorSpec, name: str) -> np.ndarray:
    fixed = zip(array.shape[1:], spec.shape[1:], strict=False)
    if array.ndim != len(spec.shape) or any(have != want for have, want in fixed if want != -1):
        raise DataError(
            f"{name}: {spec.name} has shape {_shown(array.shape)}, the model takes {_shown(spec.shape)}; "
            f"reshape it, the rows first"
        )
    if spec.dtype == "string":
        return array.astype(str).astype(object)
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name}: {spec.name} holds {array.dtype}, the model takes {spec.dtype}; convert it")
    if (
        array.dtype.kind == "f"
        and spec.dtype.startswith(("int", "uint"))
        and not np.array_equal(array, np.round(array))
    ):
        raise DataError(f"{name}: {spec.name} holds fractions, the model takes {spec.dtype}; round it")
    fitted = array.astype(spec.dtype)
    if array.dtype.kind == "f" and np.isinf(fitted).any():
        raise DataError(f"{name}: {spec.name} holds {int(np.isinf(fitted).sum())} infinite values; correct them")
    return fitted


def _table(path: Path, features: Sequence[Feature]) -> Table:
    """Return the table at `path`, its columns named by the features when it has no header."""
    if path.name.endswith((".csv", ".tsv", ".txt", ".gz")) and path.is_file():
        names = [feature.name for feature in features]
        first = [cell.strip() for cell in read_records(path).rows[0]]
        if not set(first) & set(names) and len(first) == len(names) and _is_a_row(first, features):
            return read_table(path, Read(header=False, names=names))
    elif path.is_file():
        raise DataError(
            f"{path.name}: no reader for {path.suffix or 'a name without a suffix'}; use {', '.join(SUFFIXES)}"
        )
    return read_table(path)


def _is_a_row(cells: Sequence[str], features: Sequence[Feature]) -> bool:
    numbers = pd.to_numeric(pd.Series(list(cells), dtype=object).replace("", "nan"), errors="coerce")
    pairs = zip(cells, numbers, features, strict=True)
    return all(
        f.kind == CATEGORICAL or not pd.isna(value) or cell in ("", "nan", "NaN", "NA") for cell, value, f in pairs
    )


def _shown(shape: Sequence[int]) -> str:
    return f"({', '.join('n' if size == -1 else str(size) for size in shape)})"


SUFFIXES = (*(suffix for suffix in SOURCES if suffix.startswith(".")), *ARRAYS)
