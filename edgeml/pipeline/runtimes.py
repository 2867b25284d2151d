"""Which onnxruntime the boards of a project run, and variants written so that each of them loads there.

Project -> runtimes_of, opset_of        variants -> loadable -> variants, or Skipped with the reason
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edgeml import convert
from edgeml.artifacts import Skipped, Variant
from edgeml.devices import find_board
from edgeml.errors import UnsupportedModel
from edgeml.graph import MAX_OPSET
from edgeml.graph.opsets import newest_for
from edgeml.project import Project
from edgeml_runtime.wire.manifest import PLAIN


def runtimes_of(project: Project) -> tuple[str, ...]:
    """Return the version of onnxruntime on each board of `project` that is known; none is the oldest supported."""
    given = project.compile.runtime
    known = [target.runtime or given or find_board(target.board).runtime for target in project.devices]
    return tuple(version for version in known or [given] if version)


def opset_of(project: Project) -> int | None:
    """Return the opset that `project` asks for; None for the newest that its boards load.

    Devices train on graphs of opset `MAX_OPSET` at most.
    """
    asked = project.compile.opset
    if asked == "auto":
        return min(newest_for(runtimes_of(project)).opset, MAX_OPSET) if project.federated.enabled else None
    return asked


def loadable(made: Sequence[Variant | Skipped], project: Project) -> list[Variant | Skipped]:
    """Return `made` with every variant in an opset at which each board has its operators; Skipped where none has."""
    return [_loadable(item, runtimes_of(project)) if isinstance(item, Variant) else item for item in made]


def _loadable(variant: Variant, runtimes: Sequence[str]) -> Variant | Skipped:
    if variant.recipe == PLAIN:
        return variant
    try:
        return dataclasses.replace(variant, model=convert.fit_runtimes(variant.model, runtimes, keep=True))
    except UnsupportedModel as error:
        return Skipped(variant.recipe, str(error))
