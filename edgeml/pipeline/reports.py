"""Pages made again or anew from documents: of a stored result, of two results side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeml import report
from edgeml.errors import DataError, NotFound
from edgeml.pipeline.finish import write_page, write_report
from edgeml.pipeline.plan import SUMMARY
from edgeml.pipeline.releases import find_report
from edgeml.registry import Registry

MOST_BYTES = 64 << 20


def report_of(root: Path, run: str, output: Path | None = None) -> Path:
    """Return the path of the report of `run`; a document (.json) is drawn first, at `output` or beside it.

    Raises NotFound where there is none, DataError for a document that is neither a run's nor a benchmark's.
    """
    if not run.endswith(".json"):
        return with_devices(root, find_report(root, run))
    path = Path(run)
    document = read_document(path)
    target = output or path.with_suffix(".html")
    try:
        if report.is_bench(document):
            write_bench(target, document)
        else:
            write_report(target, document, document.get("fleet"))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{path} lacks what a report is drawn from ({error!r}): make it again") from error
    return target.resolve()


def with_devices(root: Path, page: Path) -> Path:
    """Draw the report at `page` again if real devices have measured its variants since, and return its path."""
    source = _beside(page)
    if not source.exists():
        return page  # made before reports had a document beside them
    document = read_document(source)
    joined = measured_on_devices(Registry.open(root), document)
    if joined != document.get("on_devices", []):
        write_report(page, {**document, "on_devices": joined}, document.get("fleet"))
    return page


def measured_on_devices(registry: Registry, document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the newest measurement by each device of each variant of `document`, known by its graph's digest."""
    names = {one["digest"]: one["name"] for one in document["variants"] if "digest" in one}
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for one in registry.benches.measurements(list(names)):
        told = {"device": one.device, "board": one.board, "variant": names[one.digest], "measured": dict(one.document)}
        newest.setdefault((one.device, one.digest), told)
    return sorted(newest.values(), key=lambda told: (told["device"], told["variant"]))


def write_bench(path: Path, document: Mapping[str, Any]) -> None:
    """Write the page of a benchmark's document at `path`, and the same as JSON and CSV beside it."""
    write_page(path, report.bench_page(document), {"json": dict(document), "csv": report.tabulate(document)})


def compare_reports(root: Path, a: str, b: str, *, output: Path) -> Path:
    """Write the page that holds run or result `b` against `a` at `output`, and return its path."""
    sides = [(_name(run), _document(run, root)) for run in (a, b)]
    try:
        page = report.compare_page(*sides)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{a} and {b} lack what a comparison is drawn from ({error!r}): make them again") from error
    documents = {"a": sides[0][1], "b": sides[1][1]}
    write_page(output, page, {"json": documents, "csv": report.differences(page)})
    return output.resolve()


def read_document(path: Path) -> Mapping[str, Any]:
    """Return the document at `path`: a summary or a benchmark; raise NotFound or DataError otherwise."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path} has {path.stat().st_size:,} bytes, but a document has at most {MOST_BYTES:,}")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict) or not (report.is_bench(document) or "variants" in document):
        raise DataError(f"{path} is neither the summary of a run nor a result of `edgeml bench -o`")
    return document


def _document(run: str, root: Path) -> Mapping[str, Any]:
    if run.endswith(".json"):
        return read_document(Path(run))
    return read_document(_beside(with_devices(root, find_report(root, run))))


def _beside(page: Path) -> Path:
    """Return the document that the report at `page` was drawn from."""
    beside = page.with_suffix(".json")
    return beside if beside.exists() else page.parent / SUMMARY


def _name(run: str) -> str:
    path = Path(run)
    return path.stem if run.endswith(".json") else path.name if path.is_dir() else run
