"""The numbers of a page as CSV: one row for each variant and place, measured or predicted."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from edgeml.report.parts import Page
from edgeml.report.reading import HERE, Document, Form, Reading, read

COLUMNS = (
    *("variant", "where", "kind", "method", "low_ms", "ms", "high_ms", "p90_ms", "p99_ms", "n", "valid", "why"),
    *("memory_mb", "bytes", "metric", "score", "accuracy_drop", "accuracy_drop_upper", "verdict", "runs_there"),
)


def tabulate(document: Document) -> str:
    """Return the document of a build or of a benchmark as CSV, with a header; what is not known stays empty."""
    reading = read(document)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*_measured(reading), *_predicted(reading)])
    return text.getvalue()


def differences(page: Page) -> str:
    """Return the tables of a comparison as CSV, each row with the part of the page it stands in."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for section in page.sections:
        if section.table is not None:
            writer.writerow(["part", *section.table.head])
            writer.writerows([section.title, *row] for row in section.table.rows)
    return text.getvalue()


def _measured(reading: Reading) -> list[dict[str, Any]]:
    metric = reading.metric
    rows = [{**_form(form, metric), **_timing(form.measured), "where": HERE} for form in reading.forms]
    for device in reading.devices:
        form = reading.form(device.variant) or Form(name=device.variant)
        rows.append({**_form(form, reading.metric), **_timing(device.measured), "where": device.device})
    return rows


def _timing(measured: Mapping[str, Any]) -> dict[str, Any]:
    if not measured.get("p50_ms"):
        return {"kind": "not measured"}
    low, high = measured.get("ci95_ms") or ("", "")
    kept = {name: measured[name] for name in ("p90_ms", "p99_ms", "n", "valid", "why") if name in measured}
    memory = measured.get("memory_mb", {}).get("steady", "")
    return {
        "kind": "measured",
        "method": "measured",
        "low_ms": low,
        "ms": measured["p50_ms"],
        "high_ms": high,
        "memory_mb": memory,
        **kept,
    }


def _predicted(reading: Reading) -> list[dict[str, Any]]:
    return [
        {
            **_form(reading.form(name) or Form(name=name), reading.metric),
            "where": place.name,
            "kind": "predicted",
            "method": one.get("method", ""),
            "low_ms": one["low"],
            "ms": one["predicted"],
            "high_ms": one["high"],
            "memory_mb": one.get("memory_mb", ""),
            "runs_there": name == place.chosen if place.chosen else "",
        }
        for place in reading.places
        for name, one in place.predictions.items()
    ]


def _form(form: Form, metric: str) -> dict[str, Any]:
    told = {key: form.told[key] for key in ("accuracy_drop", "accuracy_drop_upper", "verdict") if key in form.told}
    plain = {"bytes": form.bytes, "score": form.score}
    return {"variant": form.name, "metric": metric, **told, **{k: v for k, v in plain.items() if v is not None}}
