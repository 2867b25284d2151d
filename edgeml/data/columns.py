"""What a column means: numbers, categories, or nothing to learn from.

    Table -> choose -> (Feature, ...), notes        Table, features -> inputs_of -> the arrays of `Rows`

Kinds are decided once, on the training table; every other table is then read as those kinds or refused.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np
import pandas as pd

from edgeml.data.table import Table
from edgeml.errors import DataError, UserError
from edgeml_runtime.wire.manifest import CATEGORICAL, NUMERIC, Feature

MOSTLY_NUMBERS = 0.95  # a column above this share of numbers is numeric, and its few texts are mistakes
FREE_TEXT_VALUES = 50  # more distinct texts than this, most of them used once, are names or dates, not categories
MAX_CATEGORIES = 1000  # one-hot columns that one category column may become
Kind = Literal["numeric", "categorical"]
ROW_COUNTER = re.compile(r"(^|_| )(id|index|row|no|nr|number|idx)$|^column_1$|[a-z](Id|ID|Number|No)$", re.IGNORECASE)


def choose(table: Table, columns: Sequence[str]) -> tuple[tuple[Feature, ...], list[str]]:
    """Return the features among `columns`, the numeric ones first, and a note for each column left out.

    Raises DataError when a column of numbers holds a few texts, or when no column is left.
    """
    features, notes = [], []
    for name in columns:
        kind, why = _kind(table, name, alone=len(columns) == 1)
        if kind is None:
            notes.append(f"column {name!r} left out: {why}")
        else:
            features.append(Feature(name=name, kind=kind))
    if not features:
        raise DataError(
            f"{table.name}: no column to learn from is left; {'; '.join(notes) or 'only the target is there'}"
        )
    return tuple(sorted(features, key=lambda feature: feature.kind != NUMERIC)), notes


def inputs_of(table: Table, features: Sequence[Feature]) -> tuple[Mapping[str, np.ndarray], list[str]]:
    """Return the input arrays of `features`, and notes on numbers that float32 cannot tell apart.

    Raises DataError for a missing column, a text where a number belongs, or an infinite value.
    """
    require(table, [feature.name for feature in features])
    numeric = [feature.name for feature in features if feature.kind == NUMERIC]
    categorical = [feature.name for feature in features if feature.kind == CATEGORICAL]
    inputs, notes = {}, []
    if numeric:
        wide = np.column_stack([numbers(table, name) for name in numeric])
        inputs[NUMERIC] = np.ascontiguousarray(wide, dtype=np.float32)
        notes = [note for i, name in enumerate(numeric) if (note := _merged(name, wide[:, i], inputs[NUMERIC][:, i]))]
    if categorical:
        inputs[CATEGORICAL] = np.column_stack([texts(table, name) for name in categorical])
    return inputs, notes


def require(table: Table, names: Iterable[str], *, key: str = "", error: type[UserError] = DataError) -> None:
    """Raise `error`, naming what is missing and the nearest name there is, unless every column is in `table`."""
    there = [str(name) for name in table.frame.columns]
    missing = [name for name in names if name not in there]
    if not missing:
        return
    near = difflib.get_close_matches(missing[0], there, n=1)
    hint = (
        f"did you mean {near[0]!r}?" if near else f"it has {', '.join(there[:12])}{', ...' if len(there) > 12 else ''}"
    )
    what = f"no column {missing[0]!r}" if len(missing) == 1 else f"{len(missing)} columns missing: {', '.join(missing)}"
    raise error(f"{key}{': ' if key else ''}{table.name} has {what}; {hint}")


def numbers(table: Table, name: str) -> np.ndarray:
    """Return a column as float64, NaN where missing; raise DataError at the first text or infinite value."""
    values, bad = as_numbers(table, name)
    if bad.any():
        raise DataError(_text_among_numbers(table, name, bad))
    with np.errstate(over="ignore"):
        infinite = np.isinf(values.astype(np.float32))
    if infinite.any():
        row = int(np.argmax(infinite))
        raise DataError(
            f"{table.where(row)}: column {name!r} holds {_cell(table, name, row)}, which is infinite in float32 "
            f"({int(infinite.sum())} such values); correct it, or list it under data.read.na"
        )
    return values


def as_numbers(table: Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a column as float64, and where a cell is neither missing nor a number."""
    column = table.frame[name]
    if column.dtype != object:
        values = column.to_numpy(dtype=np.float64)
        return values, np.zeros(len(values), dtype=bool)
    filled = (column != "").to_numpy()
    text = column.str.replace(table.decimal, ".", regex=False) if table.decimal != "." else column
    values = pd.to_numeric(text.where(filled, None), errors="coerce").to_numpy(dtype=np.float64)
    spelled_nan = text.str.lower().isin(["nan", "+nan", "-nan"]).to_numpy()
    return values, filled & np.isnan(values) & ~spelled_nan


def texts(table: Table, name: str) -> np.ndarray:
    """Return a column as an object array of str, "" where missing."""
    column = table.frame[name]
    if column.dtype == object:
        return column.to_numpy(dtype=object)
    return np.array(["" if pd.isna(value) else str(value) for value in column], dtype=object)


def _kind(table: Table, name: str, *, alone: bool) -> tuple[Kind | None, str]:
    values, bad = as_numbers(table, name)
    filled = int(np.count_nonzero(~np.isnan(values) | bad))
    if not filled:
        return None, "every value is missing"
    if bad.any():
        return _kind_of_text(table, name, bad=bad, filled=filled)
    if not table.fixed and len(np.unique(values[~np.isnan(values)])) == 1:
        return None, f"every value is {_cell(table, name, int(np.argmax(~np.isnan(values))))}"
    if not alone and ROW_COUNTER.search(name) and len(values) > 2 and bool(np.all(np.diff(values) == 1)):
        return None, "it counts the rows"
    return "numeric", ""


def _kind_of_text(table: Table, name: str, *, bad: np.ndarray, filled: int) -> tuple[Kind | None, str]:
    wrong = int(bad.sum())
    if filled >= 10 and wrong <= max(1.0, (1 - MOSTLY_NUMBERS) * filled):
        raise DataError(_text_among_numbers(table, name, bad))
    counts = table.frame[name][table.frame[name] != ""].value_counts()
    if len(counts) > MAX_CATEGORIES or (len(counts) > FREE_TEXT_VALUES and len(counts) > filled / 2):
        return None, f"{len(counts)} different texts in {filled} rows are names or dates, not categories"
    if len(counts) == 1 and filled == len(table):
        return None, f"every value is {counts.index[0]!r}"
    return "categorical", ""


def _text_among_numbers(table: Table, name: str, bad: np.ndarray) -> str:
    row = int(np.argmax(bad))
    more = f" ({int(bad.sum())} such of {len(table)} rows)" if bad.sum() > 1 else ""
    return (
        f"{table.where(row)}: column {name!r} holds {_cell(table, name, row)!r} where numbers are expected{more}; "
        f"correct it, or list it under data.read.na if it means missing"
    )


def _cell(table: Table, name: str, row: int) -> str:
    return str(table.frame[name].iloc[row])[:60]


def _merged(name: str, wide: np.ndarray, narrow: np.ndarray) -> str:
    before, after = len(np.unique(wide)), len(np.unique(narrow))
    return "" if after > 0.99 * before else f"column {name!r}: {before} different values are {after} in float32"
