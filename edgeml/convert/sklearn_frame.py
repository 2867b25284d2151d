"""Estimators fitted on a frame with named columns: their graph over edgeml's two inputs of a table.

    fitted pipeline that starts with a ColumnTransformer -> frame_of -> Frame -> over_two_inputs -> ModelProto

Only columns that are used become features: numbers in `numeric`, texts in `categorical`, each in the frame's order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pandas as pd
from onnx import TensorProto, helper, numpy_helper
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import Pipeline

from edgeml.errors import UnsupportedModel
from edgeml_runtime.wire.manifest import CATEGORICAL, NUMERIC, Feature

UNSEEN = "never seen before"
TYPES = {NUMERIC: TensorProto.FLOAT, CATEGORICAL: TensorProto.STRING}
ROWS = "rows"


@dataclass(frozen=True)
class Column:
    """A column that is used: its kind, and values it is known to take."""

    name: str
    kind: str  # NUMERIC or CATEGORICAL
    known: tuple[Any, ...]
    takes_missing: bool
    takes_unseen: bool


@dataclass(frozen=True)
class Frame:
    """The columns of a frame in its order; `unused` ones are dropped by the estimator."""

    columns: tuple[Column, ...]
    unused: tuple[str, ...]

    def features(self) -> tuple[Feature, ...]:
        """Return the columns as features, the numbers first."""
        kinds = {NUMERIC: "numeric", CATEGORICAL: "categorical"}
        return tuple(Feature(name=c.name, kind=kinds[kind]) for kind in kinds for c in self.of(kind))  # type: ignore[arg-type]

    def of(self, kind: str) -> list[Column]:
        """Return the columns of one kind."""
        return [column for column in self.columns if column.kind == kind]


def frame_of(estimator: Any) -> Frame | None:
    """Return the frame that `estimator` was fitted on, or None when it takes a matrix."""
    first = estimator.steps[0][1] if isinstance(estimator, Pipeline) else estimator
    if not isinstance(first, ColumnTransformer) or not hasattr(first, "feature_names_in_"):
        return None
    names = [str(name) for name in first.feature_names_in_]
    found: dict[str, Column] = {}
    for _, transformer, chosen in first.transformers_:
        if isinstance(transformer, str) and transformer == "drop":
            continue
        for position, name in enumerate(_names(chosen, names)):
            if name in found:
                raise UnsupportedModel(f"column {name!r} goes through two transformers: give it to one, or copy it")
            found[name] = _column(name, transformer, position)
    return Frame(tuple(found[name] for name in names if name in found), tuple(n for n in names if n not in found))


def _names(chosen: Any, names: Sequence[str]) -> list[str]:
    if isinstance(chosen, str):
        return [chosen]
    given = list(np.atleast_1d(chosen))
    if all(isinstance(one, bool | np.bool_) for one in given):
        given = list(np.flatnonzero(given))
    return [one if isinstance(one, str) else names[int(one)] for one in given]


def _column(name: str, transformer: Any, position: int) -> Column:
    """Return what the steps of `transformer` know of its column at `position`."""
    steps = [step for _, step in transformer.steps] if isinstance(transformer, Pipeline) else [transformer]
    known: list[Any] = []
    missing = unseen = True
    for step in steps:
        if hasattr(step, "categories_"):
            known += [one for one in step.categories_[position] if not (isinstance(one, float) and np.isnan(one))]
            unseen = getattr(step, "handle_unknown", "ignore") != "error"
        elif hasattr(step, "statistics_"):
            known.append(step.statistics_[position])
        elif hasattr(step, "center_") or hasattr(step, "mean_"):
            centre = step.center_ if hasattr(step, "center_") else step.mean_
            spread = 1.0 if getattr(step, "scale_", None) is None else step.scale_[position]
            middle = 0.0 if centre is None else centre[position]
            known += [middle - spread, middle, middle + 2 * spread]
    if not any(hasattr(step, "statistics_") for step in steps):
        missing = False
    text = any(isinstance(one, str) for one in known)
    values = tuple(one for one in known if isinstance(one, str) == text) or (0.0, 1.0)
    return Column(name, CATEGORICAL if text else NUMERIC, values, missing, unseen)


def over_two_inputs(frame: Frame, make: Callable[[list[tuple[str, str]]], onnx.ModelProto]) -> onnx.ModelProto:
    """Return the graph that `make` gives for one input per column, over `numeric` and `categorical` instead.

    `make` takes (name, kind) of every column of the frame, unused ones too, as skl2onnx asks for.
    """
    kinds = {column.name: column.kind for column in frame.columns}
    everything = [*kinds.items(), *((name, NUMERIC) for name in frame.unused)]
    proto = make(everything)
    del proto.graph.input[:]
    front: list[onnx.NodeProto] = []
    for kind in (NUMERIC, CATEGORICAL):
        columns = [column.name for column in frame.of(kind)]
        if not columns:
            continue
        proto.graph.input.append(helper.make_tensor_value_info(kind, TYPES[kind], [ROWS, len(columns)]))
        for index, name in enumerate(columns):
            at = f"{kind}.{index}"
            proto.graph.initializer.append(numpy_helper.from_array(np.array([index], np.int64), at))
            front.append(helper.make_node("Gather", [kind, at], [name], axis=1))
    body = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([*front, *body])
    return proto


def random_frame(frame: Frame, count: int) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Return `count` seeded rows twice: as the frame that scikit-learn takes, and as the inputs of the graph.

    Known values, unseen ones and missing ones where the estimator takes them.
    """
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {name: np.zeros(count, np.float32) for name in frame.unused}
    stacked: dict[str, list[np.ndarray]] = {NUMERIC: [], CATEGORICAL: []}
    for column in frame.columns:
        values = rng.choice(np.array(column.known, dtype=object), count)
        gone = (rng.random(count) < 0.1) & column.takes_missing
        if column.kind == NUMERIC:
            noise = rng.normal(0, 1, count) if column.takes_unseen and len(column.known) else 0.0
            numbers = (values.astype(np.float64) + noise * np.std(np.array(column.known, float))).astype(np.float32)
            numbers[gone] = np.nan
            given[column.name] = numbers
            stacked[NUMERIC].append(numbers)
            continue
        if column.takes_unseen:
            values[rng.random(count) < 0.1] = UNSEEN
        stacked[CATEGORICAL].append(np.where(gone, "", values).astype(object))
        given[column.name] = np.where(gone, np.nan, values)
    names = [*(c.name for c in frame.columns), *frame.unused]
    feeds = {kind: np.stack(arrays, axis=1) for kind, arrays in stacked.items() if arrays}
    return pd.DataFrame({name: given[name] for name in names}), feeds
