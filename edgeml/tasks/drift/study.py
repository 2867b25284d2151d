"""From counts to what moved: every column of the inputs and the model's answers against the reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from edgeml.errors import DataError
from edgeml.tasks.drift.distances import Distances, distances
from edgeml.tasks.drift.question import ANSWERS, NUMBERS, TEXTS, count_task
from edgeml.tasks.drift.reference import Reference
from edgeml.tasks.program import ROWS
from edgeml.tasks.study import Answer, Inquiry, Question, Sums
from edgeml_runtime.wire.manifest import CATEGORICAL, NUMERIC, PREDICTION


@dataclass(frozen=True)
class Drift:
    """What a fleet's rows look like beside the reference; `features` in the order of the model's inputs."""

    rows: int
    features: Mapping[str, Distances]
    answers: Distances | None = None  # of the labels of a classifier, or the predictions of a regressor

    @property
    def drifted(self) -> tuple[str, ...]:
        """Return the names of the features that moved, the farthest first."""
        moved = [name for name, found in self.features.items() if found.drifted]
        return tuple(sorted(moved, key=lambda name: -self.features[name].psi))


def drift(reference: Reference) -> Inquiry:
    """Return the study of how a fleet's rows differ from `reference`; devices hold the model's inputs, no target.

    The result is a `Drift`; raises DataError from `take` when no device has a row.
    """
    return Inquiry(
        "drift", Question(count_task(reference.model, reference.layout), lambda sums: _judge(reference, sums))
    )


def _judge(reference: Reference, sums: Sums) -> Answer:
    if sums[ROWS] < 1:
        raise DataError("no device has a row: nothing to compare with the reference")
    columns = list(_columns(reference, sums))
    found = {name: distances(before, now, ordered=ordered, of=len(columns)) for name, before, now, ordered in columns}
    answers = found.pop(ANSWERS, None)
    return Answer(Drift(int(sums[ROWS]), found, answers))


def _columns(reference: Reference, sums: Sums) -> Iterator[tuple[str, np.ndarray, np.ndarray, bool]]:
    """Yield name, reference counts, counts and whether bins have an order, of every feature."""
    for key, before in reference.counts.items():
        now = sums[key]
        before = np.asarray(before, np.float64)
        if key == ANSWERS or key == NUMBERS + PREDICTION:
            yield ANSWERS, before.reshape(-1), now.reshape(-1), key != ANSWERS
        elif key.startswith(NUMBERS):
            for index in range(len(before)):
                yield _name(reference, key.removeprefix(NUMBERS), index), before[index], now[index], True
        elif key.startswith(TEXTS):
            text, _, index_ = key.removeprefix(TEXTS).rpartition(".")
            yield _name(reference, text, int(index_)), before, now, False


def _name(reference: Reference, source: str, index: int) -> str:
    """Return the column's own name where the model has it."""
    kind = {NUMERIC: "numeric", CATEGORICAL: "categorical"}.get(source)
    named = [feature.name for feature in reference.model.features if feature.kind == kind]
    return named[index] if index < len(named) else f"{source}[{index}]"
