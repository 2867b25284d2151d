"""The hands of a federated round: fetch the task, run it over the local rows, send the update.

The run happens in a child process that a worker thread waits for: predictions and the agent's loop go on, whatever
the graph does. Nothing but the checked outputs of the task leaves this module.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml_runtime import outgoing
from edgeml_runtime.answered import Answered, Trained
from edgeml_runtime.config import BLOBS, FEEDBACK, KEPT, TASKS, Config
from edgeml_runtime.errors import DeviceError, MalformedMessage, TaskRefused
from edgeml_runtime.feedback import Feedback
from edgeml_runtime.kept import Kept
from edgeml_runtime.learner import Effect, Facts, Fetch, LocalRound, Phase, Refuse, Train, Upload
from edgeml_runtime.ledger import Ledger
from edgeml_runtime.masker import Masker
from edgeml_runtime.pull import Pull, Want
from edgeml_runtime.samples import Samples
from edgeml_runtime.serving import Serving
from edgeml_runtime.stem import Stem
from edgeml_runtime.task_child import LOG, Order, TaskChild
from edgeml_runtime.wire import blocks, holdout, signed, tensors, topics
from edgeml_runtime.wire.messages import RunOver, TaskOffer, UpdateHeader, encode, from_document
from edgeml_runtime.wire.tasks import HELD_OUT
from edgeml_runtime.wire.updates import sign_update
from edgeml_runtime.worker import Outcome, Worker

WHO, SECONDS, ANSWER = "round", "seconds", "answer.safetensors"
log = logging.getLogger(__name__)


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
        stem: Stem | None = None,
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
            upload=lambda offer, masked: self._publish(offer, masked),
        )
        self._child, self._runs = TaskChild(state, memory=config.policy.max_task_memory, stem=stem), 0
        self._ledger = Ledger(state / TASKS / LOG)
        self._answered = Answered(state / TASKS / ANSWER, config.policy)
        self._kept = Kept(state / KEPT, most=config.policy.max_kept_bytes)
        self._kept.expire()

    def offered(self, envelope: bytes, round_id: str, now: float) -> None:
        """Take a signed offer from the topic of `round_id`; raise WireError when nobody trusted signed it."""
        keys = self._config.policy.task_keys or self._config.trusted
        document = signed.verify(envelope, keys)
        if document.get("kind") == "over":
            self._over(from_document(RunOver, document), round_id)
            return
        offer = from_document(TaskOffer, document)
        if offer.round != round_id:
            raise MalformedMessage(f"an offer of round {offer.round} arrived on the topic of {round_id}")
        running = self._serving.running
        model = running.model if running else ""
        labelled = self._samples.labelled()
        seen = self._samples.labelled(holdout.part_of(offer.kind, offer.held_out))
        facts = Facts(
            self._config.device,
            seen,
            model,
            stored=self._samples.usable(),
            key=self.masker.public,
            ran_today=self._ledger.today(time.time()),
            aside=labelled - seen,
        )
        self.do(self.machine.offered(offer, facts, now))

    def ended(self, outcome: Outcome, now: float) -> None:
        """Take what the worker has done."""
        offer = self.machine.offer
        if offer is None or outcome.tag != self._tag(offer):
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
        """Let the deadline pass, and the child go that has had nothing to do."""
        self.do(self.machine.tick(now))
        self.masker.tick(now)
        self._child.rest(now)

    def close(self) -> None:
        """End the child."""
        self._child.close()

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
                    self._runs += 1
                    self._submit(offer, self._tag(offer))
                case Upload(offer):
                    self._upload(offer)
                case Refuse(offer, reason):
                    log.info("round %s: no part: %s", offer.round, reason)
                    self._answer(self._header(offer.round, refused=reason))
        if self.machine.phase is not Phase.FETCHING and self.pull is not None:
            self.pull.close()
            self.pull = None
        if self.machine.phase is not Phase.TRAINING:
            self._child.stop()

    def keep(self) -> set[str]:
        """Return the digests of blobs that the next round may want again: the graph, not the parameters."""
        return {self.machine.offer.graph} if self.machine.offer else set()

    def _over(self, over: RunOver, named: str) -> None:
        """Forget what was kept for rounds that will not come, unless a release will ask for it."""
        if over.run != named:
            raise MalformedMessage(f"the end of federation {over.run} arrived on the topic of {named}")
        self._answered.forget()
        if over.release and self._config.policy.personal:
            log.info("federation %s is over; what was kept of it waits for release %s", over.run, over.release)
        elif self._kept.forget(over.run):
            log.info("federation %s is over; what was kept of it is deleted", over.run)

    def _fetch(self, offer: TaskOffer) -> None:
        if self.pull is not None:
            self.pull.close()
        self._trained = None
        wanted = [
            Want(digest=offer.graph, size=offer.graph_bytes),
            Want(digest=offer.parameters, size=offer.parameters_bytes),
        ]
        self.pull = Pull(self._blobs, wanted)

    def _submit(self, offer: TaskOffer, tag: str) -> None:
        self._worker.submit(tag, "trained", lambda: self._train(offer, tag))

    def _train(self, offer: TaskOffer, tag: str) -> Trained:
        """Have the task run once over all the rows it may see. In the worker's thread."""
        if self.machine.phase is not Phase.TRAINING or tag != self._tag(offer):
            raise TaskRefused("the round was over before its task began")
        if (given := self._answered.to(offer)) is not None:
            return given
        policy = self._config.policy
        order = Order(
            round=offer.round,
            run=offer.federation,
            kind=offer.kind,
            graph=offer.graph,
            parameters=offer.parameters,
            scalars=offer.scalars,
            min_rows=max(offer.min_rows, policy.min_rows),
            update_bytes=min(offer.max_update_bytes, policy.max_update_bytes),
            kept_bytes=policy.max_kept_bytes,
            constant_bytes=policy.max_task_bytes,
            operators=policy.operators,
            held_out=offer.held_out,
        )
        ran, update = self._child.run(order, max_s=policy.max_task_s)
        asked = outgoing.terms(offer, policy)
        body = outgoing.packed(outgoing.bounded(tensors.unpack(update), asked), offer, self._feedback)
        if len(body) > order.update_bytes:
            raise TaskRefused(f"an update of {len(body):,} bytes, and {order.update_bytes:,} are allowed")
        beside = {name: value for name, value in ran.metrics.items() if name in (SECONDS, HELD_OUT)}
        losses = {name: value for name, value in ran.metrics.items() if name not in beside}
        told = outgoing.told(losses, offer, asked) | beside
        trained = Trained(body, ran.rows, told)
        self._answered.keep(offer, trained)
        return trained

    def _tag(self, offer: TaskOffer) -> str:
        return f"{offer.round}/{self._runs}"

    def _upload(self, offer: TaskOffer) -> None:
        trained = self._trained
        if trained is None:
            return
        if offer.secure is None:
            self._publish(offer, trained)
        else:
            self.masker.ready(offer, trained, now=time.monotonic())

    def _publish(self, offer: TaskOffer, trained: Trained) -> None:
        """Send an update, masked or not: its header, and blocks."""
        body = trained.body
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
