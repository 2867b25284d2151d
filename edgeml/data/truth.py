"""The `y` of a file as the truth that a model is judged by, or one line that says why it is none.

array + what the model takes -> truth_of -> int64 class indices, float32 values, or the numbers as they are
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from edgeml.artifacts import ModelTask
from edgeml.data.target import look_up
from edgeml.errors import DataError
from edgeml_runtime.wire.manifest import Feature, TensorSpec


class Takes(Protocol):
    """What a model takes and answers: a manifest, or as much as is known of a model that has none yet."""

    @property
    def features(self) -> Sequence[Feature]: ...
    @property
    def inputs(self) -> Sequence[TensorSpec]: ...
    @property
    def classes(self) -> Sequence[str]: ...
    @property
    def task(self) -> ModelTask: ...
    @property
    def target(self) -> str: ...


def truth_of(labels: np.ndarray, takes: Takes, name: str) -> np.ndarray:
    """Return `y` of the file called `name` as a target: class names or class indices become indices.

    Raises DataError, with the numbers, for labels of the wrong shape, type or range.
    """
    column = labels.reshape(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if takes.task == "tensor":
        return _numbers(column, name) if column.dtype.kind not in "biu" else column
    if column.ndim != 1:
        hint = "give the class of each row, not a column a class" if takes.task == "classification" else "one is taken"
        raise DataError(f"{name}: y has shape {_shown(labels)}, one value a row is needed; {hint}")
    if takes.task == "regression":
        return _numbers(column, name).astype(np.float32)
    return _indices(column, takes.classes, name)


def _indices(labels: np.ndarray, classes: Sequence[str], name: str) -> np.ndarray:
    """Return class indices: labels that are names are looked up, whole numbers that are no names are indices."""
    if labels.dtype.kind == "f" and (np.isfinite(labels) & (labels == np.round(labels))).all():
        labels = labels.astype(np.int64)
    spelled = np.array([str(label) for label in labels], dtype=object)
    if labels.dtype.kind not in "iub" or set(spelled) <= set(classes):
        if labels.dtype.kind == "f":
            bad = ~(np.isfinite(labels) & (labels == np.round(labels)))
            raise DataError(
                f"{name}: y[{int(np.argmax(bad))}] is {labels[bad][0]:g}, which is no class "
                f"({int(bad.sum())} of {len(labels)} such values): classes are names or whole numbers"
            )
        return look_up(spelled, classes, where=lambda row: f"{name}: y[{row}]")
    outside = (labels < 0) | (labels >= len(classes))
    if outside.any():
        raise DataError(
            f"{name}: y[{int(np.argmax(outside))}] is {int(labels[outside][0])}, the model has {len(classes)} classes, "
            f"0 to {len(classes) - 1} ({int(outside.sum())} of {len(labels)} such values)"
        )
    return labels.astype(np.int64)


def _numbers(labels: np.ndarray, name: str) -> np.ndarray:
    if labels.dtype.kind not in "biuf":
        raise DataError(f"{name}: y holds {labels.dtype}, numbers are needed: the model knows no class names")
    bad = ~np.isfinite(labels.astype(np.float64))
    if bad.any():
        raise DataError(f"{name}: y has {int(bad.sum())} of {labels.size} values NaN or infinite: leave those rows out")
    return labels


def _shown(labels: np.ndarray) -> str:
    return f"({', '.join(map(str, labels.shape))})"
