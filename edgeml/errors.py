"""Every deliberate error of the workstation, drawn as a tree.

    EdgeMLError
    |- UserError             the caller can fix it (exit 1)
    |  |- ProjectError       edgeml.yaml is wrong: names the key and the line
    |  |- DataError          rows or columns that cannot be used
    |  |- UnsupportedModel   a model no converter takes
    |  |- MissingExtra       an optional package is needed
    |  |- NotPredictable     too little of a model is known on a device: names the operators
    |  `- NotFound           no such file, board, model, release or device
    |- VerificationError     a gate refused; nothing was shipped (exit 3)
    |  `- NothingFits        no variant meets a board's limits: names the nearest miss
    `- FleetError            the broker, the server or the fleet failed (exit 4)
       |- BrokerUnavailable
       |- ServerUnavailable
       |- RolloutFailed
       |- BenchFailed        a device is offline, refuses a benchmark or cannot end it: `reason` says which
       `- QuorumNotReached

A message says what happened, the numbers, and what to change. The device's own tree is
`edgeml_runtime.wire.DeviceError`; the command line prints both alike.
"""

from __future__ import annotations


class EdgeMLError(Exception):
    exit_code = 1


class UserError(EdgeMLError):
    pass


class ProjectError(UserError):
    pass


class DataError(UserError):
    pass


class UnsupportedModel(UserError):
    pass


class MissingExtra(UserError):
    pass


class NotPredictable(UserError):
    pass


class NotFound(UserError):
    pass


class VerificationError(EdgeMLError):
    exit_code = 3


class NothingFits(VerificationError):
    pass


class FleetError(EdgeMLError):
    exit_code = 4


class BrokerUnavailable(FleetError):
    pass


class ServerUnavailable(FleetError):
    pass


class RolloutFailed(FleetError):
    pass


class BenchFailed(FleetError):
    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class QuorumNotReached(FleetError):
    def __init__(self, round_id: str, arrived: int, quorum: int) -> None:
        super().__init__(
            f"round {round_id}: {arrived} of the {quorum} updates needed arrived before the deadline; "
            f"lower the quorum, widen the cohort, or extend the deadline"
        )
        self.arrived, self.quorum = arrived, quorum
