"""Sums of a task under masks: the words that devices send, added up modulo 2^64 and read by the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeml.artifacts import Task
from edgeml.federated.layouts import Sum
from edgeml.federated.masks import Masks, ranges_of, terms
from edgeml.tasks.study import Study
from edgeml_runtime.wire import masked_sums
from tests.tasks.fleet import Rows, answer

Answers = Sequence[Mapping[str, np.ndarray]]


def masked(
    answers: Sequence[Mapping[str, np.ndarray]], task: Task, masks: Masks | None = None
) -> dict[str, np.ndarray]:
    """Return the sums that the server reads of the words of all `answers`, their masks having cancelled."""
    ranges = ranges_of(task.outputs, masks or Masks())
    keys = {f"d{number}": f"{number:064x}" for number in range(len(answers))}
    asked = terms(masks or Masks(), keys, least=2, rows=0, ranges=ranges)
    words = [masked_sums.fixed(one, asked.ranges) for one in answers]
    layout = Sum(task.outputs)
    assert {len(one) for one in words} == {layout.length}
    total = np.sum(words, axis=0, dtype=np.uint64)
    assert int(total[-1]) == len(answers)
    return layout.read(total, asked, devices=len(answers))


def conclude_masked(study: Study, fleet: Sequence[Rows], *, limit: int = 200) -> Study:
    """Return `study` after all its rounds over masked sums, each of which is held to the open one."""
    for _ in range(limit):
        if study.done:
            return study
        task = study.task()
        answers = [answer(task, rows) for rows in fleet if len(next(iter(rows.values())))]
        found = masked(answers, task)
        check_against_the_open_sums(found, answers)
        study = study.take(found)
    raise AssertionError(f"no end after {limit} rounds")


def check_against_the_open_sums(found: Mapping[str, np.ndarray], answers: Answers) -> None:
    """Counts are equal; other sums differ by 2^-54 a device, and by how float64 rounds the open one."""
    step = masked_sums.step(Masks().largest)
    assert step == 2.0**-54
    for name, value in found.items():
        parts = np.array([one[name] for one in answers], dtype=np.float64)
        exact = np.sum(parts.astype(np.longdouble), axis=0)
        rounding = np.finfo(np.float64).eps * np.abs(exact)
        if answers[0][name].dtype.kind in "iu" or not np.any(parts % 1):
            np.testing.assert_array_equal(value, parts.sum(axis=0), err_msg=name)
        assert np.all(np.abs(value - exact) <= len(answers) * step + rounding), name
