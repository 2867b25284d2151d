"""How rounds follow one another, the synchronous way: one is open at a time, and the next begins where it ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeml.artifacts import Task
from edgeml.errors import QuorumNotReached
from edgeml.federated import Candidate, Federation, Outcome, RoundResult, State, Survey, fault_of
from edgeml.federated.journal import (
    FederationState,
    SurveyState,
    arrays_of,
    resume,
    resume_survey,
    state_of,
    survey_arrays,
    survey_state,
)
from edgeml.registry import RoundRecord, Upload
from edgeml.server.arrivals import read_header
from edgeml.server.candidates import candidates, keyless
from edgeml.server.course import Arrays, GiveUp, Kept, RoundEnd, Shop, Work, own_losses
from edgeml.server.open_round import OpenRound
from edgeml_runtime.wire import WireError, blocks, messages, signed, topics
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.plain import from_plain, to_plain
from edgeml_runtime.wire.tasks import LABELLED

PAUSE_S = 1.0  # after an abandoned round, doubled after every further one in a row
MOST_ASTRAY = 1000  # devices counted between two rounds


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the journal keeps of a synchronous course: of a federation or of a survey."""

    federation: FederationState | None = None
    survey: SurveyState | None = None
    envelope: str = ""  # digest of the open round's signed offer
    bytes_down: int = 0


class Synchronous:
    """One round after another, of a federation that trains or of a survey that adds up."""

    def __init__(self, work: Work, shop: Shop, now: float) -> None:
        self._federation, self._task = _sequence(work), work.what if isinstance(work.what, Task) else None
        self._options, self._say, self._shop = work.options, work.say, shop
        self._open: OpenRound | None = None
        self._envelope = ""
        self._patience: float | None = None  # until when it waits for enough devices
        self._not_before = 0.0
        self._astray: dict[str, Counter[str]] = {}  # what came when no round could count it

    @property
    def finished(self) -> bool:
        return self._federation.finished and not self._federation.given_up

    @property
    def open_rounds(self) -> tuple[str, ...]:
        return () if self._open is None else (self._open.machine.id,)

    @property
    def parameters(self) -> Arrays:
        return self._federation.parameters

    @property
    def survey(self) -> Survey:
        """The survey it goes through, where its work is a study."""
        assert isinstance(self._federation, Survey)
        return self._federation

    def serve(self, now: float) -> None:
        """Nothing: between two rounds nobody is at work."""

    def tick(self, now: float) -> RoundEnd | GiveUp | None:
        """Conclude the round that is over, or open the next; say what came of it."""
        if self._open is not None:
            return self._conclude(self._open, now)
        if self._federation.given_up:
            return GiveUp(f"{self._options.max_abandoned} rounds in a row were abandoned")
        return None if now < self._not_before else self._begin(now)

    def uploaded(self, device: str, round_id: str, payload: bytes, *, now: float) -> None:
        """Take a header or a block of an update; one of an earlier round is counted and left aside."""
        if self._open is not None and self._open.machine.id == round_id:
            self._open.take(device, payload, now=now)
        elif not blocks.is_block(payload):
            try:
                read_header(payload, device, self._shop.roster.key)
            except WireError as error:
                self._count_astray(device, round_id, fault_of(error))
                raise
            self._count_astray(device, round_id)

    def said(self, device: str, round_id: str, payload: bytes, *, now: float) -> None:
        """Take what a device says in secure aggregation."""
        if self._open is not None and self._open.machine.id == round_id:
            self._open.said(device, payload, now=now)
        else:
            self._count_astray(device, round_id)

    def came(self, device: str, now: float, *, live: bool) -> None:
        """A device is online (again): what it may have missed is offered once more."""
        if self._open is not None and device in self._open.machine.cohort:
            self._open.machine.back(device, now)
            if live and device not in self._open.machine.updates:
                self.resend()
            self._open.remind(device)

    def went(self, device: str, now: float) -> None:
        """A device is offline: with a quorum, nobody waits for it."""
        if self._open is not None:
            self._open.machine.lost(device, now)

    def served(self, digest: str, count: int) -> None:
        """Count bytes sent to devices for this round."""
        if self._open is not None:
            self._open.served(digest, count)

    @property
    def asking(self) -> bool:
        return self._open is not None and self._open.asking

    def ask(self) -> None:
        """Send what secure aggregation asks of devices."""
        if self._open is not None:
            for topic, payload in self._open.asks(self._shop.registry.signing_key()):
                self._shop.publish(topic, payload, qos=1)

    def resend(self) -> None:
        """Publish the open round's offer; devices that are at it or done know its id. Under masks, ask once more."""
        if self._open is not None and not self._open.remind_all():
            self._shop.publish(topics.task(self._open.machine.id), self._open.envelope, qos=1)

    # --- the journal

    def facts(self, now: float) -> dict[str, Any]:
        """Return JSON values that `resume` takes."""
        down, it = self._open.bytes_down if self._open else 0, self._federation
        if isinstance(it, Survey):
            known = Facts(survey=survey_state(it, now), envelope=self._envelope, bytes_down=down)
        else:
            known = Facts(federation=state_of(it, now), envelope=self._envelope, bytes_down=down)
        found: dict[str, Any] = to_plain(known)
        return found

    def arrays(self) -> Arrays:
        it = self._federation
        return survey_arrays(it) if isinstance(it, Survey) else arrays_of(it)

    def kept(self) -> Kept:
        return Kept([], anew=True) if self._open is None else Kept(self._open.kept())

    def resume(self, facts: Mapping[str, Any], arrays: Arrays, uploads: Sequence[Upload], *, now: float) -> None:
        """Go on where an earlier server stood; devices are offered the same round, under the same signature."""
        known = from_plain(Facts, dict(facts))
        it = self._federation
        if isinstance(it, Survey):
            resume_survey(it, known.survey or SurveyState(), arrays, now=now)
        else:
            resume(it, known.federation or FederationState(), arrays, now=now)
        machine = it.round
        if machine is None:
            return
        self._envelope, envelope = known.envelope, self._shop.registry.blob(known.envelope)
        offer = messages.from_document(TaskOffer, signed.unverified(envelope))  # this server's own, by its digest
        self._open = OpenRound(machine, offer, envelope=envelope, key_of=self._shop.roster.key)
        self._open.bytes_down = known.bytes_down + len(envelope) * len(machine.cohort)
        self._open.replay(uploads, now)
        self.resend()

    # --- one round

    def _begin(self, now: float) -> RoundEnd | GiveUp | None:
        it = self._federation
        before = len(it.history)
        machine = it.begin(self._candidates(), now)
        if machine is None and len(it.history) > before:
            return self._skipped(it.history[-1], now)
        if machine is None:
            return self._wait_for_devices(now)
        self._patience = None
        task = _task_of(it, self._task)
        offer, blob = it.offer(task)
        for data in (task.data, blob):
            self._shop.registry.put_blob(data)
        envelope = signed.sign(to_plain(offer), self._shop.registry.signing_key())
        self._envelope = self._shop.registry.put_blob(envelope)
        self._open = OpenRound(machine, offer, envelope=envelope, key_of=self._shop.roster.key)
        self.resend()
        of = "" if isinstance(it, Survey) else f" of {self._options.rounds}"
        self._say(f"round {it.closed + 1}{of}, {len(machine.cohort)} devices")
        return None

    def _candidates(self) -> list[Candidate]:
        it = self._federation
        labelled = not isinstance(it, Survey) or it.study.kind in LABELLED
        return candidates(self._shop.roster, it.model, labelled=labelled)

    def _wait_for_devices(self, now: float) -> RoundEnd | GiveUp | None:
        options, it = self._options, self._federation
        if self._patience is None:
            self._patience = now + options.deadline_s
            self._say(f"waiting for {options.min_devices} devices online that run {it.model}")
        if now < self._patience:
            return None
        self._patience = None
        known, old = self._candidates(), keyless(self._shop.roster, it.model)
        if isinstance(it, Survey) and it.members:
            gone = ", ".join(sorted(it.members - {one.device for one in known}))
            then = "the sums begin again" if it.plan.secure is None else "a masked sum without it would tell its answer"
            return self._skipped(it.skip(f"{gone} answered before and cannot now: {then}"), now)
        rows = ", ".join(f"{one.device} {one.rows}" for one in known) or "none"
        why = "; ".join(f"{device}: {reason}" for device, reason in sorted(it.passed_over.items()))
        ready, needed = len(known) - len(it.passed_over), max(options.min_devices, options.cohort.least)
        return GiveUp(
            f"{QuorumNotReached(f'{it.run}-{len(it.history) + 1}', ready, needed)}; devices online that "
            f"run {it.model}, with their labelled rows ({options.min_rows} needed): {rows}"
            + (f"; {why}" if why else "")
            + (f"; without a key, update their agents: {', '.join(old)}" if old else "")
        )

    def _skipped(self, result: RoundResult, now: float) -> RoundEnd:
        """Write down a round that could not begin."""
        self._not_before = now + PAUSE_S
        record = RoundRecord(
            round=len(self._federation.history),
            participants=(),
            refused={},
            rows=0,
            metric=0.0,
            loss=0.0,
            bytes_up=0,
            bytes_down=0,
            seconds=0.0,
            state=result.state,
            why=result.why,
            epsilon=result.epsilon,
        )
        return RoundEnd(record, self._federation.parameters)

    def _conclude(self, current: OpenRound, now: float) -> RoundEnd | None:
        result = self._federation.conclude(now)
        if result is None:
            return None
        self._open, self._envelope = None, ""
        outcome = current.machine.outcome
        assert outcome is not None
        record = self._record(outcome, result, asked=len(current.machine.cohort), down=current.bytes_down)
        if outcome.state is State.CLOSED:
            self._not_before = now
            return RoundEnd(record, self._federation.parameters)
        self._not_before = now + min(PAUSE_S * 2 ** (self._abandoned_in_a_row() - 1), self._options.deadline_s)
        return RoundEnd(record, self._federation.parameters)

    def _record(self, outcome: Outcome, result: RoundResult, *, asked: int, down: int) -> RoundRecord:
        rejected = {device: Counter(counts) for device, counts in outcome.rejected.items()}
        for device, counts in self._astray.items():
            rejected[device] = rejected.get(device, Counter()) + counts
        self._astray = {}
        return RoundRecord(
            round=len(self._federation.history),
            participants=result.participants,
            refused=outcome.refused,
            rows=sum(update.rows for update in outcome.updates),
            held_out=sum(update.held_out for update in outcome.updates),
            metric=0.0,
            loss=0.0,
            bytes_up=result.bytes_up,
            bytes_down=down,
            seconds=result.seconds,
            state=result.state,
            why=outcome.why,
            asked=asked,
            silent=outcome.silent,
            rejected={device: dict(counts) for device, counts in sorted(rejected.items())},
            epsilon=result.epsilon,
            loss_before=result.loss_before,
            loss_after=result.loss,
            own_losses=own_losses(outcome.updates, self._options),
        )

    def _abandoned_in_a_row(self) -> int:
        states = [result.state for result in reversed(self._federation.history)]
        return next((i for i, state in enumerate(states) if state == State.CLOSED.value), len(states))

    def _count_astray(self, device: str, round_id: str, fault: str = "") -> None:
        ended = {result.round: result.participants for result in self._federation.history}
        if not fault:
            fault = "stranger" if round_id not in ended else "replayed" if device in ended[round_id] else "late"
        if self._open is not None:
            self._open.machine.count(device, fault)
        elif device in self._astray or len(self._astray) < MOST_ASTRAY:
            self._astray.setdefault(device, Counter())[fault] += 1


def _sequence(work: Work) -> Federation | Survey:
    what = work.what
    if not isinstance(what, Task):
        return Survey(work.run, work.plan, model=work.model, study=what)
    return Federation(work.run, work.plan, model=work.model, parameters=what.parameters, controls=what.controls)


def _task_of(it: Federation | Survey, task: Task | None) -> Task:
    """Return the task of the next round: always the same one, or what the study asks now."""
    if isinstance(it, Survey):
        return it.study.task()
    assert task is not None
    return task
