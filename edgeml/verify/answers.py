"""Rows through a graph, as a device would run it, to answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from edgeml.artifacts import Answers, ModelTask, OnnxModel, Rows
from edgeml.errors import DataError, VerificationError
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, PROBABILITIES, SCORES

BATCH_ROWS = 256  # bounds the memory of one run


def run_answers(model: OnnxModel | bytes, rows: Rows, task: ModelTask) -> Answers:
    """Return what `model` says about every row, through the session that devices use.

    Raises DataError when there are no rows, VerificationError when the outputs are not those of `task`,
    and the session's ShapeMismatch or ModelRefused.
    """
    if not len(rows):
        raise DataError("no rows to run the model on: give at least one")
    session = Session(model if isinstance(model, bytes) else model.data)
    parts = [session.run(feeds) for feeds in _batches(session, rows)]
    outputs = {name: np.concatenate([np.atleast_1d(part[name]) for part in parts])[: len(rows)] for name in parts[0]}
    return _answers(outputs, task, rows=len(rows))


def _answers(outputs: Mapping[str, np.ndarray], task: ModelTask, *, rows: int) -> Answers:
    wanted = {"classification": PROBABILITIES, "regression": PREDICTION, "tensor": next(iter(outputs))}[task]
    if task == "classification" and wanted not in outputs and SCORES in outputs:
        wanted = SCORES
    if wanted not in outputs:
        raise VerificationError(
            f"a {task} model answers with {wanted!r}, this one with {', '.join(outputs)}; name the output so, "
            f"or take the model as task tensor"
        )
    if len(outputs[wanted]) != rows:
        got = len(outputs[wanted])
        raise VerificationError(f"output {wanted!r} has {got} entries for {rows} rows: its first axis must be the rows")
    labels = outputs.get(LABEL) if task == "classification" else None
    scores = outputs[wanted].reshape(rows, -1).astype(np.float64)
    scores = _shares(scores) if wanted == SCORES and task == "classification" else scores
    return Answers(None if labels is None else labels.reshape(rows).astype(np.int64), scores)


def _shares(scores: np.ndarray) -> np.ndarray:
    """Return a decision function as shares of classes: the softmax of [0, z] for two, of the scores for more."""
    both = np.concatenate([np.zeros_like(scores), scores], axis=1) if scores.shape[1] == 1 else scores
    powers = np.exp(both - both.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _batches(session: Session, rows: Rows) -> Iterator[dict[str, np.ndarray]]:
    """Yield feeds of at most `BATCH_ROWS` rows; of exactly the fixed size where the graph has one."""
    fixed = {spec.shape[0] for spec in session.inputs if spec.shape and spec.shape[0] > 0}
    size = min(fixed, default=BATCH_ROWS)
    for start in range(0, len(rows), size):
        index = np.arange(start, start + size if fixed else min(start + size, len(rows)))
        yield dict(rows.take(np.minimum(index, len(rows) - 1)).inputs)  # the last row fills up a fixed batch
