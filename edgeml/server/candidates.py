"""The roster as a round sees it: devices that are online, run the model and have rows, with their heat and power."""

from __future__ import annotations

from edgeml.federated import Candidate
from edgeml.registry import DeviceRecord
from edgeml.server.roster import Roster


def candidates(roster: Roster, model: str, *, labelled: bool = True) -> list[Candidate]:
    """Return every device that is online, runs `model` and is known by a key, with its `labelled` rows or all."""
    known = [(one, roster.key(one.id)) for one in _running(roster, model)]
    return [_candidate(one, key, labelled=labelled) for one, key in known if key]


def keyless(roster: Roster, model: str) -> list[str]:
    """Return the devices that would be candidates if their agents had a key to sign with."""
    return [one.id for one in _running(roster, model) if not roster.key(one.id)]


def _running(roster: Roster, model: str) -> list[DeviceRecord]:
    found = [(one, one.reported.running if one.reported else None) for one in roster.online()]
    return [one for one, running in found if running is not None and running.model == model]


def _candidate(record: DeviceRecord, key: str, *, labelled: bool) -> Candidate:
    now, said = record.telemetry.now, record.reported
    return Candidate(
        device=record.id,
        rows=(said.samples if labelled else max(said.samples, said.rows)) if said else 0,
        board=record.board,
        temperature_c=now.temperature_c if now else None,
        battery=now.battery if now else None,
        mains=now.mains if now else None,
        key=key,
    )
