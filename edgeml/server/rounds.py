"""The life of one federation: prepare, then round after round, then the gates; and it outlives the server.

Each phase either waits for messages or for a job in the worker thread; `tick` moves on when the job is done. What
a restarted server needs is in the registry's journal before the next thing happens. The decisions are
`edgeml.federated`'s.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeml import graph
from edgeml.artifacts import OnnxModel, Task
from edgeml.errors import EdgeMLError, QuorumNotReached
from edgeml.federated import Plan, State, strategy
from edgeml.federated.local import task_of
from edgeml.registry import FederationOptions, FederationRecord, Page, RoundRecord
from edgeml.registry.records import FAILED, RUNNING, SUCCEEDED
from edgeml.server.asynchronous import Asynchronous
from edgeml.server.course import Arrays, Course, GiveUp, Kept, RoundEnd, Shop, Synchronous, Work
from edgeml.server.learner import Learner, Retrain
from edgeml_runtime.wire import DeviceError, signed, tensors, topics
from edgeml_runtime.wire.messages import RunOver
from edgeml_runtime.wire.plain import from_plain, to_plain

KEEP_S = 1.0  # at least so often is an open round written down: what it has waited for is not waited for again
ROUNDS, EVALUATING, RELEASING = "rounds", "evaluating", "releasing"  # phases of the journal
log = logging.getLogger(__name__)
Scores = Mapping[str, float]


@dataclass(frozen=True)
class Start:
    """What preparation made."""

    learner: Learner
    task: Task
    before: Scores


class Rounds:
    """The life of one FederationRecord, from REQUESTED, or from where an earlier server left it, to its end."""

    def __init__(self, record: FederationRecord, shop: Shop, retrain: Retrain) -> None:
        self.record, self._shop = dataclasses.replace(record, state=RUNNING, detail="preparing the task"), shop
        self._start: Start
        self._course: Course | None = None
        self._phase = ROUNDS
        self._pending: tuple[RoundRecord, ...] = ()  # over, and not yet scored
        self._kept_at = 0.0
        self._job: Future[Any] | None = None
        self._then: Callable[[Any, float], None]
        self._save()
        self._later(self._begin, _prepare, record, retrain)

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
        """Take a header or a block of an update."""
        if self._course is None:
            return
        try:
            self._course.uploaded(device, round_id, payload, now=now)
        finally:
            self.tick(now)

    def said(self, device: str, round_id: str, payload: bytes, *, now: float) -> None:
        """Take what a device says in secure aggregation."""
        if self._course is None:
            return
        try:
            self._course.said(device, round_id, payload, now=now)
        finally:
            self.tick(now)

    def came(self, device: str, now: float, *, live: bool) -> None:
        """A device is online (again); `live` is False where the broker had kept the message."""
        if self._course is not None:
            self._course.came(device, now, live=live)

    def went(self, device: str, now: float) -> None:
        """A device is offline."""
        if self._course is not None:
            self._course.went(device, now)

    def served(self, digest: str, count: int) -> None:
        """Count bytes sent to devices."""
        if self._course is not None:
            self._course.served(digest, count)

    def resend(self) -> None:
        """Publish again what devices must know: the broker may have forgotten it."""
        if self._course is not None:
            self._course.resend()

    def flush(self, now: float) -> None:
        """Write down what has come since the last time."""
        if self._course is None or self.is_over:
            return
        kept = self._course.kept()
        if kept.uploads or (self._course.open_rounds and now >= self._kept_at + KEEP_S):
            self._write(self._page(now), kept, now)

    def _tick(self, now: float) -> None:
        if self.is_over:
            return
        if self._job is not None and self._job.done():
            job, self._job = self._job, None
            self._then(job.result(), now)
            return
        course = self._course
        if course is None:
            return
        before = course.open_rounds
        course.serve(now)
        if self._job is None and course.finished:
            self._release(now)
        elif self._job is None and (event := course.tick(now)):
            self._happened(event, now)
        elif course.open_rounds != before:
            self._keep(now)

    def _begin(self, start: Start, now: float) -> None:
        self._start = start
        registry, options = self._shop.registry, self.record.options
        registry.put_blob(start.task.data)
        if not self.record.outcome:
            self.record = dataclasses.replace(self.record, outcome={"before": dict(start.before)})
        plan, build = plan_of(options, start.learner), COURSES[options.mode]
        work = Work(self.record.id, self.record.model, start.task, options=options, plan=plan, say=self._say)
        self._course = build(work, self._shop, now)
        page, uploads = registry.journals.read(self.record.id)
        if page is None:
            self._keep(now, arrays=True)
            self._tick(now)
            return
        arrays = tensors.unpack(page.arrays or b"")
        self._course.resume(page.facts["course"], arrays, uploads, now=now)
        self._phase = page.phase
        done = f"{len(self.record.rounds)} rounds done, {len(uploads)} updates of the open one kept"
        log.info("federation %s goes on (%s): %s", self.record.id, page.phase, done)
        self._say(f"goes on after a restart of the server: {done}")
        self._go_on([from_plain(RoundRecord, plain) for plain in page.facts["pending"]], now)

    def _go_on(self, pending: list[RoundRecord], now: float) -> None:
        """Take up what the earlier server was at."""
        known = {done.round for done in self.record.rounds}
        waiting = [done for done in pending if done.round not in known]
        if self._phase == EVALUATING and waiting and self._course is not None:
            self._evaluate(waiting[0], self._course.parameters)
        elif self._phase == RELEASING:
            self._release(now)

    def _happened(self, event: RoundEnd | GiveUp, now: float) -> None:
        if isinstance(event, GiveUp):
            self._end(FAILED, "; ".join([event.reason, *self._reasons()]))
        elif event.record.state == State.ABANDONED.value:
            metric, loss = self._last_scores()
            self._finish_round(dataclasses.replace(event.record, metric=metric, loss=loss), now)
        else:
            self._phase, self._pending = EVALUATING, (event.record,)
            self._keep(now, arrays=True)
            self._evaluate(event.record, event.parameters)

    def _evaluate(self, done: RoundRecord, parameters: Arrays) -> None:
        def scored(scores: Scores, now: float) -> None:
            record = dataclasses.replace(done, metric=float(scores["metric"]), loss=float(scores["loss"]))
            self._finish_round(record, now)

        self._later(scored, _evaluate, self._start.learner, parameters)

    def _finish_round(self, done: RoundRecord, now: float) -> None:
        self.record = dataclasses.replace(self.record, rounds=(*self.record.rounds, done))
        self._save()  # before the journal: a restarted server must not score this round twice
        self._phase, self._pending = ROUNDS, ()
        self._keep(now)
        self._tick(now)

    def _release(self, now: float) -> None:
        self._phase = RELEASING
        self._keep(now)
        self._say("the rounds are done; the aggregate is before the gates")
        assert self._course is not None
        closed = tuple(done for done in self.record.rounds if done.state == State.CLOSED.value)
        self._later(self._judged, _release, self._start.learner, self._course.parameters, closed)

    def _judged(self, outcome: Mapping[str, Any], now: float) -> None:
        self.record = dataclasses.replace(self.record, outcome={**self.record.outcome, **outcome})
        self._end(SUCCEEDED, str(outcome.get("reason", "")))

    def _last_scores(self) -> tuple[float, float]:
        if self.record.rounds:
            return self.record.rounds[-1].metric, self.record.rounds[-1].loss
        before = self.record.outcome["before"]
        return float(before["metric"]), float(before["loss"])

    def _reasons(self) -> list[str]:
        """Return why the last round was abandoned, device by device."""
        if not self.record.rounds or self.record.rounds[-1].state != State.ABANDONED.value:
            return []
        last = self.record.rounds[-1]
        error = QuorumNotReached(
            f"{self.record.id}-{last.round}", len(last.participants), self.record.options.min_devices
        )
        told = [f"{device}: {why}" for device, why in sorted(last.refused.items())]
        return [str(error), *told, *(f"{device}: silent" for device in last.silent)]

    def _later(self, then: Callable[[Any, float], None], work: Callable[..., Any], *arguments: Any) -> None:
        self._then, self._job = then, self._shop.submit(work, *arguments)

    def _say(self, detail: str) -> None:
        self.record = dataclasses.replace(self.record, detail=detail)
        self._save()

    def _end(self, state: str, detail: str) -> None:
        self._course, self._job = None, None
        log.info("federation %s %s: %s", self.record.id, state, detail)
        self.record = dataclasses.replace(self.record, state=state, detail=detail)
        self._save()
        self._shop.registry.journals.forget(self.record.id)
        over = signed.sign(to_plain(RunOver(run=self.record.id)), self._shop.registry.signing_key())
        self._shop.publish(topics.task(self.record.id), over, qos=1)  # devices keep nothing for rounds that never come

    def _save(self) -> None:
        self._shop.registry.fleet.update_federation(self.record)

    def _keep(self, now: float, *, arrays: bool = False) -> None:
        assert self._course is not None
        page = self._page(now)
        if arrays:
            page = dataclasses.replace(page, arrays=tensors.pack(self._course.arrays()))
        self._write(page, self._course.kept(), now)

    def _write(self, page: Page, kept: Kept, now: float) -> None:
        self._shop.registry.journals.write(self.record.id, page, kept.uploads, anew=kept.anew)
        self._kept_at = now

    def _page(self, now: float) -> Page:
        assert self._course is not None
        return Page(phase=self._phase, facts={"course": self._course.facts(now), "pending": to_plain(self._pending)})


COURSES: dict[str, Callable[[Work, Shop, float], Course]] = {"sync": Synchronous, "async": Asynchronous}


def plan_of(options: FederationOptions, learner: Learner) -> Plan:
    """Return the plan that `options` ask for."""
    return Plan(
        rounds=options.rounds,
        min_devices=options.min_devices,
        learning_rate=options.learning_rate * learner.rate,
        min_rows=options.min_rows,
        deadline_s=options.deadline_s,
        seed=options.seed,
        local_epochs=options.local_epochs,
        batch_size=options.batch_size,
        compress=options.compress,
        privacy=options.privacy,
        secure=options.secure,
        strategy=options.strategy,
        mu=options.mu,
        momentum=options.momentum,
        max_abandoned=options.max_abandoned,
        cohort=options.cohort,
        patience=options.patience,
        mode=options.mode,
    )


def _prepare(record: FederationRecord, retrain: Retrain) -> Start:
    learner, options = retrain.prepare(record), record.options
    task = task_of(
        strategy(options.strategy, without=frozenset({"release"})),
        learner.model,
        loss=learner.loss,
        momentum=options.momentum,
        epochs=options.local_epochs,
        batch_size=options.batch_size,
    )
    return Start(learner, task, learner.evaluate(learner.model))


def _evaluate(learner: Learner, parameters: Mapping[str, np.ndarray]) -> Scores:
    return learner.evaluate(_model(learner, parameters))


def _release(
    learner: Learner, parameters: Mapping[str, np.ndarray], rounds: tuple[RoundRecord, ...]
) -> Mapping[str, Any]:
    return learner.release(_model(learner, parameters), rounds)


def _model(learner: Learner, parameters: Mapping[str, np.ndarray]) -> OnnxModel:
    return graph.set_initializers(learner.model, parameters)
