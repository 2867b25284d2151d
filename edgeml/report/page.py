"""What the pages say, taken from plain documents: words, rows and specifications, no HTML.

    summary of a build (and the fleet's story) -build_page-> Page
    document of `edgeml bench -o` -bench_page-> Page

A value that is not in the document is shown as not measured; nothing is made up for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report import boards, costs, learning, origin, timing, variants, verdicts
from edgeml.report.parts import Page, Section
from edgeml.report.reading import Reading, read
from edgeml.report.story import fleet_sections
from edgeml.report.words import ABSENT, moment


def build_page(summary: Mapping[str, Any], *, fleet: Mapping[str, Any] | None = None) -> Page:
    """Return the page of a run's summary; `fleet` adds the story of rollouts and federated rounds."""
    reading = read(summary)
    release, created = summary.get("release", ABSENT), moment(summary.get("created", ""))
    return Page(
        title=summary["model"],
        subtitle=f"release {release} · {summary.get('task', '')} · {created}",
        verdicts=verdicts.of_build(reading, fleet),
        facts=verdicts.facts_of_build(summary, reading),
        sections=_shown(
            [
                *(fleet_sections(fleet) if fleet else []),
                variants.variants(reading),
                *_measured(reading),
                origin.refused(summary, reading),
                learning.worst(summary),
                learning.mistakes(summary),
                learning.search(summary),
                origin.data(summary),
                origin.lineage(summary),
                origin.commands(summary),
            ]
        ),
        footer=f"Made by {summary.get('command') or 'edgeml'}, run {summary.get('run', ABSENT)}.",
    )


def bench_page(document: Mapping[str, Any]) -> Page:
    """Return the page of what `edgeml bench -o` wrote."""
    reading = read(document)
    first = next((form.measured for form in reading.timed), {})
    said = [first["scenario"]] if first.get("scenario") else []
    where = first.get("environment", {}).get("cpu_model")
    return Page(
        title=reading.model,
        subtitle=" · ".join(["benchmark", *said, *([f"on {where}"] if where else [])]),
        verdicts=verdicts.of_bench(reading),
        facts=verdicts.facts_of_bench(reading),
        sections=_shown(
            [
                variants.variants(reading),
                *_measured(reading),
                origin.refused({}, reading),
                origin.machine(document, reading),
                origin.commands(document),
            ]
        ),
        footer=f"Made by {document.get('command') or 'edgeml bench'}.",
    )


def _measured(reading: Reading) -> list[Section]:
    return [
        boards.boards(reading),
        timing.timing(reading),
        costs.operators(reading),
        costs.memory(reading),
        boards.roofline(reading),
        costs.tuned(reading),
    ]


def _shown(sections: Sequence[Section]) -> list[Section]:
    return [section for section in sections if section]
