"""One federation at work: prepare, then round after round, then the gates.

Each phase either waits for messages or for a job in the worker thread; `tick` moves on when the
job is done. The decisions are `edgeml.federated`'s.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeml import graph, tasks
from edgeml.artifacts import OnnxModel, Task
from edgeml.autodiff import SGD, training_step
from edgeml.errors import EdgeMLError, QuorumNotReached
from edgeml.federated import Federation, Plan, State
from edgeml.registry import FederationRecord, Registry, RoundRecord
from edgeml.registry.records import FAILED, RUNNING, SUCCEEDED
from edgeml.server.learner import Learner, Retrain
from edgeml.server.open_round import OpenRound
from edgeml.server.roster import Roster
from edgeml_runtime.wire import DeviceError, signed, topics
from edgeml_runtime.wire.plain import to_plain

log = logging.getLogger(__name__)
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Shop:
    """What a federation works with."""

    registry: Registry
    roster: Roster
    publish: Callable[..., None]
    submit: Callable[..., Future[Any]]  # run this in the worker thread


@dataclass(frozen=True)
class Start:
    """What preparation made."""

    learner: Learner
    task: Task
    before: Scores


class Rounds:
    """The life of one FederationRecord, from REQUESTED to its end."""

    def __init__(self, record: FederationRecord, shop: Shop, retrain: Retrain) -> None:
        self.record, self._shop = dataclasses.replace(record, state=RUNNING, detail="preparing the task"), shop
        self._start: Start
        self._federation: Federation
        self._round: OpenRound | None = None
        self._patience: float | None = None  # until when a round waits for enough devices
        self._job: Future[Any] | None = None
        self._then: Callable[[Any, float], None]
        self._save()
        self._later(self._begin_learning, _prepare, record, retrain)

    @property
    def is_over(self) -> bool:
        return self.record.is_over

    def tick(self, now: float) -> None:
        """Go on if the worker is done, a deadline has passed, or enough devices have come."""
        try:
            self._tick(now)
        except (EdgeMLError, DeviceError) as error:
            self._end(FAILED, str(error))
        except Exception as error:  # the server outlives a bug in one federation; the log has its trace
            log.exception("federation %s", self.record.id)
            self._end(FAILED, f"{type(error).__name__}: {error}; the server's log has the trace")

    def uploaded(self, device: str, round_id: str, payload: bytes, *, now: float) -> None:
        """Take a header or a block of an update; one of another round is left aside."""
        current = self._round
        if current is None or current.machine.id != round_id:
            return
        try:
            current.take(device, payload, now=now)
        finally:
            self.tick(now)

    def came(self, device: str, now: float) -> None:
        """A device is online (again): what it may have missed is offered once more."""
        if self._round is not None and device in self._round.machine.cohort:
            self._round.machine.back(device, now)
            self.resend()

    def went(self, device: str, now: float) -> None:
        """A device is offline: with a quorum, nobody waits for it."""
        if self._round is not None:
            self._round.machine.lost(device, now)

    def served(self, digest: str, count: int) -> None:
        """Count bytes sent to devices for this round."""
        if self._round is not None:
            self._round.served(digest, count)

    def resend(self) -> None:
        """Publish the open round's offer; devices that are at it or done know its id."""
        if self._round is not None:
            self._shop.publish(topics.task(self._round.machine.id), self._round.envelope, qos=1)

    def _tick(self, now: float) -> None:
        if self.is_over:
            return
        if self._job is not None:
            if self._job.done():
                job, self._job = self._job, None
                self._then(job.result(), now)
        elif self._round is not None:
            self._conclude(now)
        else:
            self._open(now)

    def _begin_learning(self, start: Start, now: float) -> None:
        options = self.record.options
        self._start = start
        plan = Plan(
            rounds=options.rounds,
            min_devices=options.min_devices,
            learning_rate=options.learning_rate * start.learner.rate,
            min_rows=options.min_rows,
            deadline_s=options.deadline_s,
            seed=options.seed,
            local_epochs=options.local_epochs,
            batch_size=options.batch_size,
            compress=options.compress,
            max_abandoned=1,
        )
        self._federation = Federation(self.record.id, plan, model=self.record.model, parameters=start.task.parameters)
        self._shop.registry.put_blob(start.task.data)
        self.record = dataclasses.replace(self.record, outcome={"before": dict(start.before)})
        self._open(now)

    def _open(self, now: float) -> None:
        machine = self._federation.begin(self._samples(), now)
        if machine is None:
            self._wait_for_devices(now)
            return
        self._patience = None
        offer, blob = self._federation.offer(self._start.task)
        self._shop.registry.put_blob(blob)
        envelope = signed.sign(to_plain(offer), self._shop.registry.signing_key())
        self._round = OpenRound(machine, offer, envelope=envelope, parameters=self._federation.parameters)
        self.resend()
        number = len(self._federation.history) + 1
        self._say(f"round {number} of {self.record.options.rounds}, {len(machine.cohort)} devices")

    def _wait_for_devices(self, now: float) -> None:
        options = self.record.options
        if self._patience is None:
            self._patience = now + options.deadline_s
            self._say(f"waiting for {options.min_devices} devices online that run {self.record.model}")
        if now < self._patience:
            return
        known = self._samples()
        rows = ", ".join(f"{device} {count}" for device, count in sorted(known.items())) or "none"
        ready = sum(count >= options.min_rows for count in known.values())
        round_id = f"{self.record.id}-{len(self._federation.history) + 1}"
        error = QuorumNotReached(round_id, ready, options.min_devices)
        self._end(
            FAILED,
            f"{error}; devices online that run {self.record.model}, with their labelled rows "
            f"({options.min_rows} needed): {rows}",
        )

    def _samples(self) -> dict[str, int]:
        """Return the labelled rows of every device that is online and runs the model."""
        found = {}
        for device in self._shop.roster.online():
            running = device.reported.running if device.reported else None
            if device.reported and running and running.model == self.record.model:
                found[device.id] = device.reported.samples
        return found

    def _conclude(self, now: float) -> None:
        current = self._round
        result = self._federation.conclude(now)
        if result is None or current is None:
            return
        self._round = None
        outcome = current.machine.outcome
        assert outcome is not None
        if outcome.state is State.ABANDONED:
            reasons = [f"{device}: {why}" for device, why in sorted(outcome.refused.items())]
            reasons += [f"{device}: silent" for device in outcome.silent]
            self._end(FAILED, "; ".join([str(outcome.error), *reasons]))
            return
        done = RoundRecord(
            round=len(self._federation.history),
            participants=result.participants,
            refused=outcome.refused,
            rows=sum(update.rows for update in outcome.updates),
            metric=0.0,
            loss=0.0,
            bytes_up=result.bytes_up,
            bytes_down=current.bytes_down,
            seconds=result.seconds,
        )
        self._later(
            lambda scores, later: self._score(done, scores, later),
            _evaluate,
            self._start.learner,
            self._federation.parameters,
        )

    def _score(self, done: RoundRecord, scores: Scores, now: float) -> None:
        scored = dataclasses.replace(done, metric=float(scores["metric"]), loss=float(scores["loss"]))
        self.record = dataclasses.replace(self.record, rounds=(*self.record.rounds, scored))
        if not self._federation.finished:
            self._open(now)
            return
        self._say("the rounds are done; the aggregate is before the gates")
        self._later(self._judged, _release, self._start.learner, self._federation.parameters, self.record.rounds)

    def _judged(self, outcome: Mapping[str, Any], now: float) -> None:
        self.record = dataclasses.replace(self.record, outcome={**self.record.outcome, **outcome})
        self._end(SUCCEEDED, str(outcome.get("reason", "")))

    def _later(self, then: Callable[[Any, float], None], work: Callable[..., Any], *arguments: Any) -> None:
        self._then, self._job = then, self._shop.submit(work, *arguments)

    def _say(self, detail: str) -> None:
        self.record = dataclasses.replace(self.record, detail=detail)
        self._save()

    def _end(self, state: str, detail: str) -> None:
        self._round, self._job = None, None
        log.info("federation %s %s: %s", self.record.id, state, detail)
        self.record = dataclasses.replace(self.record, state=state, detail=detail)
        self._save()

    def _save(self) -> None:
        self._shop.registry.fleet.update_federation(self.record)


def _prepare(record: FederationRecord, retrain: Retrain) -> Start:
    learner = retrain.prepare(record)
    step = training_step(learner.model, loss=learner.loss, optimizer=SGD(momentum=record.options.momentum))
    task = tasks.training(step, epochs=record.options.local_epochs, batch_size=record.options.batch_size)
    return Start(learner, task, learner.evaluate(learner.model))


def _evaluate(learner: Learner, parameters: Mapping[str, np.ndarray]) -> Scores:
    return learner.evaluate(_model(learner, parameters))


def _release(
    learner: Learner, parameters: Mapping[str, np.ndarray], rounds: tuple[RoundRecord, ...]
) -> Mapping[str, Any]:
    return learner.release(_model(learner, parameters), rounds)


def _model(learner: Learner, parameters: Mapping[str, np.ndarray]) -> OnnxModel:
    return graph.set_initializers(learner.model, parameters)
