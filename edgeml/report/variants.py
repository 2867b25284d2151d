"""The variants: what each costs and is worth, as a table and as the front of those that nothing beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report import charts
from edgeml.report.numbers import milliseconds, size
from edgeml.report.parts import Figure, Section, Table
from edgeml.report.reading import HERE, Form, Reading
from edgeml.report.words import ABSENT, apart, figure_of, interval, latency_of

DOT = {"least": 60, "most": 700}  # area of a point in square pixels, by the size of its file
PLACES_SHOWN = 16  # to choose from


def variants(reading: Reading) -> Section:
    """Return the part about every variant."""
    compared = any(form.told for form in reading.forms)
    lead = "Every variant ran over all held-out rows through the code that devices run, compared with its source."
    return Section(
        "Variants",
        lead if compared else "Timed through the code that devices run.",
        _table(reading),
        [figure for figure in (front(reading),) if figure],
    )


def _table(reading: Reading) -> Table | None:
    if not reading.forms:
        return None
    scored = any(form.score is not None for form in reading.forms)
    compared = any(form.told for form in reading.forms)
    head = ["variant", "size", "median here (95 % interval)", "p90", "p99"]
    head += [reading.metric, "drop (95 % bound)"] if scored else []
    head += ["max difference", "label flips", "verdict"] if compared else ["queries", "measurement"]
    rows = []
    for form in reading.forms:
        row = [form.name, ABSENT if form.bytes is None else size(form.bytes), _median(form)]
        row += [latency_of(form.measured.get(name)) for name in ("p90_ms", "p99_ms")]
        row += [figure_of(form.score), _drop(form)] if scored else []
        row += _compared(form) if compared else [f"{form.measured.get('n', 0):,}", _validity(form)]
        rows.append(row)
    faded = {index for index, form in enumerate(reading.forms) if form.passed is False}
    return Table(head, rows, frozenset(range(1, len(head) - (2 if compared else 1))), frozenset(faded))


def _median(form: Form) -> str:
    if not form.timed:
        return ABSENT
    said = f"{latency_of(form.measured['p50_ms'])} ({interval(form.measured.get('ci95_ms'))})"
    return said if form.valid else f"INVALID: {said}"


def _validity(form: Form) -> str:
    if not form.timed:
        return ABSENT
    return "valid" if form.valid else "INVALID, see below"


def _compared(form: Form) -> list[str]:
    parity = form.told["parity"]
    flips = f"{parity['label_flips']} of {parity['rows']:,}" + (f" (ties {parity['ties']})" if parity["ties"] else "")
    return [apart(parity["max_abs"]), flips, form.told["verdict"]]


def _drop(form: Form) -> str:
    if form.score is None:
        return ABSENT
    return f"{form.told['accuracy_drop']:+.4f} (≤ {form.told['accuracy_drop_upper']:+.4f})"


def front(reading: Reading) -> Figure | None:
    """Return accuracy against latency, the area of a point its size; size against latency where nothing was scored."""
    scored = any(form.score is not None for form in reading.forms)
    points = [point for point in _points(reading) if point["y" if scored else "bytes"] is not None]
    if not points:
        return None
    for point in points:
        point["up"] = point["y"] if scored else point["bytes"] / 1e6
    usable = dict.fromkeys(point["where"] for point in points if point["valid"])  # shown first
    places = list(usable | dict.fromkeys(point["where"] for point in points))
    best = _front(points, scored)
    for point in points:
        point["front"] = any(point is one for one in best)
    title = f"{reading.metric} against latency" if scored else "Size against latency"
    unbeaten = [point["name"] for point in best if point["where"] == places[0]]
    words = f"On {places[0]} no other variant beats {', '.join(unbeaten) or 'any'} in both."
    spec = _front_spec(points, reading, (places, scored))
    return Figure(
        title[:1].upper() + title[1:], spec, _how_to_read(reading.metric, scored), words, _front_table(points, reading)
    )


def _how_to_read(metric: str, scored: bool) -> str:
    said = "Bars are intervals: of the median where it was measured, of the prediction elsewhere"
    if scored:
        said += f"; downwards, how far {metric} may lie below with 95 % confidence"
    said += ". The dashed line joins the variants that no other beats in both. Faded: INVALID or refused, never used."
    return said + (" The area of a point is its size." if scored else "")


def _points(reading: Reading) -> list[dict[str, Any]]:
    """Return a point per variant and place: here where it was timed, and on boards where it was predicted."""
    found = []
    for form in reading.timed:
        low, high = form.measured.get("ci95_ms") or (None, None)
        found.append(
            _point(form, "this machine", (low, form.measured["p50_ms"], high), ok=form.valid, method="measured")
        )
    for place in reading.places[:PLACES_SHOWN]:
        if place.name == HERE:
            continue
        for name, one in place.predictions.items():
            form = reading.form(name) or Form(name=name)
            times = one["low"], one["predicted"], one["high"]
            found.append(_point(form, place.title, times, ok=True, method=str(one.get("method", ""))))
    return found


def _point(
    form: Form, where: str, times: tuple[float | None, float, float | None], *, ok: bool, method: str
) -> dict[str, Any]:
    low, x, high = times
    return {
        "name": form.name,
        "where": where,
        "x": x,
        "low": low if low is not None else x,
        "high": high if high is not None else x,
        "y": form.score,
        "y_low": form.score_low if form.score_low is not None else form.score,
        "bytes": form.bytes,
        "valid": ok and form.passed is not False,
        "said": f"{milliseconds(x)} ({interval((low, high))}), {method}" if low and high else milliseconds(x),
        "size": ABSENT if form.bytes is None else size(form.bytes),
        "score": figure_of(form.score),
    }


def _front(points: Sequence[dict[str, Any]], scored: bool) -> list[dict[str, Any]]:
    """Return the points that no other of their place beats in both, from left to right."""
    sign = 1 if scored else -1
    found = []
    for point in points:
        rivals = [one for one in points if one["where"] == point["where"] and one["valid"] and one is not point]
        beaten = any(
            one["x"] <= point["x"]
            and sign * one["up"] >= sign * point["up"]
            and (one["x"], one["up"]) != (point["x"], point["up"])
            for one in rivals
        )
        if point["valid"] and not beaten:
            found.append(point)
    return sorted(found, key=lambda point: (point["where"], point["x"]))


def _front_spec(
    points: Sequence[Mapping[str, Any]], reading: Reading, shape: tuple[Sequence[str], bool]
) -> charts.Spec:
    places, scored = shape
    here = [{"filter": "datum.where == where"}] if len(places) > 1 else []
    y_scale = {"zero": False, "nice": True, "padding": 22}
    y = charts.quantity("up", reading.metric if scored else "size, MB", scale=y_scale, titleAnchor="end", format=".4~g")
    wide = max(places, key=lambda place: _factor(points, place))  # the axis must do for every place
    values = [value for p in points if p["where"] == wide for value in (p["low"], p["high"])]
    x = charts.latency("x", "latency of one row", values)
    size_scale = {"range": [DOT["least"], DOT["most"]], "zero": True}
    tint, fade = charts.colour(reading.names, legend=True), charts.fade()
    told = charts.tips(name="variant", where="where", said="latency", score=reading.metric or "score", size="size")
    layers: list[charts.Spec] = [
        {
            "mark": {"type": "line", "color": charts.SOFT, "strokeDash": [4, 3], "tooltip": None},
            "transform": [*here, {"filter": "datum.front"}],
            "encoding": {"x": x, "y": y, "order": {"field": "x"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "transform": here,
            "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y, "color": tint, "opacity": fade},
        },
    ]
    if scored:
        upright = {"x": x, "y": y | {"field": "y_low"}, "y2": {"field": "up"}, "color": tint, "opacity": fade}
        layers.append({"mark": {"type": "rule", "strokeWidth": 2}, "transform": here, "encoding": upright})
    area = {"field": "bytes", "type": "quantitative", "scale": size_scale, "legend": None}
    layers.append(
        {
            "mark": {"type": "point", "filled": True, "stroke": charts.PAPER, "strokeWidth": 1.5},
            "transform": here,
            "encoding": {
                "x": x,
                "y": y,
                "color": tint,
                "opacity": fade,
                "size": area if scored else {"value": 160},
                "tooltip": told,
            },
        }
    )
    menu = {"input": "select", "options": list(places), "name": "where "}
    picked = {"params": [{"name": "where", "value": places[0], "bind": menu}]} if len(places) > 1 else {}
    return charts.figure(points, layers, height=280, **picked)


def _factor(points: Sequence[Mapping[str, Any]], place: str) -> float:
    """Return how many times as long the longest latency of a place is as its shortest."""
    there = [point for point in points if point["where"] == place]
    longest, shortest = max(point["high"] for point in there), min(point["low"] for point in there)
    return float(longest / max(1e-9, shortest))


def _front_table(points: Sequence[Mapping[str, Any]], reading: Reading) -> Table:
    head = ["variant", "where", "latency", reading.metric or "score", "size", "beaten by another"]
    rows = [
        [point["name"], point["where"], point["said"], point["score"], point["size"], "no" if point["front"] else "yes"]
        for point in points
    ]
    return Table(head, rows, faded=frozenset(i for i, point in enumerate(points) if not point["valid"]))
