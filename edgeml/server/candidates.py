"""The roster as a round sees it: devices that are online, run the model and have rows, with their heat and power."""

from __future__ import annotations

from edgeml.federated import Candidate
from edgeml.registry import DeviceRecord
from edgeml.server.roster import Roster


def candidates(roster: Roster, model: str) -> list[Candidate]:
    """Return every device that is online and runs `model`."""
    running = [(one, one.reported) for one in roster.online() if one.reported and one.reported.running]
    return [_candidate(one) for one, said in running if said.running and said.running.model == model]


def _candidate(record: DeviceRecord) -> Candidate:
    now = record.telemetry.now
    return Candidate(
        device=record.id,
        rows=record.reported.samples if record.reported else 0,
        board=record.board,
        temperature_c=now.temperature_c if now else None,
        battery=now.battery if now else None,
        mains=now.mains if now else None,
    )
