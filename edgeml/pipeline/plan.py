"""What a build would do, decided from digests alone: which run it is and whether that run is done.

A run is named by the digest of everything that goes into it: source bytes, options, versions.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import edgeml
from edgeml.data.fingerprint import source_digest
from edgeml.project import Project

STAGES = ("data", "train", "convert", "quantize", "verify", "bench", "bundle", "registry", "report")
SUMMARY, REPORT, BUNDLE, VARIANTS = "summary.json", "report.html", "bundle", "variants"
_VERSIONED = ("scikit-learn", "skl2onnx", "onnx", "onnxruntime", "numpy")  # what shapes a result besides our own code


@dataclass(frozen=True)
class Plan:
    """One run of one project: its folder holds the bundle, the report and the summary."""

    project: Project
    digest: str  # of every input of the run
    dataset_digest: str
    work: Path  # `.edgeml` of the project: runs and the cache of stages

    @property
    def run(self) -> str:
        return self.digest[:12]

    @property
    def folder(self) -> Path:
        return self.work / "runs" / self.run

    def finished(self) -> dict[str, Any] | None:
        """Return the summary of this run if it was done before, and every file of it is still there."""
        if not all((self.folder / name).exists() for name in (SUMMARY, REPORT, BUNDLE)):
            return None
        summary: dict[str, Any] = json.loads((self.folder / SUMMARY).read_text(encoding="utf-8"))
        return summary


def key(*parts: Any) -> str:
    """Return a digest of `parts` (anything JSON can write, and sections of a project)."""
    text = json.dumps(parts, sort_keys=True, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def plan_build(project: Project) -> Plan:
    """Return the plan of building `project` as its file and its data stand now."""
    dataset = source_digest(project)
    return Plan(project, key(dataset, project, versions()), dataset, project.folder / ".edgeml")


def versions() -> Mapping[str, str]:
    found = {name: importlib.metadata.version(name) for name in _VERSIONED}
    return {"edgeml": edgeml.__version__, **found}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else str(value)
