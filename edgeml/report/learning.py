"""How the model came to be: the candidates of its search, its mistakes, the rows on which variants part from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report import charts
from edgeml.report.numbers import number
from edgeml.report.parts import Figure, Section, Table
from edgeml.report.words import apart, numbers, short

MOST_CANDIDATES, MOST_CLASSES = 12, 30
WORST_SHOWN = 3  # of each variant
CELL = 34


def worst(summary: Mapping[str, Any]) -> Section:
    """Return the rows on which each variant is farthest from its source."""
    rows = [
        [variant["name"], row["where"], numbers(row["source"]), numbers(row["variant"]), apart(row["difference"])]
        for variant in summary["variants"]
        for row in variant.get("worst", [])[:WORST_SHOWN]
    ]
    return Section(
        "Where variants are farthest from their source",
        f"At most {WORST_SHOWN} rows of each variant, edge cases and rows that were learned from among them.",
        Table(["variant", "row", "the source says", "it says", "difference"], rows, frozenset({4})) if rows else None,
        open=False,
    )


def mistakes(summary: Mapping[str, Any]) -> Section:
    """Return the confusion matrix of the default variant."""
    confusion = summary.get("confusion")
    if not confusion or len(confusion["labels"]) > MOST_CLASSES:
        return Section("Mistakes")
    labels, counts = [str(label) for label in confusion["labels"]], confusion["counts"]
    rows = [
        {"truth": truth, "answer": answer, "count": count, "right": i == j, "share": (count / max(1, sum(line))) ** 0.5}
        for i, (truth, line) in enumerate(zip(labels, counts, strict=True))
        for j, (answer, count) in enumerate(zip(labels, line, strict=True))
    ]
    wrong = sum(row["count"] for row in rows if not row["right"])
    total = sum(row["count"] for row in rows)
    words = f"{total - wrong:,} of {total:,} rows are right, {wrong:,} wrong{_commonest(rows)}."
    table = Table(["truth", *labels], [[t, *map(str, line)] for t, line in zip(labels, counts, strict=True)])
    name = summary.get("default_variant", "fp32")
    caption = f"{name} on the held-out rows; a row of the picture is a truth, numbers off the diagonal are mistakes."
    return Section("Mistakes", figures=[Figure("Confusion matrix", _matrix(rows, labels), caption, words, table)])


def _commonest(rows: Sequence[Mapping[str, Any]]) -> str:
    wrong = [row for row in rows if not row["right"] and row["count"]]
    if not wrong:
        return ""
    most = max(wrong, key=lambda row: row["count"])
    return f"; most often {most['truth']} is taken for {most['answer']} ({most['count']} times)"


def _matrix(rows: Sequence[charts.Row], labels: Sequence[str]) -> charts.Spec:
    x = {
        "field": "answer",
        "type": "nominal",
        "sort": list(labels),
        "axis": {"title": "answered", "orient": "top", "labelAngle": 0, "ticks": False, "domain": False},
    }
    y = {"field": "truth", "type": "nominal", "sort": list(labels), "axis": {"title": "truth"}}
    layers: list[charts.Spec] = [
        {
            "mark": {"type": "rect", "cornerRadius": 3, "stroke": charts.PAPER, "strokeWidth": 2},
            "encoding": {
                "x": x,
                "y": y,
                "color": {"condition": {"test": "datum.right", "value": "var(--c1)"}, "value": "var(--c3)"},
                "opacity": {
                    "field": "share",
                    "type": "quantitative",
                    "legend": None,
                    "scale": {"domain": [0, 1], "range": [0.04, 0.55]},
                },
                "tooltip": [
                    {"field": "truth", "title": "truth"},
                    {"field": "answer", "title": "answered"},
                    {"field": "count", "title": "rows"},
                ],
            },
        },
        {
            "mark": {"type": "text"},
            "transform": [{"filter": "datum.count > 0"}],
            "encoding": {"x": x, "y": y, "text": {"field": "count"}},
        },
    ]  # fmt: skip
    return charts.figure(rows, layers, height=max(110, CELL * len(labels)))


def search(summary: Mapping[str, Any]) -> Section:
    """Return every candidate of the search."""
    found = summary.get("search") or []
    if not found:
        return Section("Search")
    metric = summary.get("metric", "score")
    shown = [
        {
            "name": f"{c['estimator']} {index + 1}",
            "score": c["score"],
            "low": c["score"] - c["spread"],
            "high": c["score"] + c["spread"],
            "said": f"{c['score']:.4f} ± {c['spread']:.4f}",
            "won": index == 0,
        }
        for index, c in enumerate(found[:MOST_CANDIDATES])
    ]
    x = charts.quantity("score", f"{metric} over the folds", scale={"zero": False, "nice": True})
    y = charts.names(order=[row["name"] for row in shown])
    told = charts.tips(name="pipeline", said=metric)
    tint = {"condition": {"test": "datum.won", "value": "var(--c1)"}, "value": "var(--c0)"}
    layers: list[charts.Spec] = [
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {"x": x | {"field": "low"}, "x2": {"field": "high"}, "y": y, "color": tint, "tooltip": told},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 80, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": tint, "tooltip": told},
        },
    ]
    rows = [
        [
            f"{c['estimator']} {index + 1}",
            f"{c['score']:.4f} ± {c['spread']:.4f}",
            ", ".join(f"{name}={short(value)}" for name, value in c["parameters"].items()) or "as it comes",
            f"{number(c['seconds'])} s",
        ]
        for index, c in enumerate(found)
    ]
    picture = Figure(
        "Candidates",
        charts.figure(shown, layers, height=max(60, 24 * len(shown))),
        "Point: mean over the folds, line: ± one standard deviation.",
        f"{shown[0]['name']} won with {shown[0]['said']}.",
        Table(["pipeline", metric], [[row["name"], row["said"]] for row in shown]),
    )
    return Section(
        "Search",
        f"{len(found)} pipelines were cross-validated on the training rows; the first one won.",
        Table(["pipeline", metric, "settings", "time"], rows, frozenset({1, 3})),
        [picture],
        open=False,
    )
