"""The fleet's part of the page: what was learned on the devices, what each would be alone, what each served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeml.report import charts
from edgeml.report.parts import Figure, Section, Table
from edgeml.report.words import ABSENT, latency_of


def fleet_sections(fleet: Mapping[str, Any]) -> list[Section]:
    """Return the parts about rounds, single devices and the fleet."""
    after, rounds = fleet["after"], fleet["rounds"]
    figures = [_course(fleet)]
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


def _course(fleet: Mapping[str, Any]) -> Figure:
    before, after, rounds = fleet["before"], fleet["after"], fleet["rounds"]
    points = [{"name": "before", "value": before["validation"], "note": f"release {before['release']}"}]
    points += [{"name": f"round {r['round']}", "value": r["metric"], "note": _round_note(r)} for r in rounds]
    for point in points:
        point["said"] = f"{point['value']:.4f}"
    metric = str(after["metric"])
    encoding = {
        "x": {"field": "name", "type": "nominal", "sort": None, "axis": {"title": None, "labelAngle": 0}},
        "y": charts.quantity("value", f"{metric}, server's validation rows", scale={"zero": False, "padding": 20}),
        "tooltip": charts.tips(name="when", said=metric, note="what"),
    }
    layers: list[charts.Spec] = [
        {"mark": {"type": "line", "strokeWidth": 3, "color": "var(--c0)"}, "encoding": encoding},
        {
            "mark": {"type": "point", "filled": True, "size": 90, "opacity": 1, "color": "var(--c0)"},
            "encoding": encoding,
        },
        {"mark": {"type": "text", "dy": -14}, "encoding": encoding | {"text": {"field": "said"}}},
    ]
    return Figure(
        f"{metric} round by round",
        charts.figure(points, layers, height=230),
        f"On the test rows, which no round saw: {before['value']:.4f} before, {after['value']:.4f} after.",
        "; ".join(f"{point['name']} {point['said']}" for point in points),
        Table(["when", metric, "what"], [[p["name"], p["said"], p["note"]] for p in points], frozenset({1})),
    )


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
