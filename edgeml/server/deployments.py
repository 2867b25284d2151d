"""Rollouts at work: rows of the registry become `Rollout` machines, their effects become signed assignments."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from edgeml.registry import Registry, Release, RolloutRecord
from edgeml.registry.records import FAILED, RUNNING, SUCCEEDED
from edgeml.rollout import Assign, Phase, Policy, Progress, Rollout
from edgeml.server.roster import Roster
from edgeml_runtime.wire import signed, topics
from edgeml_runtime.wire.messages import Assignment, JobStatus
from edgeml_runtime.wire.plain import from_plain

Publish = Callable[..., None]
log = logging.getLogger(__name__)


@dataclass
class Active:
    """A rollout at work and what it published, which a broker without memory must be told again."""

    record: RolloutRecord
    release: Release
    machine: Rollout
    envelopes: dict[str, bytes] = field(default_factory=dict)
    written: int = -1  # version of the machine that the registry has


class Deployments:
    """All unfinished rollouts of the registry."""

    def __init__(self, registry: Registry, roster: Roster, publish: Publish) -> None:
        self._registry, self._roster, self._publish = registry, roster, publish
        self._active: dict[str, Active] = {}

    def poll(self, now: float) -> None:
        """Take up rollouts that were requested, or left behind by an earlier server."""
        for record in self._registry.fleet.rollouts(unfinished=True):
            if record.id not in self._active:
                active = Active(record, self._release(record), self._machine(record))
                self._active[record.id] = active
                self._catch_up(active, now)
                what = f"{record.model}@{record.release} to {len(record.devices)} devices"
                log.info("rollout %s of %s", record.id, what)
                self._do(active, active.machine.start(now), now)

    def reported(self, device: str, status: JobStatus, now: float) -> None:
        """Hand a job's status to its rollout."""
        if active := self._active.get(status.job):
            self._do(active, active.machine.reported(device, status, now=now), now)

    def tick(self, now: float) -> None:
        """Let deadlines pass."""
        for active in list(self._active.values()):
            self._do(active, active.machine.tick(now), now)

    def resend(self) -> None:
        """Publish every open assignment again: the broker may have forgotten what it retained."""
        for active in self._active.values():
            for device, envelope in active.envelopes.items():
                if not active.machine.devices[device].ended:
                    self._publish(topics.desired(device), envelope, qos=1, retain=True)

    def flush(self) -> None:
        """Write progress to the registry and let go of rollouts that have ended."""
        for active in [active for active in self._active.values() if active.written != active.machine.version]:
            machine = active.machine
            state = {Phase.SUCCEEDED: SUCCEEDED, Phase.FAILED: FAILED}.get(machine.phase, RUNNING)
            detail = machine.detail or ", ".join(f"{count} {name}" for name, count in sorted(machine.counts.items()))
            self._registry.fleet.update_rollout(active.record.id, state=state, devices=machine.devices, detail=detail)
            active.written = machine.version
            if machine.phase.ended:
                log.info("rollout %s %s: %s", active.record.id, state, detail)
                del self._active[active.record.id]

    def _release(self, record: RolloutRecord) -> Release:
        return self._registry.find(f"{record.model}@{record.release}")

    def _machine(self, record: RolloutRecord) -> Rollout:
        known = {device: from_plain(Progress, dict(state)) for device, state in record.devices.items()}
        options = record.options
        policy = Policy(canary=options.canary, tolerated=options.tolerated, deadline_s=options.deadline_s)
        return Rollout.resume(record.id, known, policy=policy)

    def _catch_up(self, active: Active, now: float) -> None:
        """Take the ends that devices reported before this server took the rollout up; retained, they came first."""
        for device in active.machine.devices:
            reported = self._roster[device].reported
            if reported is not None and reported.job is not None:
                self._do(active, active.machine.reported(device, reported.job, now=now), now)

    def _do(self, active: Active, effects: Iterable[Assign], now: float) -> None:
        for effect in effects:
            self._supersede(effect.device, active.record.id, now)
            envelope = self._assignment(active, effect.device)
            active.envelopes[effect.device] = envelope
            self._publish(topics.desired(effect.device), envelope, qos=1, retain=True)

    def _supersede(self, device: str, by: str, now: float) -> None:
        for other in list(self._active.values()):
            if other.record.id != by and other.machine.phase not in (Phase.SUCCEEDED, Phase.FAILED):
                self._do(other, other.machine.superseded(device, by, now=now), now)

    def _assignment(self, active: Active, device: str) -> bytes:
        release, options = active.release, active.record.options
        assignment = Assignment(
            device=device,
            job=active.record.id,
            model=release.model,
            release=release.release,
            manifest=release.manifest,
            manifest_bytes=release.manifest_bytes,
            seq=self._registry.fleet.next_seq(device),
            deadline_s=options.deadline_s,
            soak_predictions=options.soak_predictions,
            soak_s=options.soak_s,
        )
        return signed.sign(dataclasses.asdict(assignment), self._registry.signing_key())
