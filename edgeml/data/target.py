"""The column to predict: which task it makes, its classes, its values.

Table -> read_target -> Target        Table, classes -> indices_of -> class index of every row
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeml.artifacts import ModelTask
from edgeml.data import columns
from edgeml.data.table import Table
from edgeml.errors import DataError

FEW_INTEGERS = 20  # up to so many different whole numbers are classes
MAX_CLASSES = 1000
FREE_CLASSES = 50  # more classes than this, most of them seen once, are not classes
RARE = 0.2  # below this share of the rarer class, accuracy says little


@dataclass(frozen=True)
class Target:
    """The task, the class names by index, and int64 indices or float32 values."""

    task: ModelTask
    classes: tuple[str, ...]
    values: np.ndarray


def read_target(table: Table, name: str, *, task: ModelTask | None = None) -> Target:
    """Return column `name` as a target; the task is guessed when None.

    Raises DataError for a missing value, for one class only, and for a task that the values cannot be.
    """
    _refuse_missing(table, name)
    values, bad = columns.as_numbers(table, name)
    text = bool(bad.any())
    if text and len(bad) >= 10 and bad.sum() <= max(1.0, (1 - columns.MOSTLY_NUMBERS) * len(bad)):
        columns.numbers(table, name)  # a few texts among numbers: says which
    few = not text and bool(np.all(values == np.round(values))) and len(np.unique(values)) <= FEW_INTEGERS
    chosen: ModelTask = task or ("classification" if text or few else "regression")
    if chosen == "classification":
        labels = columns.texts(table, name) if text else np.array([_plain(value) for value in values], dtype=object)
        return _classes(table, name, labels, numeric=not text)
    value = columns.numbers(table, name).astype(np.float32)
    if len(np.unique(value)) == 1:
        raise DataError(f"{table.name}: the target {name!r} is {value[0]:g} in every row: there is nothing to learn")
    return Target("regression", (), value)


def values_of(table: Table, name: str) -> np.ndarray:
    """Return a regression's target as float32; raise DataError where a value is missing or no number."""
    _refuse_missing(table, name)
    return columns.numbers(table, name).astype(np.float32)


def indices_of(table: Table, name: str, classes: Sequence[str]) -> np.ndarray:
    """Return the class index of every row; raise DataError at the first class that is none of `classes`."""
    _refuse_missing(table, name)
    values, bad = columns.as_numbers(table, name)
    labels = columns.texts(table, name) if bad.any() else np.array([_plain(value) for value in values], dtype=object)
    return look_up(labels, classes, where=lambda row: f"{table.where(row)}: column {name!r}")


def look_up(labels: np.ndarray, classes: Sequence[str], *, where: Callable[[int], str]) -> np.ndarray:
    """Return the index in `classes` of every label."""
    index = {label: i for i, label in enumerate(classes)}
    for row, label in enumerate(labels):
        if label not in index:
            raise DataError(f"{where(row)} holds {label!r}, no class of this model: it knows {', '.join(classes[:12])}")
    return np.array([index[label] for label in labels], dtype=np.int64)


def metric_for(target: Target) -> str:
    """Return the metric that judges this target best when nobody chose one."""
    if target.task == "regression":
        return "rmse"
    shares = np.bincount(target.values) / len(target.values)
    return "average_precision" if len(shares) == 2 and shares.min() < RARE else "accuracy"


def _classes(table: Table, name: str, labels: np.ndarray, *, numeric: bool) -> Target:
    names = sorted(set(labels), key=float if numeric else None)
    if len(names) < 2:
        raise DataError(
            f"{table.name}: the target {name!r} has one class only ({names[0]!r} in all {len(labels)} rows): "
            f"add rows of another class, or choose another target"
        )
    if len(names) > MAX_CLASSES or (len(names) > FREE_CLASSES and len(names) > len(labels) / 2):
        raise DataError(
            f"{table.name}: the target {name!r} has {len(names)} classes in {len(labels)} rows: too many to learn; "
            f"set task to regression, or choose another target"
        )
    index = {label: i for i, label in enumerate(names)}
    return Target("classification", tuple(names), np.array([index[label] for label in labels], dtype=np.int64))


def _refuse_missing(table: Table, name: str) -> None:
    values, bad = columns.as_numbers(table, name)
    missing = np.isnan(values) & ~bad
    if missing.any():
        raise DataError(
            f"{table.name}: {int(missing.sum())} of {len(table)} rows have no value of the target {name!r}, "
            f"the first at {table.where(int(np.argmax(missing)))}; fill them in, or delete those rows"
        )


def _plain(value: float) -> str:
    return str(int(value)) if value == round(value) else repr(float(value))
