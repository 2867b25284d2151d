"""What a variant costs beside its latency: operators, memory, a cold start, and the settings that were tried."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report import charts
from edgeml.report.numbers import milliseconds, number, size
from edgeml.report.parts import Figure, Section, Table
from edgeml.report.reading import Form, Reading
from edgeml.report.words import ABSENT, latency_of, settings_of

MOST_KINDS = 7  # operator types with a colour of their own
MOST_NODES = 12  # in the table, of each variant
MEMORY = {  # a key of memory_mb, and what it is
    "anonymous": "anonymous: what a full memory cannot drop",
    "steady": "resident after some answers",
    "peak": "peak while loading",
}
STEPS = {"process_ms": "process", "import_ms": "import", "session_ms": "session", "first_ms": "first answer"}


def operators(reading: Reading) -> Section:
    """Return where the time goes, operator by operator."""
    forms = [form for form in reading.timed if form.measured.get("operators")]
    if not forms:
        return Section("Operators")
    shares = {form.name: _by_kind(form) for form in forms}
    totals: dict[str, float] = {}
    for found in shares.values():
        for kind, ms in found.items():
            totals[kind] = totals.get(kind, 0.0) + ms
    named = sorted(totals, key=lambda kind: -totals[kind])[:MOST_KINDS]
    rows = [row for form in forms for row in _kind_rows(form, shares[form.name], named)]
    order = [*named, "others"] if len(totals) > len(named) else named
    layers = [
        {
            "mark": {"type": "bar", "height": 22, "stroke": charts.PAPER, "strokeWidth": 1},
            "encoding": {
                "x": charts.quantity("ms", "time of one query in kernels", labelExpr=charts.LATENCY),
                "y": charts.names(order=[form.name for form in forms]),
                "color": charts.colour(order, field="operator", legend=True),
                "order": {"field": "place", "type": "quantitative"},
                "opacity": charts.fade(),
                "tooltip": charts.tips(name="variant", operator="operator", said="time", share="share"),
            },
        }
    ]
    words = "; ".join(f"{form.name}: {_largest(shares[form.name])}" for form in forms)
    table = Table(
        ["variant", "operator", "time", "share"], [[r["name"], r["operator"], r["said"], r["share"]] for r in rows]
    )
    height = max(60, len(forms) * charts.ROW)
    caption = (
        "From onnxruntime's own profile of the graph as it runs, fused and laid out; its clock counts microseconds."
    )
    picture = Figure("Time by operator", charts.figure(rows, layers, height=height), caption, words, table)
    return Section("Operators", figures=[picture], table=_nodes(forms), items=[words], open=False)


def _by_kind(form: Form) -> dict[str, float]:
    found: dict[str, float] = {}
    for node in form.measured["operators"]:
        found[node["operator"]] = found.get(node["operator"], 0.0) + node["ms"]
    return found


def _kind_rows(form: Form, found: Mapping[str, float], named: Sequence[str]) -> list[dict[str, Any]]:
    total = sum(found.values()) or 1.0
    shown = {kind: found[kind] for kind in named if kind in found}
    rest = sum(ms for kind, ms in found.items() if kind not in named)
    if rest:
        shown["others"] = rest
    return [
        {
            "name": form.name,
            "valid": form.valid,
            "operator": kind,
            "ms": ms,
            "place": index,
            "said": milliseconds(ms),
            "share": f"{ms / total:.0%}",
        }
        for index, (kind, ms) in enumerate(shown.items())
    ]


def _largest(found: Mapping[str, float]) -> str:
    total = sum(found.values()) or 1.0
    largest = sorted(found.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{kind} {ms / total:.0%}" for kind, ms in largest)


def _nodes(forms: Sequence[Form]) -> Table:
    rows = []
    for form in forms:
        total = sum(node["ms"] for node in form.measured["operators"]) or 1.0
        slowest = sorted(form.measured["operators"], key=lambda node: -node["ms"])[:MOST_NODES]
        rows += [
            [
                form.name,
                node["operator"],
                node["name"],
                milliseconds(node["ms"]),
                f"{node['ms'] / total:.1%}",
                size(node["parameter_bytes"]) if node.get("parameter_bytes") else "none",
            ]
            for node in slowest
        ]
    title = f"The {MOST_NODES} slowest nodes of each variant"
    return Table(["variant", "operator", "node", "time", "share", "weights"], rows, frozenset({3, 4, 5}), title=title)


def memory(reading: Reading) -> Section:
    """Return the memory of a process that serves each variant, and what a new one needs until its first answer."""
    forms = [form for form in reading.timed if form.measured.get("memory_mb")]
    figures = [_memory(forms), _cold(forms)] if forms else []
    boards = [
        [place.title, name, f"{number(one['memory_mb'])} MB", f"{number(limit)} MB" if limit else ABSENT]
        for place in reading.places
        for name, one in place.predictions.items()
        if one.get("memory_mb")
        for limit in [
            place.limits.get("memory_mb") or place.profile.get("usable_ram_mb") or place.profile.get("ram_mb")
        ]
    ]
    if not boards and not forms:
        return Section("Memory and cold start")
    head = ["board", "variant", "predicted, at the peak", "there is, or may be used"]
    return Section(
        "Memory and cold start",
        "Resident memory of the whole process, Python and onnxruntime included; megabytes are 10^6 bytes.",
        Table(head, boards, frozenset({2, 3})) if boards else None,
        [figure for figure in figures if figure],
        [] if forms else ["Memory and cold start were not measured here."],
    )


def _memory(forms: Sequence[Form]) -> Figure:
    rows = []
    for form in forms:
        held = form.measured["memory_mb"]
        rows += [
            {"name": form.name, "mb": held[key], "what": key, "said": f"{number(held[key])} MB"}
            for key in MEMORY
            if key in held
        ]
    order = [form.name for form in forms]
    common = {
        "x": charts.quantity("mb", "megabytes", scale={"zero": True, "nice": True}),
        "y": charts.names(order=order),
        "color": charts.colour(order),
        "tooltip": charts.tips(name="variant", what="what", said="memory"),
    }
    marks = {
        "steady": ({"type": "bar", "height": 20}, 0.45),
        "anonymous": ({"type": "bar", "height": 20}, 0.9),
        "peak": ({"type": "tick", "size": 26, "thickness": 3}, 1.0),
    }
    layers: list[charts.Spec] = [
        {
            "mark": mark,
            "transform": [{"filter": f"datum.what == '{key}'"}],
            "encoding": {**common, "opacity": {"value": shade}},
        }
        for key, (mark, shade) in marks.items()
    ]
    words = "; ".join(f"{row['name']} {row['what']} {row['said']}" for row in rows if row["what"] != "anonymous")
    table = Table(
        ["variant", "what", "memory"], [[r["name"], MEMORY[r["what"]], r["said"]] for r in rows], frozenset({2})
    )
    caption = (
        "Light: resident after some answers. Strong: anonymous, which a full memory cannot drop. "
        "Tick: peak while loading."
    )
    height = max(60, len(forms) * charts.ROW)
    return Figure("Memory of the process here", charts.figure(rows, layers, height=height), caption, words, table)


def _cold(forms: Sequence[Form]) -> Figure | None:
    shown = [form for form in forms if form.measured.get("cold_start")]
    if not shown:
        return None
    rows = [
        {"name": form.name, "step": title, "ms": ms, "place": place, "said": milliseconds(ms)}
        for form in shown
        for place, (key, title) in enumerate(STEPS.items())
        for ms in [form.measured["cold_start"][key]]
    ]
    layers = [
        {
            "mark": {"type": "bar", "height": 22, "stroke": charts.PAPER, "strokeWidth": 1},
            "encoding": {
                "x": charts.quantity("ms", "time until the first answer", labelExpr=charts.LATENCY),
                "y": charts.names(order=[form.name for form in shown]),
                "color": charts.colour(list(STEPS.values()), field="step", legend=True),
                "order": {"field": "place", "type": "quantitative"},
                "tooltip": charts.tips(name="variant", step="step", said="time"),
            },
        }
    ]
    totals = {form.name: sum(form.measured["cold_start"][key] for key in STEPS) for form in shown}
    words = "; ".join(f"{name} answers first after {milliseconds(ms)}" for name, ms in totals.items())
    table = Table(["variant", "step", "time"], [[r["name"], r["step"], r["said"]] for r in rows], frozenset({2}))
    starts = shown[0].measured["cold_start"].get("starts", 1)
    caption = f"Median of {starts} new processes; the files come from the page cache." if starts > 1 else (
        "One new process; the files come from the page cache."
    )  # fmt: skip
    height = max(60, len(shown) * charts.ROW)
    return Figure("Cold start", charts.figure(rows, layers, height=height), caption, words, table)


def tuned(reading: Reading) -> Section:
    """Return the session settings that were tried here, and which were kept."""
    forms = [form for form in reading.timed if form.measured.get("tuned")]
    rows = [
        [
            form.name,
            settings_of(trial["change"]),
            ABSENT if trial["ratio"] is None else f"{trial['ratio']:.3f}",
            ABSENT if not trial.get("ratio95") else f"{trial['ratio95'][0]:.3f} to {trial['ratio95'][1]:.3f}",
            "kept" if trial["kept"] else "left",
            trial["why"],
        ]
        for form in forms
        for trial in form.measured["tuned"]["trials"]
    ]
    said = [f"{form.name}: {settings_of(form.measured['tuned']['settings'])}" for form in forms]
    head = ["variant", "change", "of the time before", "95 % interval", "", "why"]
    return Section(
        "Session settings",
        "Each change was measured in turns with the settings before it, and kept where it is proven to be worth it.",
        Table(head, rows, frozenset({2, 3})) if rows else None,
        items=said,
        open=False,
    )


def first_answer(form: Form) -> str:
    """Return how long a new process takes until its first answer."""
    cold = form.measured.get("cold_start")
    return latency_of(sum(cold[key] for key in STEPS) if cold else None)
