"""Where it all comes from: data, digests, versions, what was refused and why, and the commands that make it again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from edgeml.report.numbers import number
from edgeml.report.parts import Section, Table
from edgeml.report.reading import Reading
from edgeml.report.words import ABSENT, apart, settings_of, short

MOST_CLASSES, MOST_FEATURES = 40, 30
NOT_SHOWN = frozenset({"affinity"})


def refused(summary: Mapping[str, Any], reading: Reading) -> Section:
    """Return every variant, measurement and board that was refused, each with its reason."""
    rows = [[form.name, "failed its gate", form.told["reason"]] for form in reading.forms if form.passed is False]
    rows += [[item["name"], "was not made", item["reason"]] for item in summary.get("skipped", [])]
    rows += [
        [form.name, "measurement is INVALID", f"{form.measured.get('why')}; no choice rests on it"]
        for form in reading.timed
        if not form.valid
    ]
    rows += [
        [f"{one.variant} on {one.device}", "measurement is INVALID", str(one.measured.get("why"))]
        for one in reading.devices
        if not one.measured.get("valid", True)
    ]
    rows += [[place.title, "nothing fits", place.reason] for place in reading.places if place.fits is False]
    nearest = summary.get("best_failure")
    passed = [f"{form.name} {form.told['reason']}" for form in reading.forms if form.passed and form.told.get("reason")]
    if nearest:
        passed.insert(
            0, f"{nearest['name']} failed by the least: it misses its bound by {apart(nearest['missed_by'])}."
        )
    if not rows and not passed:
        return Section("Refused, and why")
    table = Table(["what", "verdict", "why"], rows) if rows else None
    return Section("Refused, and why", "" if rows else "Nothing was refused.", table, items=passed)


def data(summary: Mapping[str, Any]) -> Section:
    """Return the rows the model was made and judged with."""
    found = summary["dataset"]
    counts = [[name, f"{found[name]:,}"] for name in ("rows", "train", "valid", "test") if found.get(name) is not None]
    features = [f"{feature['name']} ({feature['kind']})" for feature in found.get("features", [])]
    counts.append(["target", str(found.get("target") or "none")])
    if found.get("digest"):
        counts.append(["fingerprint", str(found["digest"])])
    if found.get("classes"):
        counts.append(["classes", ", ".join(map(str, found["classes"][:MOST_CLASSES]))])
    if features:
        more = f" and {len(features) - MOST_FEATURES} more" if len(features) > MOST_FEATURES else ""
        counts.append([f"{len(features)} features", ", ".join(features[:MOST_FEATURES]) + more])
    notes = [*found.get("notes", []), *summary.get("notes", [])]
    return Section("Data", table=Table(["what", "which"], counts), items=notes, open=False)


def lineage(summary: Mapping[str, Any]) -> Section:
    """Return the digests from the data to every variant, and the versions that made them."""
    rows = [[f"made from {name}", digest] for name, digest in summary.get("lineage", {}).items()]
    rows += [[f"variant {one['name']}", one["digest"]] for one in summary["variants"] if one.get("digest")]
    rows += _environment(summary.get("environment", {}))
    rows += [[f"time of {stage}", f"{number(seconds)} s"] for stage, seconds in summary.get("timings_s", {}).items()]
    return Section("Where it comes from", table=Table(["what", "which"], rows), open=False)


def machine(document: Mapping[str, Any], reading: Reading) -> Section:
    """Return what the measuring machine was, and the digests of what was measured."""
    rows = [[f"variant {name}", one["digest"]] for name, one in document.get("variants", {}).items() if "digest" in one]
    first = reading.timed[0].measured if reading.timed else {}
    rows += [["settings", settings_of(first["settings"])]] if first.get("settings") else []
    rows += _environment(first.get("environment", {}))
    return Section("Where it comes from", table=Table(["what", "which"], rows) if rows else None, open=False)


def _environment(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [name, short(value)] for name, value in found.items() if value not in (None, "", []) and name not in NOT_SHOWN
    ]


def commands(document: Mapping[str, Any]) -> Section:
    """Return what to type to make this again, to check it, and to learn more."""
    told = [("it was made by", document["command"])] if document.get("command") else []
    bundle = document.get("bundle")
    if bundle:
        where = shlex.quote(str(bundle))
        told += [
            ("replay its parity and accuracy", f"edgeml verify {where}"),
            ("measure it here for longer", f"edgeml bench {where} --measure --seconds 10"),
            ("see the curve under load", f"edgeml bench {where} --measure --sustained 30m"),
        ]
    if document.get("report"):
        told.append(("this page again", f"edgeml report {shlex.quote(_folder(document))}"))
    return Section("Commands", commands=told)


def _folder(document: Mapping[str, Any]) -> str:
    return str(document["report"]).rpartition("/")[0] or ABSENT
