"""Sums by class: how many rows, where their means are, and second moments about those means."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgeml.errors import DataError
from edgeml.tasks.program import LEFT_OUT, Columns, Program
from edgeml.tasks.statistics.moments import enough, left_out
from edgeml.tasks.study import Answer, Question, Sums

Next = Question | Answer


@dataclass(frozen=True)
class Groups:
    """Rows by class: `counts` (K,) and `means` (K, d) of the classes that some device has seen, at indices `seen`."""

    seen: np.ndarray
    counts: np.ndarray
    means: np.ndarray
    left_out: float
    columns: Columns

    @property
    def rows(self) -> float:
        return float(self.counts.sum())

    @property
    def overall(self) -> np.ndarray:
        """Return the mean of all rows, (d,)."""
        return np.asarray(self.counts @ self.means / self.rows)

    def notes(self) -> tuple[str, ...]:
        """Return what to say of rows left out and of classes that nobody has."""
        unseen = [str(name) for index, name in enumerate(self.columns.classes) if index not in self.seen]
        nobody = (f"no device has rows of {', '.join(unseen)}: the model knows the other classes only",)
        return left_out(self.left_out) + (nobody if unseen else ())

    def classes(self) -> np.ndarray:
        """Return the classes that were seen, as scikit-learn's `classes_`."""
        return np.asarray(np.array(self.columns.classes)[self.seen])


def groups(columns: Columns, source: str, *, least: int = 2, then: Callable[[Groups], Next]) -> Question:
    """Return a question for rows and sums by class; `then` gets at least `least` classes, or DataError is raised."""
    d, k = columns.features, len(columns.classes)
    p = Program(columns, target="classes")
    hot = p.one_hot(p.y, k)
    p.output("counts", p.total(hot), (k,))
    p.output("sum.x", p.gram(hot, p.x), (k, d))

    def finish(sums: Sums) -> Next:
        enough(sums, least=1)
        seen = np.flatnonzero(sums["counts"])
        if len(seen) < least:
            raise DataError(f"all rows of all devices are of {columns.classes[seen[0]]!r}: there is nothing to tell")
        counts = sums["counts"][seen]
        means = sums["sum.x"][seen] / counts[:, np.newaxis]
        return then(Groups(seen, counts, means, float(sums[LEFT_OUT]), columns))

    return Question(p.task("statistics", source), finish)


def about_means(p: Program, known: Groups) -> str:
    """Return the rows minus the mean of their class, the parameter `origin`; let sums by class tell what is left."""
    k, d = len(known.columns.classes), known.columns.features
    origin = np.zeros((k, d))
    origin[known.seen] = known.means
    x = p.e.op("Sub", p.x, p.e.op("Gather", p.parameter("origin", origin), p.y, axis=0))
    hot = p.one_hot(p.y, k)
    p.output("counts", p.total(hot), (k,))
    p.output("sum.x", p.gram(hot, x), (k, d))
    return x


def moved(known: Groups, sums: Sums) -> tuple[Groups, np.ndarray]:
    """Return counts and means of the rows that answered about `known.means`, and how far they are from these (K, d).

    They may be other rows than those that the means came from: the second round alone decides.
    """
    counts = sums["counts"][known.seen]
    if not counts.all():
        raise DataError("a class whose rows were counted has none any more: the devices changed between two rounds")
    shift = sums["sum.x"][known.seen] / counts[:, np.newaxis]
    return replace(known, counts=counts, means=known.means + shift, left_out=float(sums[LEFT_OUT])), shift
