"""The boards: what is predicted for each, by which method, against which limit, and how far that is from their roof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report import charts
from edgeml.report.numbers import milliseconds, number
from edgeml.report.parts import Figure, Section, Table
from edgeml.report.reading import Form, Place, Reading
from edgeml.report.words import ABSENT, forecast, hardware, interval, latency_of, limits_of

METHODS = {
    "prior": "calculated from published facts of the board and published measurements of other models; widest range",
    "emulated": "instructions counted under emulation, costed with a model of the core; ranks variants on one board",
    "calibrated": "from kernels that were timed on that very device, set right by reference networks",
    "combined": "several of these, each weighted by how sure it is",
    "measured": "this model itself was timed there",
}
MOST_BARS = 60


def boards(reading: Reading) -> Section:
    """Return the part about every board."""
    places = [place for place in reading.places if place.predictions or place.chosen]
    if not places and not reading.devices:
        return Section("Boards")
    used = {str(one.get("method")) for place in places for one in place.predictions.values()}
    used |= {source["method"] for p in places for one in p.predictions.values() for source in one.get("sources", ())}
    used |= {"measured"} if reading.devices else set()
    figures = [_ranges(reading, places)]
    return Section(
        "Boards",
        "Every prediction is a range; the word behind it says where it comes from.",
        _table(reading, places),
        [figure for figure in figures if figure],
        _notes(places),
        terms=[(name, meaning) for name, meaning in METHODS.items() if name in used],
    )


def _notes(places: Sequence[Place]) -> list[str]:
    notes = [
        f"{place.title}: {note}"
        for place in places
        for one in place.predictions.values()
        for note in one.get("notes", ())
    ]
    return list(dict.fromkeys(notes))


def _table(reading: Reading, places: Sequence[Place]) -> Table:
    chosen = any(place.chosen for place in places)
    head = ["board", "what it is", "variant", "latency of one row", "known operators", "memory"]
    head += ["limits", "choice"] if chosen else []
    rows = []
    for place in places:
        for index, (name, one) in enumerate(place.predictions.items()):
            memory = f"{number(one['memory_mb'])} MB" if one.get("memory_mb") else ABSENT
            coverage = f"{one['coverage']:.0%}" if one.get("coverage") is not None else ABSENT
            what, limits = ("", "") if index else (hardware(place.profile), limits_of(place.limits))
            row = [place.title, what, name, forecast(one), coverage, memory]
            rows.append(row + ([limits, "runs" if name == place.chosen else ""] if chosen else []))
    for device in reading.devices:
        took = device.measured
        said = f"{latency_of(took.get('p50_ms'))} ({interval(took.get('ci95_ms'))}), measured"
        said = said if took.get("valid", True) else f"INVALID: {said}; {took.get('why')}"
        row = [device.device, device.board or ABSENT, device.variant, said, "all", ABSENT]
        rows.append(row + (["none", ""] if chosen else []))
    return Table(head, rows, frozenset({4, 5}))


def _ranges(reading: Reading, places: Sequence[Place]) -> Figure | None:
    rows = [
        {
            "board": place.title,
            "name": name,
            **{key: one[key] for key in ("low", "predicted", "high")},
            "limit": place.limits.get("latency_p90_ms"),
            "method": str(one.get("method", "")),
            "valid": name == place.chosen or not place.chosen,
            "said": forecast(one),
        }
        for place in places
        for name, one in place.predictions.items()
    ]
    seen = [_seen(device, places) for device in reading.devices if device.measured.get("p50_ms")]
    rows = rows[:MOST_BARS]
    if not rows and not seen:
        return None
    titles = list(dict.fromkeys([row["board"] for row in rows] + [row["board"] for row in seen]))
    order = list(dict.fromkeys([*reading.names, *(row["name"] for row in rows)]))
    values = [row[key] for row in rows for key in ("low", "high", "limit") if row[key]] + [row["ms"] for row in seen]
    words = "; ".join(f"{row['board']} {row['name']} {row['said']}" for row in rows if row["valid"])
    table = Table(
        ["board", "variant", "latency of one row"],
        [[row["board"], row["name"], row["said"]] for row in rows]
        + [[row["board"], row["name"], f"{row['said']} on {row['device']}"] for row in seen],
    )
    caption = "Bar: the range, point: the prediction." + (
        " Strong: what the board runs." if any(p.chosen for p in places) else ""
    )
    caption += " Dashed: your limit." if any(row["limit"] for row in rows) else ""
    caption += " Diamond: measured on a real device." if seen else ""
    spec = _ranges_spec((rows, seen), titles, order=order, values=values)
    return Figure("Latency per board", spec, caption, words, table)


def _ranges_spec(
    found: tuple[Sequence[charts.Row], Sequence[charts.Row]],
    titles: Sequence[str],
    *,
    order: Sequence[str],
    values: Sequence[float],
) -> charts.Spec:
    rows, seen = found
    x = charts.latency("predicted", "latency of one row", values)
    y = charts.names("board", order=titles)
    offset = {"field": "name", "type": "nominal", "sort": list(order), "scale": {"paddingOuter": 0.3}}
    told = charts.tips(board="board", name="variant", said="predicted")
    tint, fade = charts.colour(order, legend=True), charts.fade()
    common = {"y": y, "yOffset": offset, "color": tint, "tooltip": told}
    layers: list[charts.Spec] = [
        {
            "mark": {"type": "bar", "cornerRadius": 6},
            "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, **common,
                         "opacity": {"condition": {"test": "datum.valid", "value": 0.5}, "value": 0.2}},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "stroke": charts.PAPER, "strokeWidth": 1},
            "encoding": {"x": x, **common, "opacity": fade},
        },
        {
            "mark": {"type": "tick", "color": charts.BAD, "thickness": 2, "size": 16},
            "transform": [{"filter": "isValid(datum.limit)"}],
            "encoding": {"x": x | {"field": "limit"}, "y": y, "yOffset": offset},
        },
    ]  # fmt: skip
    if seen:
        layers.append(
            {
                "data": {"values": list(seen)},
                "mark": {"type": "point", "shape": "diamond", "filled": True, "size": 110, "stroke": charts.INK},
                "encoding": {
                    **(common | {"tooltip": charts.tips(device="device", name="variant", said="measured")}),
                    "x": x | {"field": "ms"},
                    "opacity": fade,
                },
            }
        )
    height = max(90, len(titles) * (14 * len(order) + 14))
    return charts.figure(rows, layers, height=height)


def _seen(device: Any, places: Sequence[Place]) -> dict[str, Any]:
    title = next((place.title for place in places if place.name == device.board), device.board or device.device)
    took = device.measured
    said = f"{milliseconds(took['p50_ms'])} ({interval(took.get('ci95_ms'))})"
    return {
        "board": title,
        "device": device.device,
        "name": device.variant,
        "ms": took["p50_ms"],
        "said": said,
        "valid": bool(took.get("valid", True)),
    }


def roofline(reading: Reading) -> Section:
    """Return where each board's arithmetic and memory bound the model, and how near the predictions come."""
    drawn = [place for place in reading.places if _peaks(place.profile)]
    forms = [form for form in reading.forms if form.work.get("macs")]
    if not drawn or not forms:
        return Section("Roofline")
    rows = [row for place in drawn for form in forms for row in _marks(place, form)]
    roofs = [row for place in drawn for row in _roof(place, [row["x"] for row in rows])]
    spec = _roofline_spec((rows, roofs), [place.title for place in drawn], names=[form.name for form in forms])
    models = [row for row in rows if row["kind"] == "the model"]
    words = "; ".join(f"{row['board']} {row['name']} {row['said']}" for row in models)
    table = Table(
        ["board", "variant", "what", "MAC per byte", "GMAC/s"],
        [[row["board"], row["name"], row["kind"], number(row["x"]), row["said"]] for row in rows],
        frozenset({3}),
    )
    caption = (
        "Lines: what one core can do, bounded by memory on the slope and by arithmetic on the flat, by the facts of "
        "the board. Rings: kinds of operators at the best they can reach there, by multiply-accumulates per byte of "
        "their weights. Points with bars: the whole model as predicted. The gap is calls, small operators and caches."
    )
    return Section("Roofline", figures=[Figure("Roofline, one core", spec, caption, words, table)], open=False)


def _peaks(profile: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Return GMAC/s in fp32 and in int8 and GB/s of one core; None where a fact is not known."""
    needed = ("frequency_ghz", "fp32_flops_per_cycle", "int8_macs_per_cycle", "bandwidth_mb_s")
    if any(not profile.get(name) for name in needed):
        return None
    hertz, flops, macs, bandwidth = (float(profile[name]) for name in needed)
    return hertz * flops / 2, hertz * macs, bandwidth / 1e3


def _marks(place: Place, form: Form) -> list[dict[str, Any]]:
    peaks, work = _peaks(place.profile), form.work
    assert peaks is not None, "only boards whose peaks are known are drawn"
    fp32, int8, bandwidth = peaks
    rows = []
    for kind, macs in work["macs_by_class"].items():
        weights = work["weights_by_class"].get(kind, 0)
        if weights and macs:
            best = min(macs / weights * bandwidth, int8 if "." in kind else fp32)
            said = f"at best {number(best)}"
            rows.append(_mark((place, form), kind, (macs / weights, best), said=said, share=macs / work["macs"]))
    predicted = place.predictions.get(form.name)
    moved = work["weight_bytes"] + work["moved_bytes"]
    if predicted and moved:
        low, middle, high = (work["macs"] / predicted[key] / 1e6 for key in ("high", "predicted", "low"))
        said = f"{number(middle)} ({number(low)} to {number(high)}), {predicted.get('method', '')}"
        mark = _mark((place, form), "the model", (work["macs"] / moved, middle), said=said, share=1.0)
        rows.append(mark | {"low": low, "high": high})
    return rows


def _mark(of: tuple[Place, Form], kind: str, at: tuple[float, float], *, said: str, share: float) -> dict[str, Any]:
    place, form = of
    return {"board": place.title, "name": form.name, "kind": kind, "x": at[0], "y": at[1], "said": said,
            "share": share, "work": f"{share:.0%} of the multiply-accumulates"}  # fmt: skip


def _roof(place: Place, xs: Sequence[float]) -> list[dict[str, Any]]:
    peaks = _peaks(place.profile)
    assert peaks is not None, "only boards whose peaks are known are drawn"
    fp32, int8, bandwidth = peaks
    left, right = min(xs) / 3, max(xs) * 3
    rows = []
    for kind, peak in (("int8", int8), ("fp32", fp32)):
        corner = peak / bandwidth
        ends = sorted({left, min(max(corner, left), right), right})
        rows += [{"board": place.title, "roof": kind, "x": x, "y": min(peak, x * bandwidth)} for x in ends]
    return rows


def _roofline_spec(
    found: tuple[Sequence[charts.Row], Sequence[charts.Row]], titles: Sequence[str], *, names: Sequence[str]
) -> charts.Spec:
    rows, roofs = found
    here = [{"filter": "datum.board == board"}]
    scale = {"type": "log", "nice": False, "padding": 10}
    x = charts.quantity("x", "multiply-accumulates per byte", scale=scale, format="~g")
    y = charts.quantity("y", "GMAC/s", scale=scale, format="~g")
    told = charts.tips(name="variant", kind="what", work="share", said="GMAC/s")
    tint, area = charts.colour(names, legend=True), {"range": [40, 300]}
    ends = [*here, {"joinaggregate": [{"op": "max", "field": "x", "as": "end"}]}, {"filter": "datum.x == datum.end"}]
    layers: list[charts.Spec] = [
        {
            "data": {"values": list(roofs)},
            "transform": here,
            "mark": {"type": "line", "strokeWidth": 2, "color": charts.SOFT},
            "encoding": {"x": x, "y": y, "detail": {"field": "roof"}},
        },
        {
            "data": {"values": list(roofs)},
            "transform": ends,
            "mark": {"type": "text", "align": "right", "dy": -9, "color": charts.SOFT},
            "encoding": {"x": x, "y": y, "text": {"field": "roof"}},
        },
        {
            "transform": [*here, {"filter": "datum.kind != 'the model'"}],
            "mark": {"type": "point", "strokeWidth": 2},
            "encoding": {"x": x, "y": y, "color": tint, "tooltip": told,
                         "size": {"field": "share", "type": "quantitative", "legend": None, "scale": area}},
        },
        {
            "transform": [*here, {"filter": "datum.kind != 'the model'"}],
            "mark": {"type": "text", "align": "left", "dx": 12, "dy": 12, "fontSize": 11, "color": charts.SOFT},
            "encoding": {"x": x, "y": y, "text": {"field": "kind"}},
        },
        {
            "transform": [*here, {"filter": "datum.kind == 'the model'"}],
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": tint},
        },
        {
            "transform": [*here, {"filter": "datum.kind == 'the model'"}],
            "mark": {"type": "point", "filled": True, "size": 130, "opacity": 1, "stroke": charts.PAPER},
            "encoding": {"x": x, "y": y, "color": tint, "tooltip": told},
        },
    ]  # fmt: skip
    menu = {"input": "select", "options": list(titles), "name": "board "}
    picked = {"name": "board", "value": titles[0], **({"bind": menu} if len(titles) > 1 else {})}
    return charts.figure(rows, layers, height=300, params=[picked])
