"""A study: questions whose answers are sums over devices, until the last sum gives the result.

    study.task() -> every device runs it -> the element-wise sum of their outputs -> study.take(sums) -> next study

A study is immutable and knows nothing of devices, rounds or the wire. `take` is pure: a study that took the
same sums asks the same next question, so a server that was restarted replays the sums it has written down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from edgeml.artifacts import Task, TaskKind
from edgeml.errors import DataError, UserError

Sums = Mapping[str, np.ndarray]


class Study(Protocol):
    """What a coordinator needs of anything that is a sum over devices."""

    @property
    def kind(self) -> TaskKind:
        """Return the kind of its tasks."""

    @property
    def done(self) -> bool:
        """Return whether `result` has an answer and no task is left."""

    def task(self) -> Task:
        """Return the next task: a graph whose every output is to be summed over devices, with its parameters."""

    def beside(self, answer: Sums) -> Sums:
        """Return what to add up as well, made of the answer of one device, where single answers are seen at all."""

    def take(self, sums: Sums) -> Study:
        """Return the study after these float64 sums of all outputs of `task`; raise DataError where none can follow."""

    def result(self) -> Any:
        """Return what the study found: for statistics, a fitted scikit-learn estimator."""


@dataclass(frozen=True)
class Answer:
    """The end of a study."""

    value: Any
    notes: tuple[str, ...] = ()  # what the reader of the result should know: rows left out, unseen classes


def _nothing(answer: Sums) -> Sums:
    return {}


@dataclass(frozen=True)
class Question:
    """One round of a study: what to ask, what follows from the sums, and what may be added up beside them."""

    task: Task
    then: Callable[[Sums], Question | Answer]
    beside: Callable[[Sums], Sums] = _nothing  # of one device's answer; `then` must do without


def after(at: Question | Answer, follow: Callable[[Answer], Question | Answer]) -> Question | Answer:
    """Return what asks like `at` and, at its end, goes on with what `follow` makes of the answer."""
    if isinstance(at, Answer):
        return follow(at)
    return Question(at.task, lambda sums: after(at.then(sums), follow), at.beside)


@dataclass(frozen=True)
class Inquiry:
    """The `Study` that asks `at` and goes where its sums lead."""

    kind: TaskKind
    at: Question | Answer
    rounds: int = 0  # taken so far

    @property
    def done(self) -> bool:
        return isinstance(self.at, Answer)

    def task(self) -> Task:
        """Return the next task; raise UserError after the last."""
        if isinstance(self.at, Answer):
            raise UserError(f"the study ended after {self.rounds} rounds: it has a result and no task")
        return self.at.task

    def beside(self, answer: Sums) -> Sums:
        """Return what to add up as well, made of the answer of one device, where single answers are seen at all."""
        return {} if isinstance(self.at, Answer) else self.at.beside(answer)

    def take(self, sums: Sums) -> Inquiry:
        """Return the study after `sums`, with those of `beside` or without; raise DataError when they are others."""
        task = self.task()
        shapes = {name: shape for name, (_dtype, shape) in task.outputs.items()}
        more = {name: array.shape for name, array in self.beside({n: np.zeros(s) for n, s in shapes.items()}).items()}
        if more.keys() <= sums.keys():
            shapes |= more
        if sums.keys() != shapes.keys():
            raise DataError(f"sums of {', '.join(sorted(sums))}, and the task gives {', '.join(sorted(task.outputs))}")
        given = {}
        for name, shape in shapes.items():
            array = np.asarray(sums[name], dtype=np.float64)
            if array.shape != shape or not np.isfinite(array).all():
                raise DataError(f"the sum of {name!r} must be {shape} finite numbers, and is {array.shape}: {array!r}")
            given[name] = array
        assert isinstance(self.at, Question)
        try:
            return replace(self, at=self.at.then(given), rounds=self.rounds + 1)
        except np.linalg.LinAlgError as error:
            raise DataError(f"the sums of round {self.rounds + 1} lead nowhere ({error}): no rows give such") from error

    def result(self) -> Any:
        """Return the answer; raise UserError while questions are open."""
        return self._answer().value

    @property
    def notes(self) -> tuple[str, ...]:
        """Return what the reader of the result should know, one sentence each."""
        return self._answer().notes

    def _answer(self) -> Answer:
        if not isinstance(self.at, Answer):
            raise UserError(f"the study is not done: {self.rounds} rounds taken, and the next task waits for its sums")
        return self.at
