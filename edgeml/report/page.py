"""What the page says, taken from the plain summary of a run: words and rows, no HTML.

A value that is not in the summary is shown as not measured; nothing is made up for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgeml.report import plots
from edgeml.report.parts import Figure, Page, Section, Table
from edgeml.report.plots import LATENCY, Axis
from edgeml.report.scales import number
from edgeml.report.story import fleet_sections
from edgeml.report.words import (
    ABSENT,
    apart,
    figure_of,
    forecast,
    hardware,
    latencies,
    latency_of,
    limits_of,
    numbers,
    sentence,
    short,
)

MOST_CANDIDATES = 12
WORST_SHOWN = 3  # of each variant


def build_page(summary: Mapping[str, Any], *, fleet: Mapping[str, Any] | None = None) -> Page:
    """Return the page of a run's summary; `fleet` adds the story of rollouts and federated rounds."""
    sections = [
        *(fleet_sections(fleet) if fleet else []),
        _variants(summary),
        _worst(summary),
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
        told.append((board, f"runs {choice['variant']}. {sentence(choice['reason'])}", choice["fits"]))
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
    facts = [(f"{metric} on {rows['test']:,} held-out rows", figure_of(test.get(metric)))]
    if metric in source:
        facts.append((f"{metric} of the source model", figure_of(source[metric])))
    facts += [
        (f"{shipped['name']} on this machine, median", latency_of(shipped["host_latency_ms"].get("p50"))),
        (f"{shipped['name']}, size", f"{shipped['bytes']:,} bytes"),
    ]
    return facts


def _variants(summary: Mapping[str, Any]) -> Section:
    metric, variants = summary.get("metric", ""), summary["variants"]
    rows = [
        [
            variant["name"],
            f"{variant['bytes']:,}",
            figure_of(variant["metrics"].get(metric)),
            f"{variant['accuracy_drop']:+.4f} (≤ {variant['accuracy_drop_upper']:+.4f})"
            if variant["metrics"]
            else ABSENT,
            apart(variant["parity"]["max_abs"]),
            f"{variant['parity']['label_flips']} of {variant['parity']['rows']:,} (ties {variant['parity']['ties']})",
            latencies(variant["host_latency_ms"]),
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


def _worst(summary: Mapping[str, Any]) -> Section:
    rows = [
        [variant["name"], row["where"], numbers(row["source"]), numbers(row["variant"]), apart(row["difference"])]
        for variant in summary["variants"]
        for row in variant.get("worst", [])[:WORST_SHOWN]
    ]
    failed = summary.get("best_failure")
    items = (
        [f"{failed['name']} failed by the least: it misses its bound by {apart(failed['missed_by'])}."]
        if failed
        else []
    )
    return Section(
        "Where variants are farthest from their source",
        f"At most {WORST_SHOWN} rows of each variant, edge cases and rows that were learned from among them.",
        Table(["variant", "row", "the source says", "it says", "difference"], rows, frozenset({4})) if rows else None,
        items=items,
        open=bool(failed),
    )


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
                hardware(profile),
                choice["variant"],
                forecast(choice["latency_ms"]),
                f"{number(choice['memory_mb'])} MB",
                limits_of(limits),
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
            ", ".join(f"{name}={short(value)}" for name, value in c["parameters"].items()) or "as it comes",
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
        [name, short(value)] for name, value in summary.get("environment", {}).items() if value not in (None, "", [])
    ]
    rows += [[f"time of {stage}", f"{number(seconds)} s"] for stage, seconds in summary.get("timings_s", {}).items()]
    rows += [[name, str(summary[name])] for name in ("command", "bundle") if summary.get(name)]
    return Section("Where it comes from", table=Table(["what", "which"], rows), open=False)
