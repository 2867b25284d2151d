"""What one device contributes to a round, the check that it fits the model, and what can be wrong with it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgeml_runtime.wire import BadDigest, BadSignature, MalformedMessage
from edgeml_runtime.wire.tasks import DELTA, HELD_OUT, KEEP
from edgeml_runtime.wire.tasks import TRAINING_METRICS as METRICS

# What a round counts per device: the first five are of an update that came when or whence it must not.
FAULTS = (
    "duplicate",
    "late",
    "replayed",
    "stranger",
    "stale",
    "nan",
    "infinite",
    "shape",
    "names",
    "oversized",
    "digest",
    "rows",
    "unsigned",
    "unreadable",
)

MANY = 1e12  # rows: more is no count


class BadUpdate(MalformedMessage):
    """An update that a round cannot take; `fault` is one of FAULTS, for counting."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def fault_of(error: Exception) -> str:
    """Return the fault that `error` is counted as."""
    if isinstance(error, BadUpdate):
        return error.fault
    kinds: dict[type[Exception], str] = {BadDigest: "digest", BadSignature: "unsigned"}
    return kinds.get(type(error), "unreadable")


@dataclass(frozen=True)
class Update:
    """The change of every parameter that one device found on its rows."""

    device: str
    rows: int
    delta: Mapping[str, np.ndarray]  # by parameter, float32
    metrics: Mapping[str, float] = field(default_factory=dict)  # loss.before, loss.after, seconds
    size: int = 0  # bytes on the wire
    steps: float = 1  # that the device took, as often as their gradients count

    @property
    def held_out(self) -> int:
        """How many labelled rows the device says that it has held out of its training."""
        told = self.metrics.get(HELD_OUT, 0.0)
        return int(told) if 0 <= told < MANY else 0


def check_update(arrays: Mapping[str, np.ndarray], parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the changes in `arrays` by parameter, for the model that has these `parameters`.

    Raises BadUpdate when a name, shape or type is wrong or a value is not finite.
    """
    deltas = {name.removeprefix(DELTA): array for name, array in arrays.items() if name not in METRICS}
    if wrong := sorted(deltas.keys() ^ parameters.keys()):
        kind = "missing from" if wrong[0] in parameters else "unknown in"
        raise BadUpdate("names", f"parameter {wrong[0]!r} is {kind} the update; expected {len(parameters)} parameters")
    for name, expected in parameters.items():
        _check(f"parameter {name!r}", deltas[name], dtype="float32", shape=expected.shape)
    return deltas


def check_outputs(
    arrays: Mapping[str, np.ndarray], declared: Mapping[str, tuple[str, tuple[int, ...]]]
) -> dict[str, np.ndarray]:
    """Return what `arrays` brings of the outputs that a task has `declared`, by name; those kept on devices excepted.

    Raises BadUpdate when a name, shape or type is wrong or a value is not finite.
    """
    expected = {name: told for name, told in declared.items() if not name.startswith(KEEP)}
    if wrong := sorted(arrays.keys() ^ expected.keys()):
        kind = "missing from" if wrong[0] in expected else "unknown in"
        raise BadUpdate("names", f"output {wrong[0]!r} is {kind} the answer; the task has {len(expected)} outputs")
    for name, (dtype, shape) in expected.items():
        _check(f"output {name!r}", arrays[name], dtype=dtype, shape=tuple(shape))
    return {name: arrays[name] for name in expected}


def _check(what: str, array: np.ndarray, *, dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype.name != dtype or array.shape != shape:
        raise BadUpdate("shape", f"{what}: the update has {array.dtype} {array.shape}, the task {dtype} {shape}")
    if broken := int(np.count_nonzero(~np.isfinite(array))):
        fault = "nan" if np.isnan(array).any() else "infinite"
        raise BadUpdate(fault, f"{what}: {broken} of {array.size} values of the update are not finite")


def mean_told(updates: Sequence[Update], name: str) -> float | None:
    """Return the mean over rows of a metric that devices told; None unless every one told a number."""
    values = [update.metrics.get(name, math.nan) for update in updates]
    weights = [update.rows for update in updates]
    return float(np.average(values, weights=weights)) if values and np.all(np.isfinite(values)) else None
