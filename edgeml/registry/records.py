"""The rows of the index as frozen dataclasses. Times are seconds since 1970, UTC, so that processes agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from edgeml.errors import UserError
from edgeml.federated.buffer import BufferOptions
from edgeml.federated.cohort import CohortOptions, Patience
from edgeml.federated.masks import Masks
from edgeml.federated.privacy import Privacy
from edgeml.telemetry import Telemetry
from edgeml_runtime.wire.holdout import objection
from edgeml_runtime.wire.messages import BenchBlob, BenchJob, Reported

REQUESTED, RUNNING, SUCCEEDED, FAILED = "REQUESTED", "RUNNING", "SUCCEEDED", "FAILED"
ENDED = (SUCCEEDED, FAILED)


@dataclass(frozen=True, kw_only=True)
class Release:
    """A verified bundle. `release` is its id, `number` counts the releases of one model from 1."""

    model: str
    release: str
    number: int
    created: float
    manifest: str  # digest of the signed manifest's bytes: what an assignment names
    manifest_bytes: int
    summary: Mapping[str, Any]
    run_dir: str


@dataclass(frozen=True, kw_only=True)
class DeviceRecord:
    """What the server last knew of a device."""

    id: str
    board: str = ""
    online: bool = False
    boot_id: str = ""
    last_seen: float = 0.0
    reported: Reported | None = None
    telemetry: Telemetry = field(default_factory=Telemetry)
    malformed: int = 0  # messages of it that could not be read
    notes: tuple[str, ...] = ()  # what an operator should look at


@dataclass(frozen=True, kw_only=True)
class RolloutOptions:
    """How a release is shipped; see `edgeml.rollout.Policy`."""

    deadline_s: float = 600.0
    canary: int = 1
    tolerated: float = 0.1
    soak_predictions: int = 0
    soak_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class RolloutRecord:
    """A request to ship `release` to the devices of `selector`, and how it goes.

    `devices` maps a device to {state, step, progress, reason, detail}; `state` is REQUESTED, RUNNING,
    SUCCEEDED or FAILED.
    """

    id: str
    model: str
    release: str
    selector: str
    options: RolloutOptions
    state: str
    devices: Mapping[str, Mapping[str, Any]]
    created: float
    ended: float | None
    detail: str

    @property
    def is_over(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class FederationOptions:
    """The rounds of a federation; the names are those of `federated:` in edgeml.yaml."""

    rounds: int = 5
    min_devices: int = 2
    local_epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 0.05
    momentum: float = 0.9
    min_rows: int = 20
    deadline_s: float = 60.0
    seed: int = 0
    max_abandoned: int = 3  # rounds without a quorum in a row that end the federation
    compress: str = ""  # how updates travel: fp16, int8, topk:0.05, sign
    privacy: Privacy = field(default_factory=Privacy)
    secure: Masks | None = None  # the server learns sums only
    cohort: CohortOptions = field(default_factory=CohortOptions)
    patience: Patience = field(default_factory=Patience)
    strategy: str = "fedavg"  # of edgeml.federated.STRATEGIES
    mu: float | None = None  # of the proximal term, instead of the strategy's
    family: str = ""  # of edgeml.tasks.FAMILIES: fitted exactly by sums over devices, in place of training
    family_options: Mapping[str, Any] = field(default_factory=dict)  # of that estimator
    ask_fleet: bool = True  # how well a candidate does on the devices, before it may ship
    mode: Literal["sync", "async"] = "sync"
    buffer: BufferOptions = field(default_factory=BufferOptions)  # of asynchronous rounds
    held_out: float | None = None  # share of a device's rows to judge on; None, "": what the project says
    gate: Literal["", "better", "not-worse"] = ""  # what a candidate must be, see edgeml.federated.gate

    def __post_init__(self) -> None:
        if self.held_out is not None and (why := objection(self.held_out)):
            raise UserError(why)


@dataclass(frozen=True, kw_only=True)
class RoundRecord:
    """One finished round; `metric` and `loss` are the global model's, on the server's validation rows."""

    round: int
    participants: tuple[str, ...]
    refused: Mapping[str, str]  # device -> why it took no part
    rows: int
    metric: float
    loss: float
    bytes_up: int
    bytes_down: int
    seconds: float  # from the offer to the aggregate
    state: str = "closed"  # or abandoned: then metric and loss are of the model as it was
    why: str = ""  # it ended
    asked: int = 0  # devices
    silent: tuple[str, ...] = ()  # devices that sent neither update nor refusal
    rejected: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # device -> fault -> how often
    epsilon: float | None = None  # spent until here, with differential privacy
    staleness: Mapping[str, int] = field(default_factory=dict)  # of asynchronous updates: steps made meanwhile
    held_out: int = 0  # labelled rows of the participants that the training did not see
    loss_before: float | None = None  # on the participants' rows, with what they were offered and what they keep
    loss_after: float | None = None  # after their local training
    own_losses: Mapping[str, float] = field(default_factory=dict)  # device -> as loss_before, where last layers stay


@dataclass(frozen=True, kw_only=True)
class FederationRecord:
    """A request for federated rounds over `model`, starting from `release`, and how it goes.

    `outcome` is {before, after, released, reason}; `state` is REQUESTED, RUNNING, SUCCEEDED or FAILED.
    It succeeds when the rounds were done and judged, also when the gate kept the old model.
    """

    id: str
    model: str
    release: str
    options: FederationOptions
    state: str
    rounds: tuple[RoundRecord, ...]
    outcome: Mapping[str, Any]
    created: float
    ended: float | None
    detail: str

    @property
    def is_over(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class BenchPatience:
    """How patient the server is with a benchmark on a device."""

    deadline_s: float = 600.0  # on the device, waiting for a calm moment included
    gone_s: float = 120.0  # a device that is offline for so long is not waited for


@dataclass(frozen=True, kw_only=True)
class BenchWork:
    """What a device is to run; the blobs are in the registry."""

    jobs: tuple[BenchJob, ...]
    blobs: tuple[BenchBlob, ...]


@dataclass(frozen=True, kw_only=True)
class BenchRecord:
    """A request to run graphs on one device, and how it goes.

    `state` is REQUESTED, RUNNING, SUCCEEDED or FAILED; `step` is what the device last said. `result` is the digest of
    a blob, see `edgeml_runtime.wire.bench`; `canceled` is set by whoever does not want it any more.
    """

    id: str
    device: str
    kind: Literal["measure", "calibrate"]
    model: str
    work: BenchWork
    options: BenchPatience
    state: str
    step: str = ""
    progress: float = 0.0
    reason: str = ""
    detail: str = ""
    canceled: bool = False
    result: str = ""
    created: float
    ended: float | None

    @property
    def is_over(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True, kw_only=True)
class DeviceMeasurement:
    """What a device measured of one variant: `document` is `edgeml_runtime.measure.Benchmark.plain()`."""

    bench: str
    device: str
    board: str
    model: str
    variant: str
    digest: str  # of the graph
    time: float
    agent: str  # version
    hardware: Mapping[str, str]
    document: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Heartbeat:
    """The server that works on this registry; `time` is its last sign of life."""

    pid: int
    host: str
    port: int
    time: float
