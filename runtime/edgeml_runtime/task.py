"""One task over local rows: what it may take, what it may give back. No disk, no clock, no network.

    check_graph -> feeds -> session.run -> sorted_out: update (leaves), metrics (leave), keep (stays)

Both the agent and a simulated device on a workstation run tasks through here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeml_runtime.errors import NotFinite, ShapeMismatch, TaskRefused
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import TensorSpec
from edgeml_runtime.wire.tasks import (
    DELTA,
    KEEP,
    KEPT,
    LOSS_AFTER,
    LOSS_BEFORE,
    ROWS_INPUT,
    STEPS,
    TARGET,
    TaskKind,
)

MAX_METRIC_VALUES = 1024  # in all outputs of training that are not the update: a few losses, no channel for rows
MAX_OUTPUTS = 4096
ITEM_BYTES = {"float64": 8, "int64": 8, "float32": 4, "int32": 4, "float16": 2}
Arrays = Mapping[str, np.ndarray]
Rows = tuple[Arrays, np.ndarray | None]  # inputs by name, targets; None: the rows need no labels


@dataclass(frozen=True)
class Limits:
    """Bytes that one answer may have: what leaves, and what stays on the device."""

    update: int
    kept: int = 64 << 20


@dataclass(frozen=True)
class Answer:
    """What one run of a task gave: `update` and `metrics` may leave the device, `keep` never does."""

    update: dict[str, np.ndarray]  # by output name
    rows: int
    metrics: dict[str, float] = field(default_factory=dict)  # of training: loss.before, loss.after, steps
    keep: dict[str, np.ndarray] = field(default_factory=dict)  # by name, without `keep.`


def count(rows: Rows) -> int:
    """Return how many rows there are."""
    inputs, target = rows
    return len(next(iter(inputs.values()), ())) if target is None else len(target)


def takes_labels(inputs: Sequence[TensorSpec]) -> bool:
    """Return whether a graph with these `inputs` wants labelled rows."""
    return any(spec.name == TARGET for spec in inputs)


def check_graph(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], *, kind: TaskKind, limits: Limits) -> None:
    """Raise TaskRefused when this task's outputs could carry rows away, or are not what `kind` gives."""
    for spec in outputs:
        if spec.dtype not in ITEM_BYTES or any(axis < 0 for axis in spec.shape):
            shape = ", ".join("any" if axis < 0 else str(axis) for axis in spec.shape)
            raise TaskRefused(
                f"output {spec.name!r}, {spec.dtype} of shape ({shape}), could carry rows away: "
                f"all must be numbers, and their count fixed"
            )
    if not outputs or len(outputs) > MAX_OUTPUTS:
        raise TaskRefused(f"the task has {len(outputs)} outputs; 1 to {MAX_OUTPUTS:,} are allowed")
    taken = {spec.name: spec for spec in inputs}
    _check_kept(taken, outputs, limits.kept)
    sent = [spec for spec in outputs if not spec.name.startswith(KEEP)]
    body = sent if kind != "training" else _check_training(taken, sent)
    if not body:
        raise TaskRefused(f"the task has no output that may leave the device: it is no {kind} task")
    if (size := sum(map(bytes_of, body))) > limits.update:
        raise TaskRefused(f"outputs of {size:,} bytes; {limits.update:,} are allowed")


def bytes_of(spec: TensorSpec) -> int:
    """Return how many bytes a tensor of fixed shape has."""
    return math.prod(spec.shape) * ITEM_BYTES[spec.dtype]


def _check_training(taken: Mapping[str, TensorSpec], sent: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the outputs that are the update; raise TaskRefused for others that are more than a few losses."""
    update = [spec for spec in sent if spec.name.startswith(DELTA)]
    if not update:
        raise TaskRefused("the task has no update: it is no training task")
    beside = sum(math.prod(spec.shape) for spec in sent if not spec.name.startswith(DELTA))
    if beside > MAX_METRIC_VALUES:
        raise TaskRefused(f"{beside} values beside the update; {MAX_METRIC_VALUES} are allowed")
    for spec in update:
        parameter = taken.get(spec.name.removeprefix(DELTA))
        if parameter is None or parameter.shape != spec.shape:
            raise TaskRefused(f"output {spec.name!r} of shape {spec.shape} is the change of no parameter")
    return update


def _check_kept(taken: Mapping[str, TensorSpec], outputs: Sequence[TensorSpec], limit: int) -> None:
    keep = [spec for spec in outputs if spec.name.startswith(KEEP)]
    for spec in keep:
        before = taken.get(KEPT + spec.name.removeprefix(KEEP))
        if before is None or (before.dtype, before.shape) != (spec.dtype, spec.shape):
            raise TaskRefused(
                f"output {spec.name!r}, {spec.dtype} {spec.shape}, has no input {KEPT}{spec.name.removeprefix(KEEP)} "
                f"of the same type and shape"
            )
    if (size := sum(map(bytes_of, keep))) > limit:
        raise TaskRefused(f"the task wants {size:,} bytes kept here between rounds; {limit:,} are allowed")


def feeds(
    inputs: Sequence[TensorSpec],
    rows: Rows,
    *,
    scalars: Mapping[str, float],
    parameters: Arrays,
    kept: Arrays | None = None,
) -> dict[str, np.ndarray]:
    """Return the task's inputs made of local `rows`, the offer's scalars and parameters, and what was `kept`.

    `kept.<name>` that nothing was kept of begins as the parameter `kept.<name>` or `<name>`, or as zeros. Raises
    ShapeMismatch when an input has no source.
    """
    local, target = rows
    found: dict[str, np.ndarray] = {}
    for spec in inputs:
        if spec.name == TARGET and target is not None:
            found[TARGET] = _target(spec, target)
        elif spec.name.startswith(KEPT):
            found[spec.name] = _first(spec, parameters, kept or {})
        elif spec.name in parameters:
            found[spec.name] = parameters[spec.name]
        elif spec.name in local:
            found[spec.name] = local[spec.name]
        elif spec.name == ROWS_INPUT and len(tables := _tables(local)) == 1:
            found[spec.name] = tables[0]
        elif spec.name in scalars and not spec.shape:
            found[spec.name] = np.asarray(scalars[spec.name], dtype=spec.dtype)
        else:
            known = ", ".join(sorted({*local, *scalars})) or "nothing"
            raise ShapeMismatch(f"the task takes {spec.name!r}, and the local rows and the offer have {known}")
    return found


def run(
    session: Session,
    rows: Rows,
    *,
    kind: TaskKind,
    scalars: Mapping[str, float],
    parameters: Arrays,
    kept: Arrays | None = None,
) -> Answer:
    """Return what the checked task in `session` gives for `rows`; raise TaskRefused or ShapeMismatch."""
    given = feeds(session.inputs, rows, scalars=scalars, parameters=parameters, kept=kept)
    answers = session.run(given)
    try:
        return sorted_out(session.outputs, answers, kind=kind, rows=count(rows))
    except NotFinite as error:
        if broken := _broken(rows[0]):
            told = f"{broken} of the {count(rows)} rows have missing or infinite numbers, and so has the answer"
            raise NotFinite(f"{told}: leave these rows out, or deploy a model that fills the gaps") from error
        raise


def sorted_out(outputs: Sequence[TensorSpec], answers: Arrays, *, kind: TaskKind, rows: int) -> Answer:
    """Return the `answers` as what leaves and what stays.

    Raises TaskRefused when one has another shape than was declared and checked, or a number is not finite.
    """
    update: dict[str, np.ndarray] = {}
    keep: dict[str, np.ndarray] = {}
    metrics: dict[str, float] = {}
    for spec in outputs:
        array = np.asarray(answers[spec.name])
        if array.shape != spec.shape:
            raise TaskRefused(
                f"output {spec.name!r} came as {array.shape} and was declared as {spec.shape}: it could carry rows away"
            )
        if spec.name.startswith(KEEP):
            keep[spec.name.removeprefix(KEEP)] = array
        elif kind != "training" or spec.name.startswith(DELTA):
            update[spec.name] = array
        elif spec.name in (LOSS_BEFORE, LOSS_AFTER, STEPS) and not spec.shape:
            metrics[spec.name] = float(array)
    _check_finite(update, keep, metrics, training=kind == "training")
    return Answer(update, rows, metrics, keep)


def _check_finite(update: Arrays, keep: Arrays, metrics: Mapping[str, float], *, training: bool) -> None:
    arrays = [*update.values(), *keep.values()]
    broken = sum(int(np.count_nonzero(~np.isfinite(array))) for array in arrays)
    if not broken and all(math.isfinite(loss) for loss in metrics.values()):
        return
    if training:
        raise NotFinite(
            f"training diverged here: {broken} numbers of the update are NaN or infinite; lower the learning rate"
        )
    raise NotFinite(f"{broken} numbers of the answer are NaN or infinite, and all rows are finite: too large for it")


def _broken(local: Arrays) -> int:
    """Return how many rows have a number that is NaN or infinite."""
    numbers = [array.reshape(len(array), -1) for array in local.values() if array.dtype.kind == "f"]
    whole = [np.isfinite(array).all(axis=1) for array in numbers if len(array)]
    return int(np.count_nonzero(~np.logical_and.reduce(whole))) if whole else 0


def _tables(local: Arrays) -> list[np.ndarray]:
    return [array for array in local.values() if array.ndim == 2 and array.dtype.kind == "f"]


def _first(spec: TensorSpec, parameters: Arrays, kept: Arrays) -> np.ndarray:
    """Return what a `kept.` input is given: what was kept, else the offer's, else zeros."""
    name = spec.name.removeprefix(KEPT)
    for source, key in ((kept, name), (parameters, spec.name), (parameters, name)):
        if (array := source.get(key)) is not None and array.shape == spec.shape and array.dtype == spec.dtype:
            return array
    return np.zeros(spec.shape, spec.dtype)


def _target(spec: TensorSpec, target: np.ndarray) -> np.ndarray:
    """Return the targets as the task wants them: class indices, or numbers in one column."""
    if spec.dtype.startswith("int") and target.dtype.kind == "f":
        raise ShapeMismatch("the task takes class indices, and some local targets are other numbers")
    shaped = target.reshape(-1, 1) if len(spec.shape) == 2 else target
    return shaped.astype(spec.dtype)
