"""The doors of the pipeline: they answer from a finished run, or open the stages and do the work."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeml.devices import devices_folder
from edgeml.errors import UserError
from edgeml.pipeline.plan import STAGES, SUMMARY, plan_build
from edgeml.project import Board, Project, parse_project
from edgeml.registry import Registry

Progress = Callable[[str, str], None]  # stage, what it says


def silent(stage: str, line: str) -> None:
    """Take a line of progress and show it to nobody."""


@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    only: str | None = None  # the last stage to run
    force: bool = False  # do everything again
    command: str = "edgeml build"  # what the report says made it
    progress: Progress = field(default=silent)


@dataclass(frozen=True, kw_only=True)
class CompileOptions:
    calibration: Path | None = None
    labels: Path | None = None
    boards: tuple[str, ...] = ()
    output: Path | None = None
    name: str | None = None
    max_accuracy_drop: float = 0.01
    runtime: str | None = None  # onnxruntime on the boards; what their profiles say if not given
    precisions: tuple[str, ...] = ()  # none: those of a project without the key
    trust: bool = False
    command: str = "edgeml compile"
    progress: Progress = field(default=silent)


def build(project: Project, registry: Registry, options: BuildOptions | None = None) -> dict[str, Any]:
    """Return the summary of a verified, registered release of `project`.

    Raises NothingFits when a board of the project gets no variant; nothing is registered then.
    """
    options = options or BuildOptions()
    if options.only is not None and options.only not in STAGES:
        raise UserError(f"no stage {options.only!r}; the stages are {', '.join(STAGES)}")
    plan = plan_build(project)
    done = None if options.force or options.only else plan.finished()
    if done is not None and registry.has_release(done["model"], done["release"]):
        written = plan.folder / SUMMARY
        if not _measured_since(registry, done, written) and not _calibrated_since(done, written):
            return {**done, "cached": True}
    summary: dict[str, Any] = _stages().build(plan, registry, options)
    return summary


def _measured_since(registry: Registry, done: dict[str, Any], written: Path) -> bool:
    """Say whether a device measured a variant of a finished run after its summary was written: that may choose anew."""
    newest = registry.benches.measurements([variant["digest"] for variant in done["variants"]])
    return bool(newest) and newest[0].time > written.stat().st_mtime


def _calibrated_since(done: dict[str, Any], written: Path) -> bool:
    """Say whether a board of a finished run was calibrated after its summary was written."""
    found = [path for board in done["devices"] for path in devices_folder().glob(f"{board}.*calibration.json")]
    return any(path.stat().st_mtime > written.stat().st_mtime for path in found)


def compile_model(path: Path, registry: Registry, options: CompileOptions) -> dict[str, Any]:
    """Return the summary of a verified, registered release of the finished model at `path`."""
    name = options.name or path.name.removesuffix("".join(path.suffixes)) or "model"
    text = f"name: {name}\ndata: {{train: '-'}}\ncompile: {{max_accuracy_drop: {options.max_accuracy_drop}}}\n"
    project = parse_project(text, name=f"name {name!r}")
    boards = [Board(board=board) for board in options.boards]
    chosen = project.compile.model_copy(update={"runtime": options.runtime})
    chosen = chosen.model_copy(update={"precisions": list(options.precisions)} if options.precisions else {})
    project = project.model_copy(update={"devices": boards, "compile": chosen})
    summary: dict[str, Any] = _stages().compile_model(path, project, registry, options=options)
    return summary


def retraining(registry: Registry, progress: Progress = silent) -> Any:
    """Return what a server needs to turn aggregated weights into a release: see `edgeml.server.Retrain`."""
    return importlib.import_module("edgeml.pipeline.retrain").Retraining(registry, progress)


def _stages() -> Any:
    return importlib.import_module("edgeml.pipeline.stages")
