"""The rows that a user gives with a finished model, held to what it takes before any gate works with them.

    --calibration, --labels -> rows_given -> Given

A wrong row would not fail: it would set the ranges of an 8-bit variant wrong, and the loss would look like the
recipe's fault. So each file is refused in one line with the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeml import data, verify
from edgeml.artifacts import ModelTask, OnnxModel, Rows
from edgeml.errors import DataError
from edgeml.graph import load, random_rows
from edgeml.graph.proto import walk
from edgeml.graph.tensors import inputs, outputs
from edgeml.quantize import RECIPES
from edgeml_runtime.wire import DeviceError
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, PROBABILITIES, SCORES, Feature, TensorSpec

TRIED = 512  # rows that the model answers while the files are looked at
WIDER = 20.0  # times; pixels of 0 to 255 against 0 to 1 are 255 times wider
TAIL = 1.0  # percent of the values at each end that are no part of a range
MISSING = frozenset(  # operators that take a missing value for what it is
    {"Imputer", "IsNaN", "TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor", "LabelEncoder"}
)


@dataclass(frozen=True, kw_only=True)
class Given:
    """The task of a model, its classes, and the rows that were given with it."""

    task: ModelTask
    classes: tuple[str, ...]
    calibration: Rows | None
    labelled: Rows | None


@dataclass(frozen=True, kw_only=True)
class _Taken:
    """What is known of a model that has no manifest yet."""

    features: tuple[Feature, ...]
    inputs: tuple[TensorSpec, ...]
    classes: tuple[str, ...]
    task: ModelTask
    target: str = "target"


def rows_given(model: OnnxModel, calibration: Path | None, labels: Path | None, *, precisions: Sequence[str]) -> Given:
    """Return the rows in the files `calibration` and `labels` as `model` takes them.

    Raises NotFound or DataError, with the numbers, for rows of the wrong shape, type, range or count.
    """
    task = _task(model)
    takes = _Taken(features=model.features, inputs=inputs(model), classes=_classes(model, task), task=task)
    found = {path: data.read_rows(path, takes) for path in (calibration, labels) if path is not None}
    for path, rows in found.items():
        _try(model, rows, path.name, task=task)
    if calibration is not None:
        _count(len(found[calibration]), calibration.name, precisions)
    if labels is not None and found[labels].target is None:
        raise DataError(f"{labels.name} has no truth: add an array y, or a column y or target, or use --calibration")
    if calibration is not None and labels is not None:
        _compare(found[calibration], found[labels], (calibration.name, labels.name))
    return Given(
        task=task,
        classes=model.classes,
        calibration=found.get(calibration) if calibration else None,
        labelled=found.get(labels) if labels else None,
    )


def _task(model: OnnxModel) -> ModelTask:
    names = {spec.name for spec in outputs(model)}
    scored = LABEL in names and names & {PROBABILITIES, SCORES}
    return "classification" if scored else "regression" if PREDICTION in names else "tensor"


def _classes(model: OnnxModel, task: ModelTask) -> tuple[str, ...]:
    """Return the names of the classes; their numbers where the model knows no names."""
    if model.classes or task != "classification":
        return model.classes
    scores = next(spec for spec in outputs(model) if spec.name in (PROBABILITIES, SCORES))
    width = scores.shape[-1] if len(scores.shape) > 1 else 1
    if width < 1:  # an open axis: a row tells
        width = verify.run_answers(model, Rows(random_rows(model, 1)), task).scores.shape[1]
    return tuple(map(str, range(2 if scores.name == SCORES and width == 1 else width)))


def _try(model: OnnxModel, rows: Rows, name: str, *, task: ModelTask) -> None:
    """Refuse rows that the model does not run on, or answers NaN to, or that miss values it has no place for."""
    if not len(rows):
        raise DataError(f"{name} has 0 rows: give at least one")
    some = rows.take(slice(TRIED))
    missing = _missing(some)
    unfilled = DataError(
        f"{name}: {int(missing.sum())} of {len(some)} rows have NaN (the first is row {np.argmax(missing)}), "
        f"and nothing in the model fills a missing value: leave those rows out, or fill them"
    )
    if missing.any() and not any(node.op_type in MISSING for node in walk(load(model).graph)):
        raise unfilled
    try:
        scores = verify.run_answers(model, Rows(some.inputs), task).scores
    except DeviceError as error:
        reason = " ".join(str(error).split())[:240]
        raise DataError(f"{name}: the model does not run on these rows: {reason}") from error
    bad = ~np.isfinite(scores).all(axis=1)
    if (bad & missing).any():
        raise unfilled
    if bad.any():
        raise DataError(
            f"{name}: the model answers NaN or infinity to {int(bad.sum())} of {len(some)} rows (first row "
            f"{np.argmax(bad)}); their values go {_spans(some.take(bad))}: are they scaled as the model was trained?"
        )


def _missing(rows: Rows) -> np.ndarray:
    found = np.zeros(len(rows), dtype=bool)
    for array in rows.inputs.values():
        if array.dtype.kind == "f":
            found |= np.isnan(array.reshape(len(array), -1)).any(axis=1)
    return found


def _count(rows: int, name: str, precisions: Sequence[str]) -> None:
    wanted = [recipe for recipe in RECIPES.values() if {recipe.name, recipe.precision, "auto"} & set(precisions)]
    most = max(wanted, key=lambda recipe: recipe.min_rows, default=None)
    if most is not None and rows < most.min_rows:
        raise DataError(
            f"{name} has {rows} rows, {most.name} needs {most.min_rows} to know the ranges: give more rows of the "
            f"training set, or ask for another --precision"
        )


def _compare(calibration: Rows, labelled: Rows, names: tuple[str, str]) -> None:
    """Refuse two files whose values are on another scale: one of them was not prepared as the model needs."""
    for key, array in calibration.inputs.items():
        other = labelled.inputs[key]
        if array.dtype.kind != "f":
            continue
        (low, high), (lowest, highest) = _range(array), _range(other)
        spans = max(high - low, 1e-12), max(highest - lowest, 1e-12)
        if max(spans) > WIDER * min(spans) and min(spans) > 1e-9:
            raise DataError(
                f"{names[0]}: {key} goes from {low:.4g} to {high:.4g}, {names[1]} from {lowest:.4g} to {highest:.4g}, "
                f"{max(spans) / min(spans):.0f} times apart: scale both as the model was trained"
            )


def _spans(rows: Rows) -> str:
    floats = [(name, _range(array)) for name, array in rows.inputs.items() if array.dtype.kind == "f"]
    return ", ".join(f"from {low:.4g} to {high:.4g} in {name}" for name, (low, high) in floats) or "far"


def _range(array: np.ndarray) -> tuple[float, float]:
    values = array[np.isfinite(array)].astype(np.float64)
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values, [TAIL, 100 - TAIL])
    return float(low), float(high)
