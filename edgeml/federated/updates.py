"""What one device contributes to a round, and the check that it fits the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml_runtime.wire import MalformedMessage

DELTA = "delta."  # what a training task calls the change of a parameter
METRICS = frozenset({"loss.before", "loss.after", "loss.curve", "rows"})  # its other outputs, ignored in an upload


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

    Raises MalformedMessage when a name, shape or type is wrong or a value is not finite.
    """
    deltas = {name.removeprefix(DELTA): array for name, array in arrays.items() if name not in METRICS}
    if wrong := sorted(deltas.keys() ^ parameters.keys()):
        kind = "missing from" if wrong[0] in parameters else "unknown in"
        raise MalformedMessage(f"parameter {wrong[0]!r} is {kind} the update; expected {len(parameters)} parameters")
    for name, expected in parameters.items():
        array = deltas[name]
        if array.dtype != np.float32 or array.shape != expected.shape:
            raise MalformedMessage(
                f"parameter {name!r}: the update has {array.dtype} {array.shape}, the model float32 {expected.shape}"
            )
        if broken := int(np.count_nonzero(~np.isfinite(array))):
            raise MalformedMessage(f"parameter {name!r}: {broken} of {array.size} values of the update are not finite")
    return deltas
