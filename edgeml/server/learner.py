"""The way back into the pipeline, as a federation sees it; the pipeline implements it.

The server does not know the pipeline, so nothing it does can reach a device without passing the gates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgeml.artifacts import OnnxModel
from edgeml.registry import FederationRecord, RoundRecord


@dataclass(frozen=True)
class Learner:
    """What a federation starts from, and the two questions it asks of its global model."""

    model: OnnxModel  # the fp32 graph of the release
    loss: str  # a name of `edgeml.autodiff.LOSSES`
    rate: float  # times the learning rate that was asked for: 1 unless the loss is in the target's own units
    evaluate: Callable[[OnnxModel], Mapping[str, float]]  # {"metric", "loss"} on the server's validation rows
    release: Callable[[OnnxModel, Sequence[RoundRecord]], Mapping[str, Any]]
    """Walk the model through the gates: {"before", "after", "released": release id or None, "reason"}."""


class Retrain(Protocol):
    """The front door for retrained weights. All calls run in one worker thread and may take seconds."""

    def prepare(self, record: FederationRecord) -> Learner:
        """Return the learner of the release that `record` starts from."""
        ...
