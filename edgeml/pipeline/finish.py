"""The last stages: the release goes into the registry, the report and the summary into the run's folder."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeml import report
from edgeml.devices import find_board
from edgeml.files import write_atomic, write_bundle
from edgeml.pipeline.plan import BUNDLE, REPORT, SUMMARY, VARIANTS
from edgeml.pipeline.subject import Proof, Stopwatch, Subject, write_subject
from edgeml.pipeline.summary import summarize
from edgeml.registry import Registry
from edgeml_runtime.session import is_program


@dataclass(frozen=True)
class Delivery:
    """Where a proof is delivered to, and the command the report says made it."""

    registry: Registry
    folder: Path
    watch: Stopwatch
    command: str


def finish(proof: Proof, subject: Subject, delivery: Delivery) -> dict[str, Any]:
    """Register the release, write bundle, report and summary, and return the summary.

    The summary is written last: a folder without one is a run that did not finish.
    """
    folder, watch = delivery.folder, delivery.watch
    boards = {name: find_board(name) for name in proof.choices}
    where = {
        "run": folder.name,
        "bundle": str(folder / BUNDLE),
        "report": str(folder / REPORT),
        "command": delivery.command,
    }
    summary = {**summarize(proof, subject, boards), **where}
    for variant, told in zip(proof.variants, summary["variants"], strict=True):
        ending = "program" if is_program(variant.model.data) else "onnx"
        told["path"] = str(folder / VARIANTS / f"{variant.recipe}.{ending}")
        write_atomic(Path(told["path"]), variant.model.data)
    with watch.stage("registry"):
        write_bundle(folder / BUNDLE, proof.bundle, delivery.registry.signing_key())
        write_subject(folder, subject)
        release = delivery.registry.add_release(proof.bundle, summary=summary, run_dir=str(folder))
        watch.say(f"{release.model}@{release.number} is {release.release}")
    with watch.stage("report"):
        _track(subject, summary, delivery)
        summary["timings_s"] = dict(watch.seconds)
        write_report(folder / REPORT, summary)
        watch.say(str(folder / REPORT))
    summary["timings_s"] = dict(watch.seconds)
    write_atomic(folder / SUMMARY, json.dumps(summary, indent=1).encode())
    return summary


def write_report(path: Path, summary: Mapping[str, Any], fleet: Mapping[str, Any] | None = None) -> None:
    """Write the HTML report of `summary`, with the fleet's story where there is one, and the same as JSON and CSV."""
    document = {**summary, "fleet": fleet} if fleet else summary
    write_page(path, report.build_page(summary, fleet=fleet), {"json": document, "csv": report.tabulate(summary)})


def write_page(path: Path, page: report.Page, beside: Mapping[str, Any]) -> None:
    """Write `page` at `path`, and what `beside` holds by suffix next to it: texts, or JSON values."""
    for suffix, content in beside.items():
        text = content if isinstance(content, str) else json.dumps(content, indent=1)
        write_atomic(path.with_suffix(f".{suffix}"), text.encode())
    names = [(suffix.upper(), path.with_suffix(f".{suffix}").name) for suffix in beside]
    write_atomic(path, report.render(dataclasses.replace(page, beside=names)).encode())


def _track(subject: Subject, summary: Mapping[str, Any], delivery: Delivery) -> None:
    if subject.project.track.mlflow == "off" or importlib.util.find_spec("mlflow") is None:
        return
    where = importlib.import_module("edgeml.tracking").log_run(summary, delivery.registry.root)
    delivery.watch.say(f"logged to MLflow at {where}")
