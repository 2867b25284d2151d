"""Devices for the tests of tasks: rows split unevenly, a task run by the device's own session, sums made of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from edgeml.artifacts import Task
from edgeml.tasks.study import Study
from edgeml_runtime.config import Policy
from edgeml_runtime.session import Session
from edgeml_runtime.task import Limits, check_graph, run, takes_labels

LIMITS = Limits(update=Policy().max_update_bytes)
TARGET = "target"
Rows = Mapping[str, np.ndarray]


def split(rows: Rows, *, devices: int = 10, seed: int = 0) -> list[Rows]:
    """Return the rows of `devices`: none, one, rows of one class only (where there are classes), and ever more."""
    n = len(next(iter(rows.values())))
    order = np.random.default_rng(seed).permutation(n)
    only = order[:0]
    if "target" in rows and rows["target"].dtype.kind == "i":
        only = order[rows["target"][order] == rows["target"][order[-1]]][:7]
    rest = order[~np.isin(order, only)]
    share = np.arange(1, devices - 1) ** 2
    cuts = 1 + np.cumsum(share)[:-1] * (len(rest) - 1) // share.sum()
    parts = [rest[:0], rest[:1], *np.split(rest[1:], cuts - 1)]
    if len(only):
        parts[2:4] = [only, np.concatenate(parts[2:4])]
    return [{name: array[index] for name, array in rows.items()} for index in parts]


@functools.lru_cache(maxsize=4)
def _session(graph: bytes) -> Session:
    return Session(graph)


def answer(task: Task, rows: Rows) -> dict[str, np.ndarray]:
    """Return what one device sends for `task`, through the device's own checks, in the announced dtypes and shapes."""
    session = _session(task.data)
    check_graph(session.inputs, session.outputs, kind=task.kind, limits=LIMITS)
    inputs = {name: array for name, array in rows.items() if name != TARGET}
    held = (inputs, rows.get(TARGET) if takes_labels(session.inputs) else None)
    found = run(session, held, kind=task.kind, scalars={}, parameters=task.parameters).update
    assert {name: (array.dtype.name, array.shape) for name, array in found.items()} == dict(task.outputs)
    return found


def sums(task: Task, fleet: Sequence[Rows], *, study: Study | None = None) -> dict[str, np.ndarray]:
    """Return the element-wise float64 sum of the answers of all devices, and of what `study` wants beside them.

    A device that has no rows refuses.
    """
    answers = [answer(task, rows) for rows in fleet if len(next(iter(rows.values())))]
    parts = [{**each, **(study.beside(each) if study else {})} for each in answers]
    return {name: np.sum([part[name] for part in parts], axis=0, dtype=np.float64) for name in parts[0]}


def conclude(study: Study, fleet: Sequence[Rows], *, limit: int = 200) -> Study:
    """Return `study` after all its rounds."""
    for _ in range(limit):
        if study.done:
            return study
        study = study.take(sums(study.task(), fleet, study=study))
    raise AssertionError(f"no end after {limit} rounds")
