"""How rounds follow one another: the synchronous way. One round is open at a time, and the next begins where it ended.

A course knows devices and messages; the federation's life (preparing, scoring, releasing) is `Rounds`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from edgeml.artifacts import Task
from edgeml.errors import QuorumNotReached
from edgeml.federated import Federation, Outcome, Plan, RoundResult, State, fault_of
from edgeml.federated.journal import FederationState, arrays_of, resume, state_of
from edgeml.registry import FederationOptions, Registry, RoundRecord, Upload
from edgeml.server.candidates import candidates, keyless
from edgeml.server.open_round import OpenRound, read_header
from edgeml.server.roster import Roster
from edgeml_runtime.wire import WireError, blocks, messages, signed, topics
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.plain import from_plain, to_plain

PAUSE_S = 1.0  # after an abandoned round, doubled after every further one in a row
MOST_ASTRAY = 1000  # devices counted between two rounds
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Shop:
    """What a federation works with."""

    registry: Registry
    roster: Roster
    publish: Callable[..., None]
    submit: Callable[..., Future[Any]]  # run this in the worker thread


@dataclass(frozen=True)
class Work:
    """What a course goes through: rounds of one task by one plan; `say` tells whoever looks how it goes."""

    run: str
    model: str
    task: Task
    options: FederationOptions = field(kw_only=True)
    plan: Plan = field(kw_only=True)
    say: Callable[[str], None] = field(kw_only=True)


@dataclass(frozen=True)
class RoundEnd:
    """A round is over: its record, without scores, and the parameters after it."""

    record: RoundRecord
    parameters: Arrays


@dataclass(frozen=True)
class GiveUp:
    """There will be no further round, for this reason."""

    reason: str


@dataclass(frozen=True)
class Kept:
    """What the journal shall keep of updates: these, and, unless `anew`, those it has."""

    uploads: list[Upload]
    anew: bool = False


class Course(Protocol):
    """What `Rounds` asks of a way to go through rounds."""

    @property
    def finished(self) -> bool: ...
    @property
    def open_rounds(self) -> tuple[str, ...]:
        """Who or what is being waited for; when it changes, the journal is written."""

    @property
    def parameters(self) -> Arrays: ...
    def serve(self, now: float) -> None:
        """Do what must not wait while the last round is being scored."""

    def tick(self, now: float) -> RoundEnd | GiveUp | None: ...
    def uploaded(self, device: str, round_id: str, payload: bytes, *, now: float) -> None: ...
    def said(self, device: str, round_id: str, payload: bytes, *, now: float) -> None: ...
    def came(self, device: str, now: float, *, live: bool) -> None: ...
    def went(self, device: str, now: float) -> None: ...
    def served(self, digest: str, count: int) -> None: ...
    def resend(self) -> None: ...
    def facts(self, now: float) -> dict[str, Any]: ...
    def arrays(self) -> Arrays: ...
    def kept(self) -> Kept: ...
    def resume(self, facts: Mapping[str, Any], arrays: Arrays, uploads: Sequence[Upload], *, now: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the journal keeps of a synchronous course."""

    federation: FederationState
    envelope: str = ""  # digest of the open round's signed offer
    bytes_down: int = 0


class Synchronous:
    """One round after another."""

    def __init__(self, work: Work, shop: Shop, now: float) -> None:
        task = work.task
        self._federation = Federation(
            work.run, work.plan, model=work.model, parameters=task.parameters, controls=task.controls
        )
        self._task, self._options, self._say, self._shop = task, work.options, work.say, shop
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

    def serve(self, now: float) -> None:
        """Nothing: between two rounds nobody is at work."""

    def tick(self, now: float) -> RoundEnd | GiveUp | None:
        """Conclude the round that is over, or open the next; say what came of it."""
        if self._open is not None:
            return self._go_on(self._open, now)
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
            self._send(self._open.ask_again(device, self._shop.registry.signing_key()))

    def went(self, device: str, now: float) -> None:
        """A device is offline: with a quorum, nobody waits for it."""
        if self._open is not None:
            self._open.machine.lost(device, now)

    def served(self, digest: str, count: int) -> None:
        """Count bytes sent to devices for this round."""
        if self._open is not None:
            self._open.served(digest, count)

    def resend(self) -> None:
        """Publish the open round's offer; devices that are at it or done know its id."""
        if self._open is not None:
            self._shop.publish(topics.task(self._open.machine.id), self._open.envelope, qos=1)

    # --- the journal

    def facts(self, now: float) -> dict[str, Any]:
        """Return JSON values that `resume` takes."""
        down = self._open.bytes_down if self._open else 0
        state = state_of(self._federation, now)
        found: dict[str, Any] = to_plain(Facts(federation=state, envelope=self._envelope, bytes_down=down))
        return found

    def arrays(self) -> Arrays:
        return arrays_of(self._federation)

    def kept(self) -> Kept:
        return Kept([], anew=True) if self._open is None else Kept(self._open.kept())

    def resume(self, facts: Mapping[str, Any], arrays: Arrays, uploads: Sequence[Upload], *, now: float) -> None:
        """Go on where an earlier server stood; devices are offered the same round, under the same signature."""
        known = from_plain(Facts, dict(facts))
        resume(self._federation, known.federation, arrays, now=now)
        machine = self._federation.round
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
        before = len(self._federation.history)
        machine = self._federation.begin(candidates(self._shop.roster, self._federation.model), now)
        if machine is None and len(self._federation.history) > before:
            return self._skipped(self._federation.history[-1], now)
        if machine is None:
            return self._wait_for_devices(now)
        self._patience = None
        offer, blob = self._federation.offer(self._task)
        self._shop.registry.put_blob(blob)
        envelope = signed.sign(to_plain(offer), self._shop.registry.signing_key())
        self._envelope = self._shop.registry.put_blob(envelope)
        self._open = OpenRound(machine, offer, envelope=envelope, key_of=self._shop.roster.key)
        self.resend()
        closed, rounds = self._federation.closed, self._options.rounds
        self._say(f"round {closed + 1} of {rounds}, {len(machine.cohort)} devices")
        return None

    def _wait_for_devices(self, now: float) -> GiveUp | None:
        options, model = self._options, self._federation.model
        if self._patience is None:
            self._patience = now + options.deadline_s
            self._say(f"waiting for {options.min_devices} devices online that run {model}")
        if now < self._patience:
            return None
        known = candidates(self._shop.roster, model)
        rows = ", ".join(f"{one.device} {one.rows}" for one in known) or "none"
        ready = len(known) - len(self._federation.passed_over)
        round_id = f"{self._federation.run}-{len(self._federation.history) + 1}"
        old = keyless(self._shop.roster, model)
        why = "; ".join(f"{device}: {reason}" for device, reason in sorted(self._federation.passed_over.items()))
        return GiveUp(
            f"{QuorumNotReached(round_id, ready, max(options.min_devices, options.cohort.least))}; devices online that "
            f"run {model}, with their labelled rows ({options.min_rows} needed): {rows}"
            + (f"; {why}" if why else "")
            + (f"; without a key, update their agents: {', '.join(old)}" if old else "")
        )

    def _skipped(self, result: RoundResult, now: float) -> RoundEnd:
        """Write down a round that chance gave too few devices."""
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

    def _go_on(self, current: OpenRound, now: float) -> RoundEnd | None:
        """Conclude the round if it is over; else ask what secure aggregation wants to know now."""
        ended = self._conclude(current, now)
        if ended is None:
            self._send(current.asks(self._shop.registry.signing_key()))
        return ended

    def _send(self, asks: Sequence[tuple[str, bytes]]) -> None:
        for topic, payload in asks:
            self._shop.publish(topic, payload, qos=1)

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
