"""What all figures share: one look, latency axes, colours by variant, bars that fade when a run is INVALID.

A figure is a Vega-Lite specification, a plain dictionary; page.js draws it. Colours are CSS variables, so that
the page decides them for light, dark and print. Texts in tooltips come ready made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Spec = dict[str, Any]
Row = Mapping[str, Any]

COLOURS = 8
INK, SOFT, LINE, PAPER, BAD = (f"var(--{name})" for name in ("ink", "soft", "line", "paper", "bad"))
FADED = 0.35  # what may not be used
ROW = 30  # pixels of a bar with its name
SPREAD = 5.0  # from this factor on an axis is logarithmic
LATENCY = (
    "datum.value == 0 ? '0' : datum.value < 0.1 ? format(datum.value * 1000, '.3~g') + ' µs' : "
    "datum.value < 1000 ? format(datum.value, '.3~g') + ' ms' : format(datum.value / 1000, '.3~g') + ' s'"
)
CONFIG: Spec = {
    "background": None,
    "font": "system-ui, -apple-system, 'Segoe UI', sans-serif",
    "padding": 4,
    "aria": False,
    "view": {"stroke": None},
    "text": {"color": INK, "fontSize": 13},
    "axis": {
        "labelColor": INK,
        "titleColor": SOFT,
        "gridColor": LINE,
        "domainColor": SOFT,
        "tickColor": SOFT,
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelLimit": 150,
        "labelOverlap": "greedy",
        "labelSeparation": 8,
        "tickCount": 5,
    },
    "axisY": {"domain": False, "ticks": False, "labelPadding": 8},
    "legend": {
        "orient": "top",
        "labelColor": INK,
        "titleColor": SOFT,
        "labelFontSize": 12,
        "labelLimit": 190,
        "symbolOpacity": 1,
        "columns": {"expr": "width < 420 ? 2 : 4"},
        "title": None,
        "offset": 6,
    },
}


def figure(rows: Sequence[Row], layers: Sequence[Spec], *, height: int, **more: Any) -> Spec:
    """Return a specification as wide as the page, with `layers` over `rows`."""
    return {"width": "container", "height": height, "data": {"values": list(rows)}, "layer": list(layers), **more}


def spread(values: Iterable[float]) -> bool:
    """Say whether `values` lie so far apart that only a logarithmic axis shows them all."""
    positive = [value for value in values if value > 0]
    return bool(positive) and max(positive) / min(positive) >= SPREAD


def latency(field: str, title: str, values: Iterable[float]) -> Spec:
    """Return the channel of a latency in milliseconds: with units on its ticks, logarithmic where that is needed."""
    scale: Spec = {"type": "log", "nice": False} if spread(values) else {"type": "linear", "zero": False, "nice": True}
    return quantity(field, title, scale=scale | {"padding": 14}, labelExpr=LATENCY)


def quantity(field: str, title: str, *, scale: Spec | None = None, **axis: Any) -> Spec:
    """Return a quantitative channel."""
    found: Spec = {"field": field, "type": "quantitative", "axis": {"title": title, **axis}}
    return found | ({"scale": scale} if scale else {})


def names(field: str = "name", *, order: Sequence[str] | None = None) -> Spec:
    """Return the channel of a row per name, in the order given."""
    return {"field": field, "type": "nominal", "sort": list(order) if order else None, "axis": {"title": None}}


def colour(domain: Sequence[str], *, field: str = "name", legend: bool = False) -> Spec:
    """Return the channel that gives each of `domain` its own colour, the same in every figure."""
    shades = [f"var(--c{index % COLOURS})" for index in range(len(domain))]
    scale = {"domain": list(domain), "range": shades}
    return {"field": field, "type": "nominal", "scale": scale, **({} if legend else {"legend": None})}


def fade(field: str = "valid") -> Spec:
    """Return the channel that fades rows whose `field` is false."""
    return {"condition": {"test": f"datum['{field}'] === false", "value": FADED}, "value": 1}


def tips(**fields: str) -> list[Spec]:
    """Return a tooltip of texts: field=title."""
    return [{"field": field, "type": "nominal", "title": title} for field, title in fields.items()]
