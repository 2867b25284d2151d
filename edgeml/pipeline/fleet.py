"""The fleet as plain rows: for the command line, for programs, and for the report's story."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from edgeml import telemetry
from edgeml.federated import strategy
from edgeml.registry import DeviceRecord, FederationRecord, Registry, RolloutRecord


def device_rows(registry: Registry, *, now: float) -> list[dict[str, Any]]:
    """Return one row a device, as `edgeml fleet list --json` prints them; `now` is seconds since 1970."""
    return [_device(device, now) for device in registry.devices()]


def _device(device: DeviceRecord, now: float) -> dict[str, Any]:
    served = telemetry.summarize(device.telemetry)
    running = device.reported.running if device.reported else None
    silent = max(0.0, now - device.last_seen)
    return {
        "id": device.id,
        "board": device.board,
        "state": "online" if device.online else f"offline for {silent:.0f} s",
        "online": device.online,
        "model": running.model if running else None,
        "release": running.release if running else None,
        "variant": running.variant if running else None,
        "predictions": served.predictions,
        "errors": served.errors,
        "p50_ms": served.p50_ms,
        "p90_ms": served.p90_ms,
        "rss_mb": served.rss_mb,
        "labels": dict(served.labels),
        "last_error": served.last_error,
        "personal": served.personal,
        "gain": served.gain,
        "samples": device.reported.samples if device.reported else 0,
        "malformed": device.malformed,
        "notes": list(device.notes),
    }


def federation_summary(record: FederationRecord) -> dict[str, Any]:
    """Return what `edgeml federate --json` prints: the rounds, before and after, whether it was released."""
    rounds = [
        {
            "round": done.round,
            "participants": list(done.participants),
            "refused": dict(done.refused),
            "rows": done.rows,
            "metric": done.metric,
            "loss": done.loss,
            "bytes_up": done.bytes_up,
            "bytes_down": done.bytes_down,
            "seconds": done.seconds,
            "state": done.state,
            "why": done.why,
            "asked": done.asked,
            "silent": list(done.silent),
            "rejected": {device: dict(counts) for device, counts in done.rejected.items()},
            "staleness": dict(done.staleness),
            "epsilon": done.epsilon,
            "held_out": done.held_out,
            "loss_before": done.loss_before,
            "loss_after": done.loss_after,
        }
        for done in record.rounds
    ]
    outcome = dict(record.outcome)
    reason = outcome.get("reason", record.detail)
    return {
        "federation": record.id,
        "model": record.model,
        "state": record.state,
        "rounds": rounds,
        "metric": outcome.get("metric"),
        "before": outcome.get("before"),
        "after": outcome.get("after"),
        "test": outcome.get("test"),
        "centralized": None,  # the rows never leave the devices, so nobody can train on all of them
        "from": outcome.get("from"),
        "fleet": outcome.get("fleet", {}),
        "fleet_evaluation": outcome.get("fleet_evaluation"),
        "gate": outcome.get("gate"),
        "released": outcome.get("released"),
        "reason": reason,
        "verdict": f"{record.model}: {record.state.lower()}, {len(rounds)} rounds; {reason}",
    }


def own_models(record: FederationRecord, devices: Sequence[DeviceRecord]) -> dict[str, Any] | None:
    """Return how many `devices` answer with tensors of their own since the release of `record`, and their mean gain.

    None for a federation that leaves devices nothing of their own, or came to no release. A device's gain is its own
    word: accuracy, or less root mean squared error, on its own labelled rows.
    """
    released = record.outcome.get("released")
    if not strategy(record.options.strategy).personal or not released:
        return None
    learned = {device for done in record.rounds for device in done.participants}
    running = {one.id: one.reported.running for one in devices if one.reported and one.reported.running}
    here = [one for one in devices if one.id in learned and one.id in running and running[one.id].release == released]
    told = [telemetry.summarize(one.telemetry) for one in here]
    gains = [one.gain for one in told if one.personal and one.gain is not None and math.isfinite(one.gain)]
    return {
        "learned": len(learned),
        "run": len(here),
        "serve": sum(one.personal is True for one in told),
        "gain": sum(gains) / len(gains) if gains else None,
    }


def rollout_row(record: RolloutRecord) -> dict[str, Any]:
    """Return one rollout as the report shows it."""
    states = {name: str(entry["state"]) for name, entry in record.devices.items()}
    seconds = record.ended - record.created if record.ended else None
    return {"release": record.release, "state": record.state, "devices": states, "seconds": seconds}
