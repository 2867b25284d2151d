"""What one device contributes to a round, the check that it fits the model, and what can be wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml_runtime.wire import BadDigest, MalformedMessage

DELTA = "delta."  # what a training task calls the change of a parameter
# What a round counts per device: the first four are of an update that came when or whence it must not.
FAULTS = (
    "duplicate",
    "late",
    "replayed",
    "stranger",
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
METRICS = frozenset({"loss.before", "loss.after", "loss.curve", "rows"})  # its other outputs, ignored in an upload


class BadUpdate(MalformedMessage):
    """An update that a round cannot take; `fault` is one of FAULTS, for counting."""

    def __init__(self, fault: str, message: str) -> None:
        super().__init__(message)
        self.fault = fault


def fault_of(error: Exception) -> str:
    """Return the fault that `error` is counted as."""
    if isinstance(error, BadUpdate):
        return error.fault
    return "digest" if isinstance(error, BadDigest) else "unreadable"


@dataclass(frozen=True)
class Update:
    """The change of every parameter that one device found on its rows."""

    device: str
    rows: int
    delta: Mapping[str, np.ndarray]  # by parameter, float32
    metrics: Mapping[str, float] = field(default_factory=dict)  # loss.before, loss.after, seconds
    size: int = 0  # bytes on the wire
    steps: int = 1  # that the device took


def check_update(arrays: Mapping[str, np.ndarray], parameters: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the changes in `arrays` by parameter, for the model that has these `parameters`.

    Raises BadUpdate when a name, shape or type is wrong or a value is not finite.
    """
    deltas = {name.removeprefix(DELTA): array for name, array in arrays.items() if name not in METRICS}
    if wrong := sorted(deltas.keys() ^ parameters.keys()):
        kind = "missing from" if wrong[0] in parameters else "unknown in"
        raise BadUpdate("names", f"parameter {wrong[0]!r} is {kind} the update; expected {len(parameters)} parameters")
    for name, expected in parameters.items():
        array = deltas[name]
        if array.dtype != np.float32 or array.shape != expected.shape:
            raise BadUpdate(
                "shape",
                f"parameter {name!r}: the update has {array.dtype} {array.shape}, the model float32 {expected.shape}",
            )
        if broken := int(np.count_nonzero(~np.isfinite(array))):
            raise BadUpdate(
                "nan" if np.isnan(array).any() else "infinite",
                f"parameter {name!r}: {broken} of {array.size} values of the update are not finite",
            )
    return deltas
