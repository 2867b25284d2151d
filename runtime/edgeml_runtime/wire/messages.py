"""Every message of the wire, with its encoding: JSON for control, CBOR for batches.

`encode(message)` and `decode(kind, payload)` are the only way in and out; a payload is bounded
before it is parsed, and an unknown version or field is refused by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import cbor2

from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.wire.manifest import Settings
from edgeml_runtime.wire.plain import from_plain, to_plain
from edgeml_runtime.wire.signed import canonical
from edgeml_runtime.wire.tasks import TaskKind

SCHEMA = 1
TERMINAL = frozenset({"SUCCEEDED", "FAILED", "REJECTED", "TIMED_OUT", "CANCELED", "ROLLED_BACK"})
State = Literal["QUEUED", "IN_PROGRESS", "SUCCEEDED", "FAILED", "REJECTED", "TIMED_OUT", "CANCELED", "ROLLED_BACK"]
Step = Literal["", "DOWNLOADING", "VERIFYING", "PROBING", "TRIAL", "SOAKING"]


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What one device shall run: signed for that device alone (Uptane's director)."""

    schema: int = SCHEMA
    device: str
    job: str
    model: str
    release: str
    manifest: str  # digest of the signed manifest's bytes
    manifest_bytes: int
    seq: int  # grows with every assignment to this device; the device refuses to go back
    deadline_s: float  # from receipt; the device's clock may be wrong
    soak_predictions: int = 0  # real predictions to serve inside bounds before SUCCEEDED
    soak_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class JobStatus:
    job: str
    state: State
    step: Step = ""
    progress: float = 0.0  # 0..1 of the bytes
    reason: str = ""  # class name of the error, "" when there is none
    detail: str = ""  # one line for people, with the numbers


@dataclass(frozen=True, kw_only=True)
class Running:
    """What answers predictions now."""

    model: str
    release: str
    variant: str
    graph: str  # digest


@dataclass(frozen=True, kw_only=True)
class Reported:
    """A device's full state. The last one wins; `seq` grows within one `boot_id`."""

    schema: int = SCHEMA
    boot_id: str
    seq: int
    agent: str  # version
    board: str
    hardware: Mapping[str, str] = field(default_factory=dict)
    free_bytes: int = 0
    samples: int = 0  # labelled local rows, the most a round could use
    key: str = ""  # the public half of this device's key, hex: what it sends in rounds is signed by it
    rows: int = 0  # local rows, labelled or not: for tasks that take no targets
    running: Running | None = None
    job: JobStatus | None = None


@dataclass(frozen=True, kw_only=True)
class Online:
    schema: int = SCHEMA
    online: bool
    boot_id: str
    seq: int = 0


@dataclass(frozen=True, kw_only=True)
class BlockRequest:
    """Blocks that a device wants of one blob; the server answers on the device's `blk` topic."""

    schema: int = SCHEMA
    digest: str
    ranges: tuple[tuple[int, ...], ...]  # half-open [first, end)


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts between `edges` (seconds), with one overflow bucket: len(counts) == len(edges) + 1."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Telemetry since boot: sums that only grow, so a lost batch loses nothing."""

    schema: int = SCHEMA
    boot_id: str
    seq: int
    uptime_s: float
    release: str = ""
    predictions: int = 0
    errors: int = 0
    latency: Histogram | None = None
    labels: Mapping[str, int] = field(default_factory=dict)  # answers by class name
    rss_bytes: int = 0
    last_error: str = ""
    temperature_c: float | None = None  # of the hottest zone, now
    battery: float | None = None  # share of a full one, now
    mains: bool | None = None  # whether it hangs on more than its battery
    personal: bool | None = None  # whether its own tensors answer; None: it has none
    gain: float | None = None  # of them over the release on its own labelled rows: accuracy, or less error


@dataclass(frozen=True, kw_only=True)
class Secure:
    """How updates are summed without being seen one by one; see `edgeml_runtime.secagg`."""

    keys: Mapping[str, str]  # device of the cohort -> its Ed25519 public key, 64 hex digits
    threshold: int  # devices that must last to the end, more than half of them
    bound: float  # of every value of an update, which is cut to it
    rows: int = 0  # that weigh 1, and the most that count; 0: every device weighs the same
    bits: Literal[16, 32, 64] = 32  # of one masked value
    phase_s: float = 15.0  # of every phase after the training
    ranges: Mapping[str, float] = field(default_factory=dict)  # output of a sum over rows -> its values are below


@dataclass(frozen=True, kw_only=True)
class TaskOffer:
    """A signed task of one federated round: run `graph` over local rows, send its outputs back.

    `scalars` are the graph's 0-d inputs by name (lr, seed, ...); `parameters` is a safetensors blob. What the names
    of inputs and outputs mean is in `wire.tasks`. The device's owner may demand more of it, never less.
    """

    schema: int = SCHEMA
    round: str
    run: str = ""  # the federation, whose `keep.` outputs come back as `kept.`; "": the round's id without its number
    kind: TaskKind
    model: str
    cohort: tuple[str, ...]
    graph: str
    graph_bytes: int
    parameters: str
    parameters_bytes: int
    scalars: Mapping[str, float]
    min_rows: int
    max_update_bytes: int
    deadline_s: float
    compress: str = ""  # how the update travels: "", "fp16", "int8", "topk:<share>", "sign"
    clip_norm: float = 0.0  # the L2 norm that an update is scaled down to before it leaves; 0: none
    noise: float = 0.0  # standard deviation, in units of clip_norm, of what the device adds to every value
    secure: Secure | None = None
    held_out: float = 0.0  # share of the rows that no training sees and evaluation is over, see `wire.holdout`

    @property
    def federation(self) -> str:
        return self.run or self.round.rpartition("-")[0] or self.round


@dataclass(frozen=True, kw_only=True)
class RunOver:
    """Signed, on the `task` topic of the run: no round of it will follow, so nothing is kept for one."""

    schema: int = SCHEMA
    kind: Literal["over"] = "over"
    run: str
    release: str | None = None  # that came of it and leaves a place for a device's own tensors: those stay for it


@dataclass(frozen=True, kw_only=True)
class UpdateHeader:
    """First message on a round's `up` topic; the blocks of safetensors `digest` follow: outputs by their names.

    `metrics` of training: loss before and after, seconds, rows held out. Those of other kinds are among the outputs.
    """

    schema: int = SCHEMA
    round: str
    device: str
    boot_id: str
    rows: int
    digest: str = ""
    size: int = 0
    metrics: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""  # why this device takes no part; then there are no blocks
    signature: bytes = b""  # of the device, see `wire.updates`


BenchState = Literal["QUEUED", "RUNNING", "DONE", "REFUSED", "FAILED", "CANCELED"]
BENCH_ENDED = frozenset({"DONE", "REFUSED", "FAILED", "CANCELED"})


@dataclass(frozen=True, kw_only=True)
class BenchBlob:
    """A graph, or rows as safetensors, that a benchmark needs."""

    digest: str  # of the bytes as they travel
    size: int
    inflated: int = 0  # how many they are after zlib; 0: they travel as they are


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """When a timing may stop; the fields are those of `edgeml_runtime.measure.Plan`."""

    warmup_s: float = 0.2
    min_s: float = 1.0
    min_count: int = 100
    max_s: float = 10.0
    scenario: Literal["single-stream", "multi-stream", "offline", "paced"] = "single-stream"
    rows: int = 0
    rate_hz: float = 10.0


@dataclass(frozen=True, kw_only=True)
class BenchJob:
    """One graph to run over one query of rows.

    `timing` times it, `operators` profiles its nodes over `runs` runs, `benchmark` does both and starts `starts` new
    processes for the cold start.
    """

    name: str
    verb: Literal["timing", "operators", "benchmark"]
    graph: str  # digests of two blobs of the task
    rows: str
    plan: BenchPlan = field(default_factory=BenchPlan)
    session: Settings = field(default_factory=Settings)
    runs: int = 20
    starts: int = 0


@dataclass(frozen=True, kw_only=True)
class BenchTask:
    """Graphs that one device shall time, signed for that device alone; `cancel` ends the task of this id."""

    schema: int = SCHEMA
    device: str
    task: str
    kind: Literal["measure", "calibrate", "cancel"]
    seq: int  # grows with everything that is signed for this device; it refuses to go back
    jobs: tuple[BenchJob, ...] = ()
    blobs: tuple[BenchBlob, ...] = ()
    deadline_s: float = 600.0  # from receipt, waiting for a quiet moment included
    max_result_bytes: int = 4 << 20


@dataclass(frozen=True, kw_only=True)
class BenchStatus:
    """How a benchmark goes on a device. After DONE the blocks of the result `digest` follow on the same topic."""

    schema: int = SCHEMA
    task: str
    device: str
    boot_id: str
    state: BenchState
    progress: float = 0.0  # 0..1 of the jobs
    reason: str = ""  # short, for programs: why it waits, was refused or failed
    detail: str = ""  # one line for people, with the numbers
    digest: str = ""
    size: int = 0


Message = (
    Assignment
    | Reported
    | Online
    | BlockRequest
    | Metrics
    | TaskOffer
    | RunOver
    | UpdateHeader
    | BenchTask
    | BenchStatus
)
M = TypeVar(
    "M", Assignment, Reported, Online, BlockRequest, Metrics, TaskOffer, RunOver, UpdateHeader, BenchTask, BenchStatus
)

_CBOR = (BlockRequest, Metrics, UpdateHeader, BenchStatus)
MAX_BYTES: dict[type, int] = {
    Assignment: 4 << 10,
    Reported: 16 << 10,
    Online: 1 << 10,
    BlockRequest: 16 << 10,
    Metrics: 64 << 10,
    TaskOffer: 60 << 10,
    RunOver: 4 << 10,
    UpdateHeader: 16 << 10,
    BenchTask: 60 << 10,
    BenchStatus: 4 << 10,
}


def encode(message: Message) -> bytes:
    """Return `message` as bytes: CBOR for requests, telemetry and updates, canonical JSON otherwise."""
    plain = to_plain(message)
    return cbor2.dumps(plain) if isinstance(message, _CBOR) else canonical(plain)


def decode(kind: type[M], payload: bytes) -> M:
    """Return the `kind` in `payload`; raise MalformedMessage naming what is wrong with it."""
    limit = MAX_BYTES[kind]
    if len(payload) > limit:
        raise MalformedMessage(f"{kind.__name__} of {len(payload):,} bytes; the limit is {limit:,}")
    try:
        plain = cbor2.loads(payload) if kind in _CBOR else json.loads(payload)
    except (ValueError, EOFError, RecursionError, cbor2.CBORError) as error:
        raise MalformedMessage(f"{kind.__name__}: {len(payload)} bytes that cannot be parsed: {error}") from error
    return from_document(kind, plain)


def from_document(kind: type[M], plain: Any) -> M:
    """Return the `kind` in an already parsed (for example verified) document."""
    version = plain.get("schema", SCHEMA) if isinstance(plain, dict) else None
    if version != SCHEMA:
        raise MalformedMessage(f"{kind.__name__} of schema {version!r}: this side reads {SCHEMA}; update it")
    return from_plain(kind, plain)
