"""The question: how many rows are in each agreed bin, by number, text and answer of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgeml import graph
from edgeml.artifacts import OnnxModel, Task
from edgeml.tasks.binning import emit_bins, emit_counts, padded
from edgeml.tasks.model_program import ModelProgram
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, PROBABILITIES, SCORES

WIDE = 256  # numbers of one input: of more, a row's mean and standard deviation stand for it
NUMBERS, TEXTS, ANSWERS = "numbers.", "texts.", "answers"


@dataclass(frozen=True)
class Layout:
    """The bins: sorted edges of every column by numeric input, the categories of every column by text input; `wide`
    says how many numbers a row of those inputs has that are counted by mean and standard deviation."""

    edges: Mapping[str, Sequence[np.ndarray]]
    categories: Mapping[str, Sequence[tuple[str, ...]]]
    wide: Mapping[str, int]


def columns_of(array: np.ndarray) -> np.ndarray:
    """Return float64 (n, columns): the numbers of each row, or their mean and standard deviation if they are many."""
    flat = array.reshape(len(array), -1).astype(np.float64)
    return np.stack([flat.mean(axis=1), flat.std(axis=1)], axis=1) if flat.shape[1] > WIDE else flat


def count_task(model: OnnxModel, layout: Layout) -> Task:
    """Return the task that counts; the edges are parameters, the categories are in the graph."""
    p = ModelProgram([model])
    for name in layout.edges:
        numbers = p.answers[0][PREDICTION] if name == PREDICTION else p.rows[name]
        _count_numbers(p, name, numbers=numbers, layout=layout)
    for name, columns in layout.categories.items():
        for index, values in enumerate(columns):
            _count_texts(p, f"{TEXTS}{name}.{index}", texts=p.rows[name], column=(index, values))
    if LABEL in p.answers[0]:
        classes, e = classes_of(model), p.e
        label = e.op("Cast", e.op("Reshape", p.answers[0][LABEL], e.vector(-1)), to=TensorProto.INT64)
        p.output(ANSWERS, e.op("ReduceSum", p.one_hot(label, classes), e.vector(0), keepdims=0), (classes,))
    return p.task("drift")


def classes_of(model: OnnxModel) -> int:
    """Return how many classes the labels of `model` are of."""
    shapes = {spec.name: spec.shape for spec in graph.outputs(model)}
    found = next((shapes[name][-1] for name in (PROBABILITIES, SCORES) if name in shapes), 0)
    return max(found, len(model.classes), 2)


def _count_numbers(p: ModelProgram, name: str, *, numbers: str, layout: Layout) -> None:
    edges, width = padded(layout.edges[name]), layout.wide.get(name, 0)
    e, (features, count) = p.e, edges.shape
    flat = e.op("Reshape", p.float64(numbers), e.vector(0, -1))
    if width:
        flat = _spread(p, flat, width)
    bins = emit_bins(e, flat, p.parameter(f"edges.{name}", edges), shape=(features, count))
    p.output(NUMBERS + name, emit_counts(e, bins, features=features, size=count + 2), (features, count + 2))


def _spread(p: ModelProgram, flat: str, width: int) -> str:
    """Return (n, 2): the mean and the standard deviation of each row."""
    e, size = p.e, p.e.real(float(width))
    mean = e.op("Div", e.op("ReduceSum", flat, e.vector(1), keepdims=1), size)
    off = e.op("Sub", flat, mean)
    variance = e.op("Div", e.op("ReduceSum", e.op("Mul", off, off), e.vector(1), keepdims=1), size)
    return e.op("Concat", mean, e.op("Sqrt", variance), axis=1)


def _count_texts(p: ModelProgram, name: str, *, texts: str, column: tuple[int, Sequence[str]]) -> None:
    e, (index, values) = p.e, column
    code = p.encode(e.op("Gather", texts, e.number(index), axis=1), (*values, ""))
    size = len(values) + 2  # missing, and any other
    p.output(name, e.op("ReduceSum", p.one_hot(code, size), e.vector(0), keepdims=0), (size,))
