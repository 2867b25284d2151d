"""Two results side by side: what differs, how sure that is, and what cannot be held against each other.

two documents (builds or benchmarks) -compare_page-> Page
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgeml.report import charts
from edgeml.report.numbers import milliseconds, number, size
from edgeml.report.parts import Figure, Page, Section, Table, Verdict
from edgeml.report.reading import Document, Form, Reading, read
from edgeml.report.words import ABSENT, figure_of, forecast, interval, latency_of, sentence

# what must be equal, or the difference may be the machine's
CONDITIONS = ("cpu_model", "machine", "cores", "affinity", "governor", "kernel", "onnxruntime", "python")
ASKED = ("scenario", "rows", "settings")
COUNTED = frozenset({"accuracy"})  # metrics that are a share of rows, whose interval follows from their number
NORMAL95 = 1.96
SAME = 0.01  # sizes that differ by less are called equal


@dataclass(frozen=True)
class Side:
    """One of the two: its name on the page, its document, and what that says."""

    name: str
    document: Document
    reading: Reading


def compare_page(a: tuple[str, Document], b: tuple[str, Document]) -> Page:
    """Return the page that holds `b` against `a`, each a name and a document."""
    left, right = (Side(name, document, read(document)) for name, document in (a, b))
    if left.name == right.name:
        left, right = Side(f"A: {left.name}", a[1], left.reading), Side(f"B: {right.name}", b[1], right.reading)
    pairs = [(form, other) for form in left.reading.forms if (other := right.reading.form(form.name)) is not None]
    pairs = pairs or list(zip(left.reading.forms[:1], right.reading.forms[:1], strict=True))
    sections = [_variants((left, right), pairs), _boards((left, right)), _alone((left, right)), _origin((left, right))]
    return Page(
        title=f"{left.name} against {right.name}",
        subtitle=f"Every ratio is {right.name} as a share of {left.name}",
        verdicts=[*_score((left, right)), *[_latency((left, right), pair) for pair in pairs], *_shipped((left, right))],
        facts=[],
        sections=[section for section in sections if section],
        footer=f"Made by edgeml report --compare {left.name} {right.name}.",
    )


def unmatched(left: Mapping[str, Any], right: Mapping[str, Any]) -> str:
    """Return why two measurements cannot be held against each other, or ""."""
    for name, one in (("the first", left), ("the second", right)):
        if not one.get("p50_ms"):
            return f"{name} was not measured"
        if not one.get("valid", True):
            return f"{name} is INVALID: {one.get('why')}"
    for name in ASKED:
        if left.get(name) != right.get(name):
            return f"{name}: {left.get(name)} in one, {right.get(name)} in the other"
    here, there = left.get("environment", {}), right.get("environment", {})
    for name in CONDITIONS:
        if here.get(name) != there.get(name):
            return f"{name}: {here.get(name)} in one, {there.get(name)} in the other"
    return ""


def ratio95(left: Mapping[str, Any], right: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return the ratio of two medians and how far apart their intervals allow it to be."""
    (a_low, a_high), (b_low, b_high) = left["ci95_ms"], right["ci95_ms"]
    return right["p50_ms"] / left["p50_ms"], b_low / a_high, b_high / a_low


def _latency(sides: tuple[Side, Side], pair: tuple[Form, Form]) -> Verdict:
    (a, b), (left, right) = sides, (pair[0].measured, pair[1].measured)
    what = pair[0].name if pair[0].name == pair[1].name else f"{pair[0].name} and {pair[1].name}"
    numbers = [(side.name, latency_of(one.get("p50_ms"))) for side, one in ((a, left), (b, right))]
    if why := unmatched(left, right):
        return Verdict(what, f"The latencies of {what} cannot be compared.", sentence(why), None, numbers)
    ratio, low, high = ratio95(left, right)
    said = f"{ratio:.3f} of the time, between {low:.3f} and {high:.3f}"
    apart = "Measured apart; `edgeml bench compare` in turns gives a narrower interval."
    if high < 1:
        return Verdict(what, f"{b.name} is faster with {what}: {said}.", apart, True, numbers)
    if low > 1:
        return Verdict(what, f"{b.name} is slower with {what}: {said}.", apart, False, numbers)
    return Verdict(what, f"No difference in the latency of {what} is proven: {said}.", apart, None, numbers)


def _score(sides: tuple[Side, Side]) -> list[Verdict]:
    a, b = sides
    metric = a.reading.metric
    one, other = (side.document.get("metrics", {}).get("test", {}).get(metric) for side in sides)
    if not metric or metric != b.reading.metric or one is None or other is None:
        return []
    data = [side.document["dataset"] for side in sides]
    rows = [found.get("test") for found in data]
    numbers = [(a.name, f"{one:.4f}"), (b.name, f"{other:.4f}")]
    if data[0].get("digest") != data[1].get("digest"):
        why = "They were scored on different rows: the difference may be the rows'."
        return [Verdict(metric, f"{metric} {one:.4f} and {other:.4f}, not comparable.", why, None, numbers)]
    if metric not in COUNTED or not all(rows):
        says = f"{metric} changes by {other - one:+.4f}."
        return [Verdict(metric, says, f"No interval is known for {metric} from two summaries.", None, numbers)]
    wide = NORMAL95 * math.sqrt(sum(p * (1 - p) / n for p, n in zip((one, other), rows, strict=True)))
    low, high = other - one - wide, other - one + wide
    said = f"{other - one:+.4f} ({low:+.4f} to {high:+.4f}) over {rows[0]:,} rows"
    if low > 0 or high < 0:
        better = low > 0
        return [Verdict(metric, f"{b.name} is {'better' if better else 'worse'}: {said}.", "", better, numbers)]
    return [Verdict(metric, f"No difference in {metric} is proven: {said}.", "", None, numbers)]


def _shipped(sides: tuple[Side, Side]) -> list[Verdict]:
    """Return what changes on each board that both were chosen for."""
    a, b = sides
    there = {place.name: place for place in b.reading.places if place.chosen}
    told = []
    for place in a.reading.places:
        other = there.get(place.name)
        if other is None or not place.chosen or place.chosen == other.chosen:
            continue
        says = f"{place.title} runs {other.chosen} in {b.name}, {place.chosen} in {a.name}."
        told.append(Verdict(place.name, says, sentence(other.reason) if other.reason else "", None))
    return told


def _variants(sides: tuple[Side, Side], pairs: Sequence[tuple[Form, Form]]) -> Section:
    a, b = sides
    rows = []
    for one, other in pairs:
        why = unmatched(one.measured, other.measured)
        share = "not compared"
        if not why:
            ratio, low, high = ratio95(one.measured, other.measured)
            share = f"{ratio:.3f} ({low:.3f} to {high:.3f})"
        rows += [
            [one.name, "median here", _median(one), _median(other), share, "see the verdict" if why else "alike"],
            [one.name, "p99 here", *(latency_of(f.measured.get("p99_ms")) for f in (one, other)), "", ""],
            [one.name, "size", *_sizes(one, other), ""],
        ]
        if one.score is not None or other.score is not None:
            rows.append([one.name, a.reading.metric, figure_of(one.score), figure_of(other.score), "", ""])
        held = [form.measured.get("memory_mb", {}).get("steady") for form in (one, other)]
        if any(held):
            rows.append([one.name, "memory here", *(f"{number(mb)} MB" if mb else ABSENT for mb in held), "", ""])
    head = ["variant", "what", a.name, b.name, "ratio (interval)", "conditions"]
    figure = _pairs(sides, pairs)
    return Section("Variants", table=Table(head, rows, frozenset({2, 3, 4})), figures=[figure] if figure else [])


def _median(form: Form) -> str:
    if not form.timed:
        return ABSENT
    said = f"{milliseconds(form.measured['p50_ms'])} ({interval(form.measured.get('ci95_ms'))})"
    return said if form.valid else f"INVALID: {said}"


def _sizes(one: Form, other: Form) -> list[str]:
    if one.bytes is None or other.bytes is None:
        return [ABSENT if form.bytes is None else size(form.bytes) for form in (one, other)] + [ABSENT]
    ratio = other.bytes / one.bytes
    return [size(one.bytes), size(other.bytes), "equal" if abs(ratio - 1) < SAME else f"{ratio:.3f}"]


def _pairs(sides: tuple[Side, Side], pairs: Sequence[tuple[Form, Form]]) -> Figure | None:
    names = [side.name for side in sides]
    rows = [
        {
            "name": pair[0].name,
            "side": side,
            "ms": form.measured["p50_ms"],
            "low": (form.measured.get("ci95_ms") or (form.measured["p50_ms"],) * 2)[0],
            "high": (form.measured.get("ci95_ms") or (form.measured["p50_ms"],) * 2)[1],
            "valid": form.valid,
            "said": _median(form),
        }
        for pair in pairs
        for side, form in zip(names, pair, strict=True)
        if form.timed
    ]
    if not rows:
        return None
    x = charts.latency("ms", "median of one query here", [row[key] for row in rows for key in ("low", "high")])
    common = {
        "y": charts.names(order=[pair[0].name for pair in pairs]),
        "yOffset": {"field": "side", "type": "nominal", "sort": names},
        "color": charts.colour(names, field="side", legend=True),
        "opacity": charts.fade(),
        "tooltip": charts.tips(name="variant", side="in", said="median"),
    }
    layers: list[charts.Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 3},
            "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, **common},
        },
        {"mark": {"type": "point", "filled": True, "size": 110}, "encoding": {"x": x, **common}},
    ]
    words = "; ".join(f"{row['name']} {row['side']} {row['said']}" for row in rows)
    table = Table(["variant", "in", "median"], [[row["name"], row["side"], row["said"]] for row in rows])
    caption = "Point: median, line: its 95 % interval. Faded: INVALID."
    spec = charts.figure(rows, layers, height=max(80, 56 * len(pairs)))
    return Figure("Latency here, side by side", spec, caption, words, table)


def _boards(sides: tuple[Side, Side]) -> Section:
    a, b = sides
    there = {place.name: place for place in b.reading.places}
    rows = []
    for place in a.reading.places:
        for name, one in place.predictions.items():
            other = there[place.name].predictions.get(name) if place.name in there else None
            if other is None:
                continue
            apart = one["high"] < other["low"] or other["high"] < one["low"]
            sure = "the ranges do not meet" if apart else "the ranges overlap: not decided"
            ratio = f"{other['predicted'] / one['predicted']:.3f}"
            rows.append([place.title, name, forecast(one), forecast(other), ratio, sure])
    head = ["board", "variant", a.name, b.name, "ratio", "how sure"]
    lead = "Two predictions by one method share its errors: their ratio is surer than either."
    return Section("Boards", lead, Table(head, rows, frozenset({4})) if rows else None)


def _alone(sides: tuple[Side, Side]) -> Section:
    """Return what only one of the two has."""
    items = []
    for side, other in (sides, sides[::-1]):
        names = [name for name in side.reading.names if other.reading.form(name) is None]
        items += [f"only {side.name} has {', '.join(names)}"] if names else []
        known = {place.name for place in other.reading.places}
        titles = [place.title for place in side.reading.places if place.name not in known]
        items += [f"only {side.name} has {', '.join(titles)}"] if titles else []
    return Section("Only in one", items=items)


def _origin(sides: tuple[Side, Side]) -> Section:
    facts = [_facts(side) for side in sides]
    names = list(dict.fromkeys([*facts[0], *facts[1]]))
    pairs = {name: tuple(found.get(name, ABSENT) for found in facts) for name in names}
    rows = [[name, *pair, "" if pair[0] == pair[1] else "differs"] for name, pair in pairs.items()]
    head = ["what", sides[0].name, sides[1].name, ""]
    return Section("Where they come from", table=Table(head, rows) if rows else None, open=False)


def _facts(side: Side) -> dict[str, str]:
    document = side.document
    first = side.reading.timed[0].measured if side.reading.timed else {}
    found = {name: str(document[name]) for name in ("release", "created", "command", "run") if document.get(name)}
    found |= {f"made from {name}": str(digest) for name, digest in document.get("lineage", {}).items()}
    environment = {**document.get("environment", {}), **first.get("environment", {})}
    return found | {name: str(value) for name, value in environment.items() if name in CONDITIONS or "onnx" in name}
