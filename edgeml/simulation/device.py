"""Virtual devices: the rows and the memory of each, and the agent's own code over them. Runs inside a worker process.

Nothing but the answer of a task leaves a virtual device, in the bytes that a real one would send.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml import graph, metrics, verify
from edgeml.artifacts import ModelTask, OnnxModel, Rows
from edgeml.federated import Update
from edgeml.tasks.local import OWN, SEEN, VARIATE
from edgeml_runtime import task
from edgeml_runtime.session import Session
from edgeml_runtime.wire import DeviceError, compress, gaussian, tensors
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.tasks import HELD_OUT

Arrays = Mapping[str, np.ndarray]
MAX_KEPT = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Call:
    """What one device does in a round: which task graph, and whether it is honest."""

    device: str
    graph: str  # digest
    attack: str = ""  # of ATTACKS
    seed: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Reply:
    """What came back: a body as on the wire, or why there is none."""

    device: str
    rows: int = 0
    body: bytes = b""
    metrics: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class Judged:
    """The metric of one device's own model, and of the shared one, on rows that it held out."""

    device: str
    rows: int
    own: float
    shared: float


class Household:
    """The devices of one worker. `shares` are the rows they learn from, `held_out` those they are judged on."""

    def __init__(self, shares: Mapping[str, Rows], held_out: Mapping[str, Rows]) -> None:
        self.shares, self.held_out = shares, held_out
        self.kept: dict[str, dict[str, np.ndarray]] = {}
        self.residual: dict[str, dict[str, np.ndarray]] = {}
        self.sessions: dict[str, Session] = {}

    def load(self, digest: str, data: bytes, *, max_update_bytes: int) -> None:
        """Load and check a task graph, as an agent does before it runs one."""
        session = Session(data)
        limits = task.Limits(max_update_bytes, MAX_KEPT)
        task.check_graph(session.inputs, session.outputs, kind="training", limits=limits)
        self.sessions[digest] = session

    def train(self, call: Call, offer: TaskOffer, parameters: Arrays) -> Reply:
        """Return what the device makes of `offer`; a refusal when it cannot."""
        rows, began = self.shares[call.device], time.perf_counter()
        assert rows.target is not None, "rows to learn from have a target"
        try:
            answer = task.run(
                self.sessions[call.graph],
                (rows.inputs, rows.target),
                kind="training",
                scalars=offer.scalars,
                parameters=parameters,
                kept=self.kept.get(call.device),
            )
            body = self._packed(call, answer.update, offer)
        except DeviceError as error:
            return Reply(call.device, len(rows), refused=str(error))
        self.kept[call.device] = answer.keep
        aside = float(len(self.held_out.get(call.device, ())))
        told = {**answer.metrics, HELD_OUT: aside, "seconds": time.perf_counter() - began}
        return Reply(call.device, answer.rows, body, told)

    def _packed(self, call: Call, update: Arrays, offer: TaskOffer) -> bytes:
        """Return `update` as it travels; what compression loses is kept for the next round."""
        if call.attack:
            rng = np.random.default_rng(call.seed)
            update = {name: ATTACKS[call.attack](array, rng).astype(array.dtype) for name, array in update.items()}
        if offer.clip_norm:
            update = bounded(update, offer)
        if not offer.compress:
            return tensors.pack(update)
        rng = np.random.default_rng(call.seed)
        encoded = compress.encode(update, offer.compress, residual=self.residual.get(call.device), rng=rng)
        self.residual[call.device] = encoded.residual
        return tensors.pack(encoded.arrays)

    def judge(self, model: OnnxModel, parameters: Arrays, *, kind: ModelTask, metric: str) -> list[Judged]:
        """Return how well each device's own parameters, and the shared ones, do on its held-out rows."""
        found = []
        for device, rows in self.held_out.items():
            if not len(rows):
                continue
            shared = score(model, parameters, rows, kind=kind, metric=metric)
            mine = own_parameters(self.kept.get(device, {}), parameters)
            own = score(model, mine, rows, kind=kind, metric=metric) if mine is not parameters else shared
            found.append(Judged(device, len(rows), own, shared))
        return found


def update_of(reply: Reply) -> Update:
    """Return what `reply` brings, as the server reads it; raise MalformedMessage when its body cannot be read."""
    return Update(reply.device, reply.rows, tensors.unpack(reply.body), metrics=reply.metrics, size=len(reply.body))


def bounded(update: Arrays, offer: TaskOffer) -> dict[str, np.ndarray]:
    """Return `update` clipped, and noised where the offer asks for it; the noise is the system's, not the seed's."""
    short = gaussian.clip(update, offer.clip_norm)
    if offer.noise:
        std, step = offer.noise * offer.clip_norm, gaussian.grid(offer.clip_norm)
        short = gaussian.blur(short, std=std, step=step)
    return {name: value.astype(np.float32) for name, value in short.items()}


def own_parameters(kept: Arrays, shared: Arrays) -> Arrays:
    """Return the parameters a device would predict with: its own where it keeps some, the shared ones otherwise."""
    own = {name.removeprefix(OWN): value for name, value in kept.items() if name != SEEN and VARIATE not in name}
    return {**shared, **own} if own else shared


def score(model: OnnxModel, parameters: Arrays, rows: Rows, *, kind: ModelTask, metric: str) -> float:
    """Return `metric` of `model` with these `parameters` on `rows`."""
    answers = verify.run_answers(graph.set_initializers(model, parameters), Rows(rows.inputs), kind)
    assert rows.target is not None
    return float(metrics.evaluate(kind, rows.target, answers, [metric])[metric])


ATTACKS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "garbage": lambda change, rng: rng.normal(size=change.shape),
    "flip": lambda change, rng: -3 * change,
    "scale": lambda change, rng: 20 * change,
    "nan": lambda change, rng: np.full(change.shape, np.nan),
}
