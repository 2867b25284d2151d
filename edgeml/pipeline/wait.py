"""Waiting for what the server does: rollouts and federations, followed in the registry."""

from __future__ import annotations

import time
from collections.abc import Callable

from edgeml.errors import FleetError, RolloutFailed
from edgeml.registry import FederationRecord, Registry, RolloutRecord, RoundRecord

POLL_S = 0.1


def wait_rollout(
    registry: Registry, rollout_id: str, *, on_change: Callable[[RolloutRecord], None] = lambda record: None
) -> RolloutRecord:
    """Return the rollout once every device succeeded; `on_change` is called with each new state.

    Raises RolloutFailed with each device's reason, ServerUnavailable when the server dies meanwhile.
    """
    seen = None
    while True:
        record = registry.rollout(rollout_id)
        if record != seen:
            on_change(record)
            seen = record
        if record.is_over:
            break
        registry.server_alive()
        time.sleep(POLL_S)
    if record.state == "SUCCEEDED":
        return record
    bad = [
        f"{device} {entry['state']} {entry.get('reason', '')} {entry.get('detail', '')}".strip()
        for device, entry in record.devices.items()
        if entry["state"] != "SUCCEEDED"
    ]
    raise RolloutFailed(f"rollout {record.id} of {record.model}@{record.release}: {record.detail}; " + "; ".join(bad))


def wait_federation(
    registry: Registry, federation_id: str, *, on_round: Callable[[RoundRecord], None] = lambda record: None
) -> FederationRecord:
    """Return the federation once it is over; `on_round` is called with each finished round.

    Raises FleetError with the reason when it failed, ServerUnavailable when the server dies meanwhile.
    """
    seen = 0
    while True:
        record = registry.federation(federation_id)
        for done in record.rounds[seen:]:
            on_round(done)
        seen = len(record.rounds)
        if record.is_over:
            break
        registry.server_alive()
        time.sleep(POLL_S)
    if record.state != "SUCCEEDED":
        raise FleetError(f"federation {record.id} of {record.model}: {record.detail}")
    return record
