"""The way back into the pipeline, as a federation sees it; the pipeline implements it.

The server does not know the pipeline, so nothing it does can reach a device without passing the gates.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from edgeml.artifacts import OnnxModel
from edgeml.registry import FederationRecord, RoundRecord
from edgeml.tasks.study import Study


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Who answered a study, and what it cost; `why` says why it has no result."""

    devices: tuple[str, ...] = ()
    rows: int = 0
    rounds: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: float = 0.0
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Finding(Asked):
    """What the fleet answered to one study; None and `why`, where it has no result."""

    result: Any


Findings = Mapping[str, Finding]


def no_surveys(model: OnnxModel) -> Mapping[str, Study]:
    """Return nothing: the fleet is not asked about a candidate."""
    return {}


def as_it_is(model: OnnxModel, shared: Collection[str]) -> OnnxModel:
    """Return `model`: its last layer is what it was before the rounds."""
    return model


@dataclass(frozen=True)
class Learner:
    """What a federation starts from, and what it asks of its global model."""

    model: OnnxModel  # the fp32 graph of the release
    loss: str  # a name of `edgeml.autodiff.LOSSES`
    rate: float  # times the learning rate that was asked for: 1 unless the loss is in the target's own units
    evaluate: Callable[[OnnxModel], Mapping[str, float]]  # {"metric", "loss"} on the server's validation rows
    release: Callable[[OnnxModel, Sequence[RoundRecord], Findings], Mapping[str, Any]]
    """Walk the model through the gates: {"before", "after", "released": release id or None, "reason"}."""
    surveys: Callable[[OnnxModel], Mapping[str, Study]] = no_surveys  # what the fleet is asked about the candidate
    study: Callable[[], Study] | None = None  # the exact fit that the record's options name, in place of training
    fitted: Callable[[Any], OnnxModel] | None = None  # what that study found, as a model like `model`
    settle: Callable[[OnnxModel, Collection[str]], OnnxModel] = as_it_is
    """Fit what did not travel (all parameters but those named) to the ones that did, on the server's rows."""
    instead: str = ""  # what to federate where the model has no training graph
    held_out: float = 0.2  # share of a device's rows that no training sees


class Retrain(Protocol):
    """The front door for retrained weights. All calls run in one worker thread and may take seconds."""

    def prepare(self, record: FederationRecord) -> Learner:
        """Return the learner of the release that `record` starts from."""
        ...
