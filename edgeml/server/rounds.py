"""The life of one federation: prepare, then round after round, then the gates; and it outlives the server.

Each phase either waits for messages or for a job in the worker thread; `tick` moves on when the job is done. What
a restarted server needs is in the registry's journal before the next thing happens. The decisions are
`edgeml.federated`'s.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from edgeml.artifacts import OnnxModel, Task
from edgeml.errors import EdgeMLError
from edgeml.federated import State, strategy
from edgeml.registry import FederationRecord, Page, RoundRecord, Upload
from edgeml.registry.records import FAILED, RUNNING, SUCCEEDED
from edgeml.server import preparation
from edgeml.server.asking import Asking
from edgeml.server.asynchronous import Asynchronous
from edgeml.server.course import Arrays, Course, GiveUp, Kept, RoundEnd, Shop, Work, reasons
from edgeml.server.learner import Finding, Retrain
from edgeml.server.preparation import Candidate, Scores, Start
from edgeml.server.synchronous import Synchronous
from edgeml.tasks.study import Study
from edgeml_runtime.wire import DeviceError, signed, tensors, topics
from edgeml_runtime.wire.messages import RunOver
from edgeml_runtime.wire.plain import from_plain, to_plain

KEEP_S = 1.0  # at least so often is an open round written down: what it has waited for is not waited for again
ROUNDS, EVALUATING, ASKING, RELEASING = "rounds", "evaluating", "asking", "releasing"  # phases of the journal
log = logging.getLogger(__name__)


COURSES: dict[str, Callable[[Work, Shop, float], Course]] = {"sync": Synchronous, "async": Asynchronous}


class Rounds:
    """The life of one FederationRecord, from REQUESTED, or from where an earlier server left it, to its end."""

    def __init__(self, record: FederationRecord, shop: Shop, retrain: Retrain) -> None:
        self.record, self._shop = dataclasses.replace(record, state=RUNNING, detail="preparing the task"), shop
        self._start: Start
        self._course: Course | None = None
        self._phase = ROUNDS
        self._pending: tuple[RoundRecord, ...] = ()  # over, and not yet scored
        self._candidate: OnnxModel | None = None
        self._kept_at = 0.0
        self._job: Future[Any] | None = None
        self._then: Callable[[Any, float], None]
        self._save()
        self._later(self._begin, preparation.prepare, record, retrain)

    @property
    def is_over(self) -> bool:
        return self.record.is_over

    def tick(self, now: float) -> None:
        """Go on if the worker is done, a deadline has passed, or enough devices have come."""
        try:
            self._tick(now)
            self._send_asks(now)
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
            self._finish(now)
        elif self._job is None and (event := course.tick(now)):
            self._happened(event, now)
        elif course.open_rounds != before:
            self._keep(now)

    def _send_asks(self, now: float) -> None:
        """Ask devices what the open round wants to know, once the journal has it: after a death it asks the same."""
        if self._course is not None and self._course.asking and not self.is_over:
            self._keep(now)
            self._course.ask()

    def _begin(self, start: Start, now: float) -> None:
        self._start, registry = start, self._shop.registry
        if not self.record.outcome:
            self.record = dataclasses.replace(self.record, outcome={"before": dict(start.before)})
        self._course = COURSES[self.record.options.mode](self._work("", start.what), self._shop, now)
        page, uploads = registry.journals.read(self.record.id)
        if page is None:
            self._keep(now, arrays=True)
            self._tick(now)
            return
        self._phase = page.phase
        done = f"{len(self.record.rounds)} rounds done, {len(uploads)} updates of the open one kept"
        log.info("federation %s goes on (%s): %s", self.record.id, page.phase, done)
        self._say(f"goes on after a restart of the server: {done}")
        if page.phase in (ROUNDS, EVALUATING):
            self._course.resume(page.facts["course"], tensors.unpack(page.arrays or b""), uploads, now=now)
            self._go_on([from_plain(RoundRecord, plain) for plain in page.facts["pending"]])
            return
        model = OnnxModel(registry.blob(page.facts["candidate"]), source=start.learner.model.digest)
        resumed = functools.partial(self._resume_asking, page=page, uploads=uploads)
        self._later(resumed, preparation.asked_about, start.learner, model, self.record.options)

    def _resume_asking(self, candidate: Candidate, now: float, *, page: Page, uploads: list[Upload]) -> None:
        self._candidate = candidate.model
        self._course = asking = Asking(candidate.studies, self._work, shop=self._shop, now=now)
        asking.resume(page.facts["course"], tensors.unpack(page.arrays or b""), uploads, now=now)
        if self._phase == RELEASING:
            self._release(now)

    def _go_on(self, pending: list[RoundRecord]) -> None:
        """Take up what the earlier server was at."""
        known = {done.round for done in self.record.rounds}
        waiting = [done for done in pending if done.round not in known]
        if self._phase == EVALUATING and waiting and self._course is not None:
            self._evaluate(waiting[0], self._course.parameters)

    def _work(self, name: str, what: Task | Study) -> Work:
        """Return the work on `what`: the federation's own, or a question that has a `name`."""
        run, plan = self.record.id, preparation.plan_of(self.record.options, self._start.learner)
        say = self._say if not name else lambda detail: self._say(f"asking the fleet ({name}): {detail}")
        named = f"{run}-{name}" if name else run
        return Work(named, self.record.model, what, options=self.record.options, plan=plan, say=say)

    def _happened(self, event: RoundEnd | GiveUp, now: float) -> None:
        if isinstance(event, GiveUp):
            quorum, last = self.record.options.min_devices, self.record.rounds[-1:]
            told = [why for done in last for why in reasons(done, run=self.record.id, quorum=quorum)]
            self._end(FAILED, "; ".join([event.reason, *told]))
        elif self._phase == ASKING:
            self._keep(now, arrays=True)
        elif event.record.state == State.ABANDONED.value or not event.parameters:  # a sum is no model yet
            metric, loss = self._last_scores()
            self._finish_round(dataclasses.replace(event.record, metric=metric, loss=loss), now, arrays=True)
        else:
            self._phase, self._pending = EVALUATING, (event.record,)
            self._keep(now, arrays=True)
            self._evaluate(event.record, event.parameters)

    def _evaluate(self, done: RoundRecord, parameters: Arrays) -> None:
        def scored(scores: Scores, now: float) -> None:
            record = dataclasses.replace(done, metric=float(scores["metric"]), loss=float(scores["loss"]))
            self._finish_round(record, now)

        self._later(scored, preparation.evaluate, self._start.learner, parameters)

    def _finish_round(self, done: RoundRecord, now: float, *, arrays: bool = False) -> None:
        self.record = dataclasses.replace(self.record, rounds=(*self.record.rounds, done))
        self._save()  # before the journal: a restarted server must not score this round twice
        self._phase, self._pending = ROUNDS, ()
        self._keep(now, arrays=arrays)
        self._tick(now)

    def _finish(self, now: float) -> None:
        """The course is at its end: make the candidate of it, or, after the questions, bring it before the gates."""
        course, options, learner = self._course, self.record.options, self._start.learner
        if isinstance(course, Asking):
            self._release(now)
        elif isinstance(course, Synchronous) and options.family:
            self._later(self._ask, preparation.fitted, learner, course.survey.result(), options)
        elif course is not None:
            self._later(self._ask, preparation.trained, learner, course.parameters, options)

    def _ask(self, candidate: Candidate, now: float) -> None:
        self._phase, self._candidate = ASKING, candidate.model
        self._shop.registry.put_blob(candidate.model.data)
        self._course = Asking(candidate.studies, self._work, shop=self._shop, now=now)
        self._keep(now, arrays=True)
        self._tick(now)

    def _release(self, now: float) -> None:
        assert isinstance(self._course, Asking) and self._candidate is not None
        self._phase = RELEASING
        self._keep(now, arrays=True)
        self._say("the rounds are done; the aggregate is before the gates")
        closed = tuple(done for done in self.record.rounds if done.state == State.CLOSED.value)
        findings = self._course.findings
        self._later(self._judged, self._start.learner.release, self._candidate, closed, findings)

    def _judged(self, outcome: Mapping[str, Any], now: float) -> None:
        findings = self._course.findings if isinstance(self._course, Asking) else {}
        fleet = {name: _told(one) for name, one in findings.items()}
        self.record = dataclasses.replace(self.record, outcome={**self.record.outcome, "fleet": fleet, **outcome})
        self._end(SUCCEEDED, str(outcome.get("reason", "")))

    def _last_scores(self) -> tuple[float, float]:
        if self.record.rounds:
            return self.record.rounds[-1].metric, self.record.rounds[-1].loss
        before = self.record.outcome["before"]
        return float(before["metric"]), float(before["loss"])

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
        stays = state == SUCCEEDED and strategy(self.record.options.strategy).personal != ""
        over = RunOver(run=self.record.id, release=(self.record.outcome.get("released") or None) if stays else None)
        envelope = signed.sign(to_plain(over), self._shop.registry.signing_key())
        self._shop.publish(topics.task(self.record.id), envelope, qos=1)  # nothing is kept for rounds that never come

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
        candidate = "" if self._candidate is None else self._candidate.digest
        facts = {"course": self._course.facts(now), "pending": to_plain(self._pending), "candidate": candidate}
        return Page(phase=self._phase, facts=facts)


def _told(finding: Finding) -> dict[str, Any]:
    """Return what the record says of a finding: what it cost, and why it has no result."""
    return {name: value for name, value in to_plain(finding).items() if name != "result"}
