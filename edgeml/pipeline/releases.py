"""What the registry knows, as plain rows for the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeml.errors import NotFound
from edgeml.pipeline.plan import REPORT
from edgeml.registry import Registry, Release


def release_rows(root: Path, model: str | None) -> list[dict[str, Any]]:
    """Return the releases in the registry at `root`, newest first."""
    return [_row(release) for release in Registry.open(root).releases(model)]


def release_details(root: Path, name: str) -> dict[str, Any]:
    """Return one release with its variants, boards and lineage; NotFound when there is none."""
    registry = Registry.open(root)
    release = registry.find(name)
    manifest = registry.bundle_of(release).manifest
    graphs = [{"name": v.name, "bytes": v.graph.size, "digest": v.graph.digest} for v in manifest.variants]
    return {**_row(release), "graphs": graphs, "boards": dict(manifest.boards), "lineage": dict(manifest.lineage)}


def find_report(root: Path, run: str) -> Path:
    """Return the path of the report of `run`: a run or project folder, a release, or "" for the newest."""
    folder = Path(run)
    found = (
        sorted(folder.glob(f"**/{REPORT}"), key=lambda path: path.stat().st_mtime) if run and folder.is_dir() else []
    )
    if found:
        return found[-1].resolve()
    registry = Registry.open(root)
    releases = [registry.find(run)] if run else registry.releases()
    paths = [Path(release.run_dir) / REPORT for release in releases]
    for path in paths:
        if path.exists():
            return path
    raise NotFound(f"no report for {run or 'any release'} in {root}: make one with `edgeml build`")


def _row(release: Release) -> dict[str, Any]:
    summary = release.summary
    metric = summary.get("metric", "")
    return {
        "model": release.model,
        "number": release.number,
        "release": release.release,
        "created": summary.get("created", ""),
        "metric": metric,
        "value": summary.get("metrics", {}).get("test", {}).get(metric),
        "variants": ", ".join(variant["name"] for variant in summary.get("variants", [])),
        "bytes": sum(variant["bytes"] for variant in summary.get("variants", [])),
        "run_dir": release.run_dir,
    }
