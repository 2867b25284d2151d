"""The hands of a federated round: fetch the task, run it over the local rows, send the update.

The run happens in a worker thread: predictions and the agent's loop go on. Rows are read only then,
and nothing but the checked outputs of the task leaves this module.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml_runtime import outgoing, task
from edgeml_runtime.config import BLOBS, FEEDBACK, Config
from edgeml_runtime.errors import DeviceError, MalformedMessage, TaskRefused
from edgeml_runtime.feedback import Feedback
from edgeml_runtime.learner import Effect, Facts, Fetch, LocalRound, Phase, Refuse, Train, Upload
from edgeml_runtime.masker import Masker
from edgeml_runtime.pull import Pull, Want
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Serving
from edgeml_runtime.session import Session
from edgeml_runtime.task import Limits, Rows
from edgeml_runtime.wire import blocks, signed, tensors, topics
from edgeml_runtime.wire.messages import TaskOffer, UpdateHeader, encode, from_document
from edgeml_runtime.wire.updates import sign_update
from edgeml_runtime.worker import Outcome, Worker

WHO = "round"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What one round's upload is made of."""

    body: bytes
    rows: int
    metrics: dict[str, float]


class Trainer:
    """Carries one federated round at a time; `send(topic, payload, qos=...)` publishes."""

    def __init__(
        self,
        config: Config,
        state: Path,
        *,
        boot_id: str,
        serving: Serving,
        samples: Samples,
        post: Callable[[Outcome], None],
        send: Callable[..., object],
        key: Ed25519PrivateKey,
    ) -> None:
        self._config, self._boot_id, self._key = config, boot_id, key
        self._serving, self._samples, self._send = serving, samples, send
        self._blobs = state / BLOBS
        self.machine = LocalRound(config.policy)
        self.pull: Pull | None = None
        self._worker = Worker(WHO, post)
        self._trained: Trained | None = None
        self._feedback = Feedback(state / FEEDBACK)
        self.masker = Masker(
            config.device,
            key,
            config.trusted,
            send=send,
            upload=lambda offer, body: self._publish(offer, body),
        )

    def offered(self, envelope: bytes, round_id: str, now: float) -> None:
        """Take a signed offer from the topic of `round_id`; raise WireError when nobody trusted signed it."""
        offer = from_document(TaskOffer, signed.verify(envelope, self._config.trusted))
        if offer.round != round_id:
            raise MalformedMessage(f"an offer of round {offer.round} arrived on the topic of {round_id}")
        running = self._serving.running
        model = running.model if running else ""
        facts = Facts(
            self._config.device, self._samples.labelled(), model, stored=self._samples.usable(), key=self.masker.public
        )
        self.do(self.machine.offered(offer, facts, now))

    def ended(self, outcome: Outcome, now: float) -> None:
        """Take what the worker has done."""
        offer = self.machine.offer
        if offer is None or outcome.tag != offer.round:
            return
        if outcome.event == "trained":
            self._trained = outcome.value
        self.do(
            self.machine.outcome(outcome.event, reason=f"{outcome.reason}: {outcome.detail}" if outcome.error else "")
        )

    def asked(self, payload: bytes, round_id: str, now: float) -> None:
        """Take a signed ask of secure aggregation; raise WireError when nobody trusted signed it."""
        self.masker.asked(payload, round_id, now)

    def tick(self, now: float) -> None:
        """Let the deadline pass."""
        self.do(self.machine.tick(now))
        self.masker.tick(now)

    def pulled(self, now: float) -> None:
        """Take note of the progress of `pull`, which the loop drives."""
        if self.pull is not None and self.pull.done:
            self.pull = None
            self.do(self.machine.outcome("arrived"))

    def failed(self, error: DeviceError | OSError, now: float) -> None:
        """Take note that `pull` cannot go on."""
        self.do(self.machine.outcome("failed", reason=f"{type(error).__name__}: {error}"))

    def reconnected(self, now: float) -> None:
        """Answer again what the broker may have lost."""
        effects = self.machine.reconnected(now)
        self.do(effects)
        if not effects:
            self.masker.reconnected()

    def do(self, effects: list[Effect]) -> None:
        """Carry out what the machine asks for."""
        for effect in effects:
            match effect:
                case Fetch(offer):
                    self._fetch(offer)
                case Train(offer):
                    self._worker.submit(offer.round, "trained", lambda offer=offer: self._train(offer))  # type: ignore[misc]
                case Upload(offer):
                    self._upload(offer)
                case Refuse(offer, reason):
                    log.info("round %s: no part: %s", offer.round, reason)
                    self._answer(self._header(offer.round, refused=reason))
        if self.machine.phase is not Phase.FETCHING and self.pull is not None:
            self.pull.close()
            self.pull = None

    def keep(self) -> set[str]:
        """Return the digests of blobs that the next round may want again: the graph, not the parameters."""
        return {self.machine.offer.graph} if self.machine.offer else set()

    def _fetch(self, offer: TaskOffer) -> None:
        if self.pull is not None:
            self.pull.close()
        self._trained = None
        wanted = [
            Want(digest=offer.graph, size=offer.graph_bytes),
            Want(digest=offer.parameters, size=offer.parameters_bytes),
        ]
        self.pull = Pull(self._blobs, wanted)

    def _train(self, offer: TaskOffer) -> Trained:
        """Run the task once over all the rows it may see. In the worker's thread."""
        start, policy = time.perf_counter(), self._config.policy
        session = Session(self._blobs / offer.graph)
        limits = Limits(min(offer.max_update_bytes, policy.max_update_bytes), policy.max_kept_bytes)
        task.check_graph(session.inputs, session.outputs, kind=offer.kind, limits=limits)
        rows = self._rows(labelled=task.takes_labels(session.inputs), needed=max(offer.min_rows, policy.min_rows))
        parameters = tensors.unpack((self._blobs / offer.parameters).read_bytes())
        answer = task.run(session, rows, kind=offer.kind, scalars=offer.scalars, parameters=parameters)
        asked = outgoing.terms(offer, policy)
        body = outgoing.packed(outgoing.bounded(answer.update, asked), offer, self._feedback)
        if len(body) > limits.update:
            raise TaskRefused(f"an update of {len(body):,} bytes, and {limits.update:,} are allowed")
        return Trained(
            body, answer.rows, {**outgoing.told(answer.metrics, offer, asked), "seconds": time.perf_counter() - start}
        )

    def _rows(self, *, labelled: bool, needed: int) -> Rows:
        """Return the local rows a task may see; raise TaskRefused when they are fewer than `needed`."""
        rows: Rows = self._samples.rows() if labelled else (self._samples.inputs(), None)
        inputs, target = rows
        count = len(next(iter(inputs.values()), ())) if target is None else len(target)
        if count < needed:
            what = "labelled rows, and {} are needed: label more" if labelled else "rows, and {} are needed"
            raise TaskRefused(f"{count} {what.format(needed)}")
        return rows

    def _upload(self, offer: TaskOffer) -> None:
        trained = self._trained
        if trained is None:
            return
        if offer.secure is None:
            self._publish(offer, trained.body)
        else:
            self.masker.ready(offer, tensors.unpack(trained.body), rows=trained.rows, now=time.monotonic())

    def _publish(self, offer: TaskOffer, body: bytes) -> None:
        """Send an update, masked or not: its header, and blocks."""
        if (trained := self._trained) is None:
            return
        digest = blocks.digest_of(body)
        self._answer(
            self._header(offer.round, rows=trained.rows, digest=digest, size=len(body), metrics=trained.metrics)
        )
        for index, data in enumerate(blocks.split(body)):
            self._send(topics.update(self._config.device, offer.round), blocks.encode(digest, index, data), qos=1)

    def _answer(self, header: UpdateHeader) -> None:
        header = sign_update(header, self._key)
        self._send(topics.update(self._config.device, header.round), encode(header), qos=1)

    def _header(self, round_id: str, *, rows: int = 0, **facts: object) -> UpdateHeader:
        return UpdateHeader(round=round_id, device=self._config.device, boot_id=self._boot_id, rows=rows, **facts)  # type: ignore[arg-type]
