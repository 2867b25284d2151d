"""What a run here looked like: its spread, its course over time, and what the machine was doing meanwhile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report import charts
from edgeml.report.numbers import milliseconds, number
from edgeml.report.parts import Figure, Section, Table
from edgeml.report.reading import Form, Reading
from edgeml.report.words import ABSENT, interval, latency_of, settings_of
from edgeml_runtime.measure import throttling

SLOWED = 0.9  # of the fastest clock of the run: doubts.py calls a run below it INVALID
QUARTILES = {"p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95}
MOST_FORMS = 8  # lines in one picture
WATCHED = {  # a reading, its title, its unit, and what it is divided by
    "frequency_khz": ("Clock of the slowest core", "GHz", 1e6),
    "temperature_c": ("Temperature", "°C", 1.0),
    "running": ("Tasks that want to run", "tasks", 1.0),
}


def timing(reading: Reading) -> Section:
    """Return the part about the measurement on this machine."""
    forms = reading.timed
    if not forms:
        return Section("Measured here")
    where = forms[0].measured.get("environment", {})
    figures = [_boxes(forms), _strip(forms), *_machine(forms)]
    said = [
        f"{form.name} is INVALID and decides nothing: {form.measured.get('why')}" for form in forms if not form.valid
    ]
    said += [
        f"{form.name}, sustained: {form.measured['sustained']['verdict']}"
        for form in forms
        if "sustained" in form.measured
    ]
    return Section(
        "Measured here",
        _lead(forms[0].measured, where),
        _table(forms),
        [figure for figure in figures if figure],
        said,
    )


def _lead(first: Mapping[str, Any], where: Mapping[str, Any]) -> str:
    chip = where.get("cpu_model") or where.get("machine") or "this machine"
    rows = "one row" if first.get("rows", 1) == 1 else f"{first['rows']} rows"
    facts = [f"{where['cores']} cores"] if where.get("cores") else []
    facts += [f"onnxruntime {where['onnxruntime']}"] if where.get("onnxruntime") else []
    facts += [f"governor {where['governor']}"] if where.get("governor") else []
    facts += [settings_of(first["settings"])] if first.get("settings") else []
    return f"{chip}, {', '.join(facts)}. Scenario {first.get('scenario', 'single-stream')}, {rows} a query."


def _table(forms: Sequence[Form]) -> Table:
    head = ["variant", "queries", "min", "p50 (95 % interval)", "p90", "p99", "p99.9", "CPU time", "rows/s", "energy"]
    rows = []
    for form in forms:
        took = form.measured
        energy = took.get("energy_mj")
        few = "too few queries" if "p999_ms" in took else ABSENT
        rows.append(
            [
                form.name + ("" if form.valid else " INVALID"),
                f"{took.get('n', 0):,}",
                latency_of(took.get("min_ms")),
                f"{latency_of(took['p50_ms'])} ({interval(took.get('ci95_ms'))})",
                *(latency_of(took.get(f"{name}_ms")) for name in ("p90", "p99")),
                few if took.get("p999_ms") is None else latency_of(took["p999_ms"]),
                latency_of(took.get("cpu_ms")),
                number(took["rows_per_s"]) if took.get("rows_per_s") else ABSENT,
                ABSENT if energy is None else f"{number(energy)} mJ",
            ]
        )
    faded = frozenset(index for index, form in enumerate(forms) if not form.valid)
    return Table(head, rows, frozenset(range(1, len(head))), faded)


def _boxes(forms: Sequence[Form]) -> Figure | None:
    shown = [form for form in forms if form.measured.get("samples_ms")]
    if not shown:
        return None
    rows: list[dict[str, Any]] = []
    samples: list[dict[str, Any]] = []
    for form in shown:
        found = sorted(form.measured["samples_ms"])
        ends = [_at(found, share) for share in QUARTILES.values()]
        p5, p25, p50, p75, p95 = ends
        rows.append(
            {
                "name": form.name,
                "valid": form.valid,
                **dict(zip(QUARTILES, ends, strict=True)),
                "said": f"{milliseconds(p50)}, middle half {interval((p25, p75))}",
                "tail": interval((p5, p95)),
            }
        )
        samples += [{"name": form.name, "valid": form.valid, "ms": value} for value in found]
    order, tint, fade = [form.name for form in shown], charts.colour([form.name for form in forms]), charts.fade()
    x = charts.latency("p50", "latency of one query", [row[key] for row in rows for key in ("p5", "p95")])
    y, told = charts.names(order=order), charts.tips(name="variant", said="median", tail="5 % to 95 %")
    common = {"y": y, "color": tint, "opacity": fade, "tooltip": told}
    layers: list[charts.Spec] = [
        {
            "data": {"values": samples},
            "mark": {"type": "tick", "clip": True, "size": 8, "thickness": 1, "yOffset": 15},
            "encoding": {"x": x | {"field": "ms"}, "y": y, "color": tint, "opacity": {"value": 0.3}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x | {"field": "p5"}, "x2": {"field": "p95"}, **common},
        },
        {
            "mark": {"type": "bar", "height": 16, "cornerRadius": 3},
            "encoding": {"x": x | {"field": "p25"}, "x2": {"field": "p75"}, **common},
        },
        {
            "mark": {"type": "tick", "size": 22, "thickness": 3, "color": charts.INK},
            "encoding": {"x": x, "y": y, "opacity": fade, "tooltip": told},
        },
    ]
    words = "; ".join(f"{row['name']} {row['said']}" for row in rows)
    caption = "Line: median, bar: middle half of the queries, whisker: 5 % to 95 %, ticks below: single queries."
    table = Table(["variant", "median", "5 % to 95 %"], [[row["name"], row["said"], row["tail"]] for row in rows])
    height = max(80, len(rows) * (charts.ROW + 16))
    return Figure("Query by query", charts.figure(rows, layers, height=height), caption, words, table)


def _strip(forms: Sequence[Form]) -> Figure | None:
    shown = [form for form in forms if len(form.measured.get("series", ())) > 1][:MOST_FORMS]
    if not shown:
        return None
    rows: list[dict[str, Any]] = [
        {
            "name": form.name,
            "valid": form.valid,
            "s": s,
            "at": f"{s:.1f} s",
            "p50": p50,
            "p90": p90,
            "said": milliseconds(p50),
            "slow": milliseconds(p90),
        }
        for form in shown
        for s, p50, p90 in form.measured["series"]
    ]
    marks = [mark for form in shown for mark in _events(form)]
    order, fade = [form.name for form in forms], charts.fade()
    x = charts.quantity("s", "seconds since the start", scale={"nice": False, "zero": True})
    y = charts.latency("p50", "latency of one query", [row[key] for row in rows for key in ("p50", "p90")])
    told = charts.tips(name="variant", at="at", said="p50", slow="p90")
    tint = charts.colour(order, legend=True)
    layers: list[charts.Spec] = [
        {
            "data": {"values": marks},
            "mark": {"type": "rule", "color": charts.BAD, "strokeWidth": 2, "strokeDash": [2, 2], "clip": True},
            "encoding": {"x": x, "tooltip": charts.tips(at="at", name="variant", what="what")},
        },
        {
            "mark": {"type": "area", "clip": True},
            "encoding": {"x": x, "y": y, "y2": {"field": "p90"}, "color": tint, "opacity": {"value": 0.18}},
        },
        {
            "mark": {"type": "line", "strokeWidth": 2, "clip": True, "point": {"size": 36}},
            "params": [{"name": "zoom", "select": {"type": "interval", "encodings": ["x"]}, "bind": "scales"}],
            "encoding": {"x": x, "y": y, "color": tint, "opacity": fade, "tooltip": told},
        },
    ]
    caption = (
        "Line: median of a stretch, shaded: up to p90. Drag to move, scroll with Ctrl to zoom, double-click to reset. "
    )
    caption += (
        "Dashed: the firmware throttled or the clock fell." if marks else "Nothing throttled that this machine tells."
    )
    words = "; ".join(_course(form) for form in shown) + (f"; {len(marks)} marks of throttling" if marks else "")
    table = Table(
        ["variant", "second", "p50", "p90"],
        [[row["name"], f"{row['s']:.1f}", row["said"], row["slow"]] for row in rows],
        frozenset({1, 2, 3}),
    )
    return Figure("Over time", charts.figure(rows, layers, height=220), caption, words, table)


def _course(form: Form) -> str:
    series = form.measured["series"]
    return f"{form.name} {milliseconds(series[0][1])} at first, {milliseconds(series[-1][1])} at the end"


def _events(form: Form) -> list[dict[str, Any]]:
    """Return when the firmware throttled, or the clock was well below its fastest."""
    readings = form.measured.get("readings", ())
    fastest = max((reading.get("frequency_khz", 0) for reading in readings[1:]), default=0)
    found = []
    for reading in readings[1:]:
        said = throttling(reading.get("throttled", 0))
        clock = reading.get("frequency_khz")
        if clock and clock < SLOWED * fastest:
            said.append(f"clock at {clock / 1e6:.2f} of {fastest / 1e6:.2f} GHz")
        if said:
            at = reading["at_s"]
            found.append({"s": at, "at": f"{at:.1f} s", "name": form.name, "what": ", ".join(said)})
    return found


def _machine(forms: Sequence[Form]) -> list[Figure]:
    """Return a picture for each of WATCHED that this machine tells and that moved."""
    figures = []
    order = [form.name for form in forms]
    for key, (title, unit, scale) in WATCHED.items():
        rows = [
            {
                "name": form.name,
                "s": one["at_s"],
                "value": one[key] / scale,
                "said": f"{number(one[key] / scale)} {unit}",
            }
            for form in forms[:MOST_FORMS]
            for one in form.measured.get("readings", ())
            if key in one
        ]
        if len({row["value"] for row in rows}) < 2:
            continue
        encoding = {
            "x": charts.quantity("s", "seconds since the start", scale={"nice": False}),
            "y": charts.quantity("value", unit, scale={"zero": False, "nice": True}, tickCount=4),
            "color": charts.colour(order),
            "tooltip": charts.tips(name="variant", said="reading"),
        }
        layers = [{"mark": {"type": "line", "interpolate": "step-after", "point": {"size": 24}}, "encoding": encoding}]
        low, high = min(row["value"] for row in rows), max(row["value"] for row in rows)
        words = f"{number(low)} to {number(high)} {unit}"
        table = Table(["variant", "second", title], [[r["name"], f"{r['s']:.1f}", r["said"]] for r in rows])
        caption = "Looked at between the stretches, never within one. Colours as above."
        figures.append(Figure(title, charts.figure(rows, layers, height=110), caption, words, table))
    return figures


def _at(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(share * len(values)))]
