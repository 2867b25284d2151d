"""What the page says, taken from the plain summary of a run: words and rows, no HTML.

A value that is not in the summary is shown as not measured; nothing is made up for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeml.report import plots
from edgeml.report.plots import LATENCY, Axis
from edgeml.report.scales import milliseconds, number

ABSENT = "not measured"
MOST_CANDIDATES = 12


@dataclass(frozen=True)
class Table:
    """Rows of ready texts; the columns named in `numbers` are aligned right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """One picture with what it shows and how to read it."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page; `open` parts are shown, the others fold."""

    title: str
    lead: str = ""
    table: Table | None = None
    figures: Sequence[Figure] = ()
    items: Sequence[str] = ()
    open: bool = True


@dataclass(frozen=True)
class Page:
    """A report. `verdicts` come first: one sentence per board, and the fleet's."""

    title: str
    subtitle: str
    verdicts: Sequence[tuple[str, str, bool]]  # who, what, good news
    facts: Sequence[tuple[str, str]]  # name, value
    sections: Sequence[Section] = field(default_factory=tuple)
    footer: str = ""


def build_page(summary: Mapping[str, Any], *, fleet: Mapping[str, Any] | None = None) -> Page:
    """Return the page of a run's summary; `fleet` adds the story of rollouts and federated rounds."""
    sections = [
        *(_fleet_sections(fleet) if fleet else []),
        _variants(summary),
        _boards(summary),
        _mistakes(summary),
        _search(summary),
        _data(summary),
        _origin(summary),
    ]
    release, created = summary.get("release", ABSENT), summary.get("created", "")
    return Page(
        title=summary["model"],
        subtitle=f"release {release} · {summary.get('task', '')} · {created}",
        verdicts=_verdicts(summary, fleet),
        facts=_facts(summary),
        sections=[section for section in sections if section.table or section.figures or section.items],
        footer=f"Made by {summary.get('command') or 'edgeml'}, run {summary.get('run', ABSENT)}.",
    )


def _verdicts(summary: Mapping[str, Any], fleet: Mapping[str, Any] | None) -> list[tuple[str, str, bool]]:
    told = []
    if fleet:
        before, after = fleet["before"], fleet["after"]
        change = f"{after['metric']} {before['value']:.4f} → {after['value']:.4f}"
        words = f"{change} after {len(fleet['rounds'])} federated rounds; {after['reason']}"
        told.append(("the fleet", words, bool(after["released"])))
    for board, choice in summary["devices"].items():
        told.append((board, f"runs {choice['variant']}. {_sentence(choice['reason'])}", choice["fits"]))
    if not summary["devices"]:
        told.append(
            ("no board", "was named, so every variant that passed is in the bundle and fp32 is the default.", True)
        )
    return told


def _facts(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    metric = summary.get("metric", "")
    test, source = summary["metrics"].get("test", {}), summary["metrics"].get("source", {})
    variants = {variant["name"]: variant for variant in summary["variants"]}
    shipped = variants.get(summary.get("default_variant", "fp32")) or next(iter(variants.values()))
    rows = summary["dataset"]
    facts = [(f"{metric} on {rows['test']:,} held-out rows", _number(test.get(metric)))]
    if metric in source:
        facts.append((f"{metric} of the source model", _number(source[metric])))
    facts += [
        (f"{shipped['name']} on this machine, median", _ms(shipped["host_latency_ms"].get("p50"))),
        (f"{shipped['name']}, size", f"{shipped['bytes']:,} bytes"),
    ]
    return facts


def _variants(summary: Mapping[str, Any]) -> Section:
    metric, variants = summary.get("metric", ""), summary["variants"]
    rows = [
        [
            variant["name"],
            f"{variant['bytes']:,}",
            _number(variant["metrics"].get(metric)),
            f"{variant['accuracy_drop']:+.4f} (≤ {variant['accuracy_drop_upper']:+.4f})"
            if variant["metrics"]
            else ABSENT,
            f"{variant['parity']['max_abs']:.1e}",
            f"{variant['parity']['label_flips']} of {variant['parity']['rows']:,} (ties {variant['parity']['ties']})",
            _latency(variant["host_latency_ms"]),
            variant["verdict"],
        ]
        for variant in variants
    ]
    reasons = [f"{variant['name']} {variant['reason']}" for variant in variants]
    reasons += [f"{item['name']} was not made: {item['reason']}" for item in summary.get("skipped", [])]
    reasons += [
        f"{variant['name']}: the measurement is INVALID, {variant['host_latency_ms'].get('why')}; no choice rests on it"
        for variant in variants
        if not variant["host_latency_ms"].get("valid", True)
    ]
    head = [
        "variant",
        "bytes",
        metric or "metric",
        "drop (95 % bound)",
        "max difference",
        "label flips",
        "p50 · p90 · p99 here",
        "verdict",
    ]
    return Section(
        "Variants",
        "Every variant is run over all held-out rows through the code that devices run, and compared with its source.",
        Table(head, rows, frozenset({1, 2, 3, 4})),
        _variant_figures(summary),
        items=reasons,
    )


def _variant_figures(summary: Mapping[str, Any]) -> list[Figure]:
    metric, figures = summary.get("metric", ""), []
    timed = [variant for variant in summary["variants"] if variant["host_latency_ms"].get("p50")]
    scored = [variant for variant in timed if metric in variant["metrics"]]
    if scored:
        points = [
            {"name": v["name"], "x": v["host_latency_ms"]["p50"], "y": v["metrics"][metric], "size": v["bytes"]}
            for v in scored
        ]
        svg = plots.scatter(points, LATENCY, Axis(metric, lambda value: f"{value:.3f}"))
        figures.append(
            Figure(
                f"{metric} against latency", svg, "Median on this machine; the area of a point is its size in bytes."
            )
        )
    sampled = [
        {
            "name": v["name"],
            "samples": v["host_latency_ms"]["samples"],
            "valid": v["host_latency_ms"].get("valid", True),
        }
        for v in timed
        if v["host_latency_ms"].get("samples")
    ]
    if sampled:
        caption = "Box: middle half of the runs, line: median, whiskers: 5 % and 95 %. One row at a time, one thread."
        figures.append(Figure("Latency here, run by run", plots.boxes(sampled, LATENCY), caption))
    return figures


def _boards(summary: Mapping[str, Any]) -> Section:
    rows, bars = [], []
    for board, choice in summary["devices"].items():
        profile, limits = choice.get("profile", {}), choice.get("limits", {})
        for index, (name, one) in enumerate(choice.get("predictions", {}).items()):
            bars.append(
                {
                    "name": board if index == 0 else "",
                    "low": one["low"],
                    "middle": one["predicted"],
                    "high": one["high"],
                    "limit": limits.get("latency_p90_ms"),
                    "series": index,
                    "strong": name == choice["variant"],
                }
            )
        rows.append(
            [
                profile.get("title", board),
                _hardware(profile),
                choice["variant"],
                _range(choice["latency_ms"]),
                f"{number(choice['memory_mb'])} MB",
                _limits(limits),
                choice["reason"],
            ]
        )
    head = ["board", "what it is", "runs", "latency, predicted", "memory", "limits", "why"]
    names = [name for choice in list(summary["devices"].values())[:1] for name in choice.get("predictions", {})]
    order = f"Bars from top to bottom within a board: {', '.join(names)}"
    caption = f"{order}; the chosen one is strong, a dashed line is the limit."
    svg = plots.ranges(bars, LATENCY) if bars else ""
    figures = [Figure("Predicted latency per board", svg, caption)] if bars else []
    lead = (
        "Nobody measured on these boards. A prior is a calculation from published facts of the board; "
        "its range is what such calculations missed by on published measurements."
    )
    return Section("Boards", lead, Table(head, rows) if rows else None, figures)


def _mistakes(summary: Mapping[str, Any]) -> Section:
    confusion = summary.get("confusion")
    if not confusion or len(confusion["labels"]) > 30:
        return Section("Mistakes")
    svg = plots.heat(confusion["labels"], confusion["counts"])
    caption = f"{summary.get('default_variant', 'fp32')} on the held-out rows; numbers off the diagonal are mistakes."
    return Section("Mistakes", figures=[Figure("Confusion matrix", svg, caption)])


def _search(summary: Mapping[str, Any]) -> Section:
    found = summary.get("search") or []
    if not found:
        return Section("Search")
    shown = [
        {"name": f"{c['estimator']} {index + 1}", "value": c["score"], "spread": c["spread"], "strong": index == 0}
        for index, c in enumerate(found[:MOST_CANDIDATES])
    ]
    metric = summary.get("metric", "score")
    rows = [
        [
            f"{c['estimator']} {index + 1}",
            f"{c['score']:.4f} ± {c['spread']:.4f}",
            ", ".join(f"{name}={_short(value)}" for name, value in c["parameters"].items()) or "as it comes",
            f"{number(c['seconds'])} s",
        ]
        for index, c in enumerate(found)
    ]
    figure = Figure(
        "Candidates",
        plots.whiskers(shown, Axis(f"{metric} over the folds")),
        "Dot: mean over the folds, line: ± one standard deviation.",
    )
    return Section(
        "Search",
        f"{len(found)} pipelines were cross-validated on the training rows; the first one won.",
        Table(["pipeline", metric, "settings", "time"], rows, frozenset({1, 3})),
        [figure],
        open=False,
    )


def _data(summary: Mapping[str, Any]) -> Section:
    data = summary["dataset"]
    counts = [[name, f"{data[name]:,}"] for name in ("rows", "train", "valid", "test")]
    features = [f"{feature['name']} ({feature['kind']})" for feature in data.get("features", [])]
    counts.append(["target", str(data.get("target") or ABSENT)])
    if data.get("classes"):
        counts.append(["classes", ", ".join(data["classes"][:40])])
    if features:
        more = f" and {len(features) - 30} more" if len(features) > 30 else ""
        counts.append([f"{len(features)} features", ", ".join(features[:30]) + more])
    notes = [*data.get("notes", []), *summary.get("notes", [])]
    return Section("Data", table=Table(["what", "which"], counts), items=notes, open=False)


def _origin(summary: Mapping[str, Any]) -> Section:
    rows = [[f"made from {name}", digest] for name, digest in summary.get("lineage", {}).items()]
    rows += [
        [name, _short(value)] for name, value in summary.get("environment", {}).items() if value not in (None, "", [])
    ]
    rows += [[f"time of {stage}", f"{number(seconds)} s"] for stage, seconds in summary.get("timings_s", {}).items()]
    rows += [[name, str(summary[name])] for name in ("command", "bundle") if summary.get(name)]
    return Section("Where it comes from", table=Table(["what", "which"], rows), open=False)


def _fleet_sections(fleet: Mapping[str, Any]) -> list[Section]:
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
            f"{_ms(device['p50_ms'])} · {_ms(device['p90_ms'])}",
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


def _latency(found: Mapping[str, Any]) -> str:
    if not found.get("p50"):
        return ABSENT
    text = f"{_ms(found['p50'])} · {_ms(found['p90'])} · {_ms(found['p99'])}"
    if found.get("ci95"):
        text += f" (median {_ms(found['ci95'][0])} to {_ms(found['ci95'][1])}, n {found['n']:,})"
    return text if found.get("valid", True) else f"INVALID: {text}"


def _range(latency: Mapping[str, Any]) -> str:
    words = f"{milliseconds(latency['predicted'])} ({milliseconds(latency['low'])} to {milliseconds(latency['high'])})"
    return f"{words}, {latency['method']}"


def _hardware(profile: Mapping[str, Any]) -> str:
    """Return the facts that are known of a board, and only those."""
    cores, core = profile.get("cores"), profile.get("core")
    facts = [f"{cores} × {core}"] if cores and core else []
    facts += [
        f"{profile[name]} {unit}" for name, unit in (("frequency_ghz", "GHz"), ("ram_mb", "MB")) if profile.get(name)
    ]
    return ", ".join(facts) or ABSENT


def _limits(limits: Mapping[str, Any]) -> str:
    latency, memory = limits.get("latency_p90_ms"), limits.get("memory_mb")
    said = [f"p90 {number(latency)} ms"] if latency else []
    said += [f"{number(memory)} MB"] if memory else []
    return ", ".join(said) or "none"


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}" if abs(value) < 100 else number(value)


def _ms(value: float | None) -> str:
    return ABSENT if value is None else milliseconds(value)


def _short(value: Any) -> str:
    return number(value) if isinstance(value, float) else str(value)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
