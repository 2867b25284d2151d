"""How rounds follow one another without waiting: devices are asked as they become idle, steps made as updates come.

The decisions are `edgeml.federated.Buffer`'s. On the wire every version of the model is a round of its own, offered
to those devices only that shall train on it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeml.artifacts import Task
from edgeml.federated import Assembly, Buffer, State, Step, check_upload, fault_of, make_offer, mean_told
from edgeml.federated.combinations import check_plan
from edgeml.federated.journal import BufferState, arrays_of, buffer_state, resume_buffer
from edgeml.registry import RoundRecord, Upload
from edgeml.server.arrivals import Unproven, collect, read_header, read_update
from edgeml.server.candidates import candidates
from edgeml.server.course import Arrays, GiveUp, Kept, RoundEnd, Shop, Work, own_losses
from edgeml_runtime.wire import BadSignature, WireError, blocks, messages, signed, topics
from edgeml_runtime.wire.messages import TaskOffer, UpdateHeader
from edgeml_runtime.wire.plain import from_plain, to_plain
from edgeml_runtime.wire.tasks import LOSS_AFTER, LOSS_BEFORE

ASK_S = 1.0  # at least so often it looks for idle devices; who answers or comes is asked at once


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the journal keeps of an asynchronous course."""

    buffer: BufferState
    abandoned: int = 0  # steps in a row
    envelopes: Mapping[str, str] = field(default_factory=dict)  # device -> digest of the signed offer it works on
    bytes_down: int = 0


class Asynchronous:
    """A buffer, the devices at work for it, and what they have sent so far."""

    def __init__(self, work: Work, shop: Shop, now: float) -> None:
        plan, task = work.plan, work.what
        assert isinstance(task, Task)
        check_plan(plan)
        self._work, self._shop, self._task = work, shop, task
        self._buffer = Buffer(
            work.options.buffer,
            quorum=plan.min_devices,
            min_rows=plan.least("training"),
            deadline_s=plan.deadline_s,
            parameters=task.parameters,
            now=now,
            cohort=plan.cohort,
            server=plan.row.server,
            check=functools.partial(check_upload, plan=plan, parameters=task.parameters),
        )
        self._assemblies: dict[str, Assembly] = {}
        self._envelopes: dict[str, bytes] = {}  # device -> the offer it works on
        self._fresh: list[Upload] = []
        self._blobs: set[str] = {task.digest}
        self._anew, self._abandoned, self._bytes_down, self._ask_at = True, 0, 0, now
        work.say(f"asynchronous rounds: a step at every {work.options.buffer.size} updates")

    @property
    def finished(self) -> bool:
        return self._buffer.version >= self._work.plan.rounds

    @property
    def open_rounds(self) -> tuple[str, ...]:
        return tuple(f"{one.device}@{one.version}" for one in self._buffer.tickets.values())

    @property
    def parameters(self) -> Arrays:
        return self._buffer.parameters

    def serve(self, now: float) -> None:
        """Ask the devices that have become idle."""
        if self.finished or now < self._ask_at:
            return
        self._ask_at = now + ASK_S
        known, least = candidates(self._shop.roster, self._work.model), self._work.plan.min_rows
        if asked := self._buffer.ask([one for one in known if one.rows >= least], now):
            self._offer(asked)

    def tick(self, now: float) -> RoundEnd | GiveUp | None:
        """Make the step that is due."""
        if self._abandoned >= self._work.plan.max_abandoned:
            return GiveUp(f"{self._abandoned} steps in a row were abandoned")
        step = self._buffer.tick(now)
        if step is None:
            return None
        self._abandoned = 0 if step.state is State.CLOSED else self._abandoned + 1
        self._anew, self._ask_at = True, now
        self._fresh.clear()  # they are part of the step
        return RoundEnd(self._record(step), self._buffer.parameters)

    def uploaded(self, device: str, round_id: str, payload: bytes, *, now: float) -> None:
        """Take a header or a block of an update to the version that `round_id` names.

        Raises WireError for one that cannot be accepted; the buffer does not wait for a device that has signed such.
        """
        version, ticket = self._version(round_id), self._buffer.tickets.get(device)
        if version is None:
            return
        if ticket is None or ticket.version != version or device not in self._assemblies:
            if not blocks.is_block(payload):
                read_header(payload, device, self._shop.roster.key)
                self._buffer.count(device, self._buffer.unwelcome(device, version) or "stranger")
            return
        try:
            self._take(device, payload, version=version, now=now)
        except (BadSignature, Unproven) as error:
            self._buffer.count(device, fault_of(error))  # says nothing of the device: anybody may have sent it
            raise
        except WireError as error:
            self._buffer.invalid(device, error, version=version)
            raise

    def said(self, device: str, round_id: str, payload: bytes, *, now: float) -> None:
        """Count what a device says of secure aggregation, which asynchronous steps do not have."""
        self._buffer.count(device, "stranger")

    def came(self, device: str, now: float, *, live: bool) -> None:
        """A device is online (again): what it may have missed is offered once more."""
        self._buffer.back(device)
        self._ask_at = now
        if live and device in self._buffer.tickets and device in self._envelopes:
            self._publish(self._envelopes[device], self._buffer.tickets[device].version)

    def went(self, device: str, now: float) -> None:
        """A device is offline: nobody waits for it."""
        self._buffer.lost(device)

    @property
    def asking(self) -> bool:
        return False

    def ask(self) -> None:
        """Nothing: masks need a cohort that begins and ends together."""

    def served(self, digest: str, count: int) -> None:
        """Count bytes sent to devices for this federation."""
        if digest in self._blobs:
            self._bytes_down += count

    def resend(self) -> None:
        """Publish the offers that devices are at; those know their ids."""
        versions = {self._envelopes[d]: t.version for d, t in self._buffer.tickets.items() if d in self._envelopes}
        for envelope, version in versions.items():
            self._publish(envelope, version)

    # --- the journal

    def facts(self, now: float) -> dict[str, Any]:
        """Return JSON values that `resume` takes."""
        at_work = self._buffer.tickets.keys()
        found: dict[str, Any] = to_plain(
            Facts(
                buffer=buffer_state(self._buffer, now),
                abandoned=self._abandoned,
                envelopes={d: blocks.digest_of(data) for d, data in self._envelopes.items() if d in at_work},
                bytes_down=self._bytes_down,
            )
        )
        return found

    def arrays(self) -> Arrays:
        return arrays_of(self._buffer)

    def kept(self) -> Kept:
        kept = Kept(self._fresh, anew=self._anew)
        self._fresh, self._anew = [], False
        return kept

    def resume(self, facts: Mapping[str, Any], arrays: Arrays, uploads: Sequence[Upload], *, now: float) -> None:
        """Go on where an earlier server stood; devices at work are offered the same again."""
        known = from_plain(Facts, dict(facts))
        held = [
            (read_update(messages.decode(UpdateHeader, one.header), one.body), self._version(one.round) or 0)
            for one in uploads
        ]
        resume_buffer(self._buffer, known.buffer, arrays, held=held, run=self._work.run, now=now)
        self._abandoned, self._bytes_down, self._anew = known.abandoned, known.bytes_down, False
        for device, digest in known.envelopes.items():
            envelope = self._shop.registry.blob(digest)
            offer = messages.from_document(TaskOffer, signed.unverified(envelope))  # this server's own, by its digest
            self._expect(device, offer, envelope)
        self.resend()

    # --- one version

    def _offer(self, asked: Sequence[str]) -> None:
        work, version = self._work, self._buffer.version
        offer, blob = make_offer(
            work.plan,
            self._task,
            parameters=self._buffer.parameters,
            round=f"{work.run}-{version + 1}",
            model=work.model,
            cohort=asked,
            number=version,
            deadline_s=work.plan.deadline_s,
        )
        registry = self._shop.registry
        for data in (self._task.data, blob):
            registry.put_blob(data)
        envelope = signed.sign(to_plain(offer), registry.signing_key())
        registry.put_blob(envelope)
        for device in asked:
            self._expect(device, offer, envelope)
        self._bytes_down += len(envelope) * len(asked)
        self._publish(envelope, version)

    def _expect(self, device: str, offer: TaskOffer, envelope: bytes) -> None:
        self._blobs.add(offer.parameters)
        self._envelopes[device] = envelope
        limit = offer.max_update_bytes
        self._assemblies[device] = Assembly(round=offer.round, device=device, max_update_bytes=limit)

    def _publish(self, envelope: bytes, version: int) -> None:
        self._shop.publish(topics.task(f"{self._work.run}-{version + 1}"), envelope, qos=1)

    def _version(self, round_id: str) -> int | None:
        run, _, number = round_id.rpartition("-")
        return int(number) - 1 if run == self._work.run and number.isdigit() else None

    def _take(self, device: str, payload: bytes, *, version: int, now: float) -> None:
        asked = self._buffer.tickets[device].asked
        arrived = collect(self._assemblies[device], payload, self._shop.roster.key)
        if arrived is None:
            return
        header, body = arrived.header, arrived.body
        if header.refused:
            self._buffer.refuse(device, header.refused, version=version)
            return
        if not self._buffer.receive(read_update(header, body), version=version):
            kept = messages.encode(header)
            self._fresh.append(Upload(round=header.round, device=device, header=kept, body=body, took=now - asked))
        self._ask_at = now

    def _record(self, step: Step) -> RoundRecord:
        down, self._bytes_down = self._bytes_down, 0
        updates = [one.update for one in step.held]
        return RoundRecord(
            round=step.number,
            participants=tuple(one.device for one in updates),
            refused=step.refused,
            rows=sum(one.rows for one in updates),
            held_out=sum(one.held_out for one in updates),
            metric=0.0,
            loss=0.0,
            bytes_up=sum(one.size for one in updates),
            bytes_down=down,
            seconds=step.seconds,
            state=step.state.value,
            why=step.why,
            asked=len(step.held) + len(step.refused) + len(step.silent),
            silent=step.silent,
            rejected=step.rejected,
            staleness={one.update.device: one.staleness for one in step.held},
            loss_before=mean_told(updates, LOSS_BEFORE),
            loss_after=mean_told(updates, LOSS_AFTER),
            own_losses=own_losses(updates, self._work.options),
        )
