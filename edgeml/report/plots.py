"""Pictures as inline SVG: each function takes plain numbers and returns one `<svg>`.

Colours are CSS classes (`c0` ...), so that the page decides them for light, dark and print.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from edgeml.report.scales import APART_UPRIGHT, Format, Scale, fit, milliseconds, number

WIDTH, LABELS, RIGHT, TOP, AXIS = 640, 150, 24, 14, 44
ROW = 30
COLOURS = 5


@dataclass(frozen=True)
class Axis:
    """What an axis says under its ticks, and how it writes them."""

    title: str
    format: Format = number


def scatter(points: Sequence[Mapping[str, Any]], x: Axis, y: Axis) -> str:
    """Return points {name, x, y, size} with their names; the area grows with `size`, x is logarithmic."""
    height, left = 300, 70
    across = fit([point["x"] for point in points], left, WIDTH - RIGHT, log=True)
    up = fit([point["y"] for point in points], height - AXIS, TOP + 26)
    most = max((point["size"] for point in points), default=1) or 1
    marks = [_across(across, height, x), _up(up, left, y)]
    names = _spread_labels([(across(point["x"]), up(point["y"])) for point in points])
    for index, (point, (text_x, text_y)) in enumerate(zip(points, names, strict=True)):
        radius = 5 + 11 * math.sqrt(point["size"] / most)
        tip = f"{point['name']}: {x.format(point['x'])}, {y.format(point['y'])}"
        marks.append(
            f'<circle class="c{index % COLOURS} soft" cx="{across(point["x"]):.1f}" cy="{up(point["y"]):.1f}" '
            f'r="{radius:.1f}"><title>{escape(tip)}</title></circle>'
        )
        marks.append(_text((text_x, text_y), point["name"]))
    return _svg(height, marks, f"{y.title} against {x.title}")


def ranges(rows: Sequence[Mapping[str, Any]], x: Axis) -> str:
    """Return one bar per row {name, low, middle, high, limit?, series, strong?} on a logarithmic axis."""
    height = TOP + ROW * len(rows) + AXIS
    values = [row[key] for row in rows for key in ("low", "high", "limit") if row.get(key)]
    across = fit(values, LABELS, WIDTH - RIGHT, log=True)
    marks = [_across(across, height, x)]
    for index, row in enumerate(rows):
        at, shade = TOP + ROW * index + ROW / 2, "" if row.get("strong", True) else " faint"
        tip = f"{row['name']}: {x.format(row['low'])} to {x.format(row['high'])}, predicted {x.format(row['middle'])}"
        low, high, colour = across(row["low"]), across(row["high"]), f"c{row['series'] % COLOURS}"
        marks += [
            _text((LABELS - 10, at + 4), row["name"], "end"),
            f'<rect class="{colour} soft{shade}" x="{low:.1f}" y="{at - 7:.1f}" '
            f'width="{max(high - low, 1):.1f}" height="14" rx="7"><title>{escape(tip)}</title></rect>',
            f'<circle class="{colour}{shade}" cx="{across(row["middle"]):.1f}" cy="{at:.1f}" r="4.5"/>',
        ]
        if row.get("limit"):
            where = across(row["limit"])
            marks.append(
                f'<line class="limit" x1="{where:.1f}" x2="{where:.1f}" y1="{at - 13:.1f}" y2="{at + 13:.1f}"/>'
            )
    return _svg(height, marks, f"ranges of {x.title}")


def boxes(rows: Sequence[Mapping[str, Any]], x: Axis) -> str:
    """Return a box plot per row {name, samples, valid}: whiskers 5 % and 95 %, box quartiles, line the median."""
    height = TOP + (ROW + 8) * len(rows) + AXIS
    sorted_rows = [(row, sorted(row["samples"])) for row in rows]
    ends = [value for _, samples in sorted_rows for value in (_at(samples, 0.01), _at(samples, 0.99))]
    across = fit(ends, LABELS, WIDTH - RIGHT)
    marks = [_across(across, height, x)]
    for index, (row, samples) in enumerate(sorted_rows):
        at, shade = TOP + (ROW + 8) * index + ROW / 2, "" if row.get("valid", True) else " faint"
        p5, p25, p50, p75, p95 = (across(_at(samples, share)) for share in (0.05, 0.25, 0.5, 0.75, 0.95))
        colour = f"c{index % COLOURS}"
        marks += [
            _text((LABELS - 10, at + 4), row["name"], "end"),
            f'<line class="{colour} stroke{shade}" x1="{p5:.1f}" x2="{p95:.1f}" y1="{at:.1f}" y2="{at:.1f}"/>',
            f'<rect class="{colour} soft{shade}" x="{p25:.1f}" y="{at - 10:.1f}" width="{max(p75 - p25, 1.5):.1f}" '
            f'height="20" rx="3"><title>{escape(row["name"])}: {len(samples)} samples shown</title></rect>',
            f'<line class="{colour} stroke thick{shade}" x1="{p50:.1f}" x2="{p50:.1f}" '
            f'y1="{at - 10:.1f}" y2="{at + 10:.1f}"/>',
        ]
    return _svg(height, marks, f"distribution of {x.title}")


def whiskers(rows: Sequence[Mapping[str, Any]], x: Axis) -> str:
    """Return a dot with its spread per row {name, value, spread, strong?}: the candidates of a search."""
    height = TOP + 22 * len(rows) + AXIS
    ends = [row["value"] + sign * row["spread"] for row in rows for sign in (-1, 1)]
    across = fit(ends, LABELS, WIDTH - RIGHT)
    marks = [_across(across, height, x)]
    for index, row in enumerate(rows):
        at, colour = TOP + 22 * index + 11, "c1" if row.get("strong") else "c0"
        left, right = across(row["value"] - row["spread"]), across(row["value"] + row["spread"])
        tip = f"{row['name']}: {number(row['value'])} ± {number(row['spread'])}"
        marks += [
            _text((LABELS - 10, at + 4), row["name"], "end"),
            f'<line class="{colour} stroke" x1="{left:.1f}" x2="{right:.1f}" y1="{at}" y2="{at}"/>',
            f'<circle class="{colour}" cx="{across(row["value"]):.1f}" cy="{at}" r="4.5">'
            f"<title>{escape(tip)}</title></circle>",
        ]
    return _svg(height, marks, f"candidates by {x.title}")


def line(points: Sequence[Mapping[str, Any]], y: Axis) -> str:
    """Return a line through points {name, value, note}: a metric before the first round, per round, and after."""
    height, left = 280, 70
    up = fit([point["value"] for point in points], height - AXIS, TOP + 14)
    step = (WIDTH - RIGHT - left - 60) / max(1, len(points) - 1)
    places = [(left + 30 + step * index, up(point["value"])) for index, point in enumerate(points)]
    path = " ".join(f"{'L' if index else 'M'}{x:.1f} {at:.1f}" for index, (x, at) in enumerate(places))
    marks = [_up(up, left, y), f'<path class="c0 stroke thick" fill="none" d="{path}"/>']
    for point, (x, at) in zip(points, places, strict=True):
        marks += [
            f'<circle class="c0" cx="{x:.1f}" cy="{at:.1f}" r="5"><title>{escape(point["note"])}</title></circle>',
            _text((x, at - 11), y.format(point["value"])),
            _text((x, height - AXIS + 20), point["name"]),
        ]
    return _svg(height, marks, f"{y.title} over the rounds")


def heat(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """Return a confusion matrix: rows are the truth, columns the answers, diagonal and mistakes in two colours."""
    size = len(labels)
    cell = max(24, min(46, 460 // max(size, 1)))
    left, top = 96, 54
    most = max((count for row in counts for count in row), default=1) or 1
    marks = [_text((left + cell * size / 2, 16), "answered"), _text((10, top - 10), "truth", "start")]
    for i, label in enumerate(labels):
        short = label if len(label) <= 11 else label[:10] + "…"
        marks.append(_text((left - 8, top + cell * i + cell / 2 + 4), short, "end"))
        marks.append(_text((left + cell * i + cell / 2, top - 10), short[: max(2, cell // 7)]))
        for j in range(size):
            count, x, y = counts[i][j], left + cell * j, top + cell * i
            strength = 0.12 + 0.78 * math.sqrt(count / most) if count else 0.04
            colour = "c1" if i == j else "c3"
            tip = f"{label} answered as {labels[j]}: {count}"
            marks.append(
                f'<rect class="{colour}" x="{x + 1}" y="{y + 1}" width="{cell - 2}" height="{cell - 2}" rx="3" '
                f'fill-opacity="{strength:.2f}"><title>{escape(tip)}</title></rect>'
            )
            if count:
                marks.append(_text((x + cell / 2, y + cell / 2 + 4), str(count)))
    return _svg(top + cell * size + 10, marks, "confusion matrix", width=left + cell * size + 20)


def _across(scale: Scale, height: float, axis: Axis) -> str:
    parts = [f'<line class="axis" x1="{scale.start}" x2="{scale.end}" y1="{height - AXIS}" y2="{height - AXIS}"/>']
    for tick in scale.ticks():
        x = scale(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{height - AXIS}"/>')
        parts.append(_text((x, height - AXIS + 17), axis.format(tick), kind="tick"))
    parts.append(_text(((scale.start + scale.end) / 2, height - 8), axis.title, kind="title"))
    return "".join(parts)


def _up(scale: Scale, left: float, axis: Axis) -> str:
    parts = []
    for tick in scale.ticks(APART_UPRIGHT):
        y = scale(tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text((left - 8, y + 4), axis.format(tick), "end", kind="tick"))
    middle = (scale.start + scale.end) / 2
    title = f'<text class="title" text-anchor="middle" transform="translate(16 {middle:.0f}) rotate(-90)">'
    return "".join(parts) + f"{title}{escape(axis.title)}</text>"


def _spread_labels(places: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return a place for a name above each point, moved until no two names lie on each other."""
    taken: list[tuple[float, float]] = []
    for x, y in places:
        at = (min(max(x, 110), WIDTH - 90), max(y - 22, 12))
        while any(abs(at[0] - other[0]) < 120 and abs(at[1] - other[1]) < 15 for other in taken):
            at = (at[0], at[1] + 15)
        taken.append(at)
    return taken


def _at(samples: Sequence[float], share: float) -> float:
    return samples[min(len(samples) - 1, int(share * len(samples)))]


def _text(at: tuple[float, float], words: str, anchor: str = "middle", *, kind: str = "label") -> str:
    x, y = at
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(str(words))}</text>'


def _svg(height: float, marks: Iterable[str], title: str, *, width: float = WIDTH) -> str:
    body = "".join(marks)
    box = f"0 0 {width:.0f} {height:.0f}"
    return f'<svg viewBox="{box}" style="max-width:{width:.0f}px" role="img" aria-label="{escape(title)}">{body}</svg>'


LATENCY = Axis("latency of one row", milliseconds)
