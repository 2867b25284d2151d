"""The fleet's part of the page: what was learned on the devices, what each would be alone, what each served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeml.report import plots
from edgeml.report.parts import Figure, Section, Table
from edgeml.report.plots import Axis
from edgeml.report.words import ABSENT, latency_of


def fleet_sections(fleet: Mapping[str, Any]) -> list[Section]:
    """Return the parts about rounds, single devices and the fleet."""
    before, after, rounds = fleet["before"], fleet["after"], fleet["rounds"]
    points = [{"name": "before", "value": before["validation"], "note": f"release {before['release']}"}]
    points += [{"name": f"round {r['round']}", "value": r["metric"], "note": _round_note(r)} for r in rounds]
    figures = [
        Figure(
            f"{after['metric']} round by round",
            plots.line(points, Axis(f"{after['metric']}, server's validation rows", lambda value: f"{value:.3f}")),
            f"On the test rows, which no round saw: {before['value']:.4f} before, {after['value']:.4f} after.",
        )
    ]
    head = ["round", after["metric"], "loss", "devices", "bytes up", "bytes down", "seconds"]
    rows = [
        [
            str(r["round"]),
            f"{r['metric']:.4f}",
            f"{r['loss']:.4f}",
            ", ".join(r["participants"]),
            f"{r['bytes_up']:,}",
            f"{r['bytes_down']:,}",
            f"{r['seconds']:.2f}",
        ]
        for r in rounds
    ]
    learned = Section(
        "Learned on the devices",
        "Devices trained on rows that never left them and sent only weight updates.",
        Table(head, rows, frozenset({1, 2, 4, 5, 6})),
        figures,
    )
    return [learned, _alone(fleet), _devices(fleet)]


def _alone(fleet: Mapping[str, Any]) -> Section:
    rows = [
        [
            one["device"],
            f"{one['rows']:,}",
            ", ".join(f"{name}: {count}" for name, count in one["labels"].items()),
            f"{one['accuracy']:.4f}",
        ]
        for one in fleet.get("agents_alone") or []
    ]
    lead = f"The same training on one device's rows, without the others. Together: {fleet['after']['value']:.4f}."
    return Section(
        "No device alone",
        lead,
        Table(["device", "rows", "labels it holds", "accuracy"], rows, frozenset({1, 3})) if rows else None,
    )


def _devices(fleet: Mapping[str, Any]) -> Section:
    rows = [
        [
            device["id"],
            device["board"],
            f"{device['release'] or ABSENT} · {device['variant'] or ABSENT}",
            f"{device['predictions']:,}",
            f"{device['errors']:,}",
            f"{latency_of(device['p50_ms'])} · {latency_of(device['p90_ms'])}",
            ", ".join(f"{name}: {count}" for name, count in sorted(device.get("labels", {}).items())) or "none",
        ]
        for device in fleet.get("devices", [])
    ]
    shipped = [
        f"Rollout of {one['release']}: {one['state'].lower()} on {len(one['devices'])} devices"
        + (f" in {one['seconds']:.1f} s" if one.get("seconds") else "")
        for one in fleet.get("rollouts", [])
    ]
    head = ["device", "board", "runs", "predictions", "errors", "p50 · p90 per request, at most", "answers"]
    return Section("The fleet", table=Table(head, rows, frozenset({3, 4})) if rows else None, items=shipped)


def _round_note(done: Mapping[str, Any]) -> str:
    return f"{len(done['participants'])} devices, {done['bytes_up']:,} bytes up, {done['seconds']:.2f} s"
