"""What a model's rows and answers looked like when it was made: edges, categories, counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml import graph
from edgeml.artifacts import OnnxModel, Rows
from edgeml.errors import DataError
from edgeml.tasks.binning import float32_down
from edgeml.tasks.drift.question import Layout, columns_of, count_task
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import PREDICTION

BINS, CATEGORIES = 16, 32  # equal counts in each bin; the most frequent categories have counts of their own


@dataclass(frozen=True)
class Reference:
    """The agreed bins, and how many reference rows are in each of them, as `drift` asks the fleet for them."""

    model: OnnxModel
    layout: Layout
    counts: Mapping[str, np.ndarray] = field(default_factory=dict)


def reference(model: OnnxModel, rows: Rows, *, bins: int = BINS) -> Reference:
    """Return what `rows`, those a model was trained or judged on, look like in `bins` of equal counts.

    A missing number or text has a bin of its own. Raises DataError when there are no rows.
    """
    if not len(rows):
        raise DataError("no reference rows: pass those that the model was trained on")
    edges: dict[str, list[np.ndarray]] = {}
    wide: dict[str, int] = {}
    categories: dict[str, list[tuple[str, ...]]] = {}
    for spec in graph.inputs(model):
        array = rows.inputs[spec.name]
        if spec.dtype == "string":
            categories[spec.name] = [_frequent(column) for column in array.reshape(len(rows), -1).T]
        else:
            columns = columns_of(array)
            edges[spec.name] = [_equal(column, bins) for column in columns.T]
            if columns.size < array.size:
                wide[spec.name] = array.size // len(rows)
    answers = Session(model.data).run(dict(rows.inputs))
    if PREDICTION in answers:
        edges[PREDICTION] = [_equal(answers[PREDICTION].reshape(-1), bins)]
    layout = Layout(edges, categories, wide)
    task = count_task(model, layout)
    return Reference(model, layout, Session(task.data).run({**task.parameters, **rows.inputs}))


def _equal(column: np.ndarray, bins: int) -> np.ndarray:
    known = column[np.isfinite(column)].astype(np.float64)
    if not len(known):
        return np.zeros(1)
    values = np.unique(known)
    if len(values) <= bins:
        return float32_down((values[1:] + values[:-1]) / 2) if len(values) > 1 else values
    return float32_down(np.quantile(known, np.arange(1, bins) / bins))


def _frequent(column: np.ndarray) -> tuple[str, ...]:
    counts = Counter(str(value) for value in column if value != "")
    return tuple(
        sorted(value for value, _ in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:CATEGORIES])
    )
