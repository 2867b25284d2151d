"""The project's data as one Dataset: features chosen, target read, rows split.

    Project -> load -> Dataset

Everything random comes from search.seed, so the same project gives the same rows in the same splits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeml import metrics
from edgeml.artifacts import Dataset, Rows
from edgeml.data import columns, target
from edgeml.data.fingerprint import source_digest
from edgeml.data.sources import TARGET, read_source
from edgeml.data.splits import SHARE, split
from edgeml.data.table import Table
from edgeml.errors import ProjectError
from edgeml.project import Project
from edgeml_runtime.wire.manifest import Feature


@dataclass(frozen=True)
class Parts:
    """The rows of each split, and the group and the device of each training row."""

    train: Rows
    valid: Rows
    test: Rows
    groups: np.ndarray | None
    devices: np.ndarray | None


@dataclass(frozen=True)
class Known:
    """What the training table settles for every other table of the project."""

    project: Project
    features: tuple[Feature, ...]
    truth: target.Target
    name: str  # of the target column
    groups: np.ndarray | None  # the group of each training row
    devices: np.ndarray | None  # the device of each training row


def load(project: Project) -> Dataset:
    """Return the data set of `project`, split into train, valid and test.

    Raises NotFound, DataError or ProjectError when the source, a column or a value cannot be used.
    """
    table = read_source(project.data.train, project.folder, project.data.read)
    name = _target_name(project, table)
    candidates = _candidates(project, table, name)
    truth = target.read_target(table, name, task=project.task)
    features, left_out = columns.choose(table, candidates)
    inputs, merged = columns.inputs_of(table, features)
    groups, devices = (
        columns.texts(table, column) if column else None for column in (project.data.group, project.data.device)
    )
    known = Known(project, features, truth, name, groups, devices)
    parts, shared = _split(Rows(inputs, truth.values), known)
    metric = target.metric_for(truth) if project.search.metric == "auto" else project.search.metric
    return Dataset(
        name=project.name,
        task=truth.task,
        features=features,
        target=name,
        classes=truth.classes,
        train=parts.train,
        valid=parts.valid,
        test=parts.test,
        digest=source_digest(project),
        metric=metrics.find(metric, truth.task).name,
        notes=(*table.notes, *left_out, *merged, *_rare(truth), *shared),
        train_groups=parts.groups,
        train_devices=parts.devices,
    )


def _target_name(project: Project, table: Table) -> str:
    name = project.data.target or (TARGET if table.fixed else "")
    if not name:
        raise ProjectError(
            f"data.target is not set: name the column to predict, one of {', '.join(table.frame.columns)}"
        )
    columns.require(table, [name], key="data.target")
    return name


def _candidates(project: Project, table: Table, name: str) -> list[str]:
    given = project.data
    columns.require(table, given.drop, key="data.drop")
    columns.require(table, [given.group] if given.group else [], key="data.group")
    columns.require(table, [given.device] if given.device else [], key="data.device")
    return [str(c) for c in table.frame.columns if c not in {name, given.group, given.device, *given.drop}]


def _split(rows: Rows, known: Known) -> tuple[Parts, list[str]]:
    """Return the parts: a file of its own where the project names one, a share of the training rows otherwise."""
    data, target_values = known.project.data, known.truth.values
    rng = np.random.default_rng(known.project.search.seed)
    stratify = known.truth.task == "classification"
    groups, notes, own = known.groups, [], {}
    if groups is not None:
        notes = [f"column {data.group!r} keeps its rows together in every split and is not learned from"]
    kept = np.arange(len(rows))
    for part, source in (("test", data.test), ("valid", data.valid)):
        if source is None:
            kept_groups = None if groups is None else groups[kept]
            fit, held = split(target_values[kept], rng, stratify=stratify, groups=kept_groups)
            own[part], kept = rows.take(kept[held]), kept[fit]
        else:
            own[part], seen = _official(f"data.{part}", source, known)
            notes += seen
    if known.devices is not None and data.device != data.group:
        notes.append(f"column {data.device!r} says which device holds a row and is not learned from")
    owners = _numbered(groups, kept), _numbered(known.devices, kept)
    return Parts(rows.take(kept), own["valid"], own["test"], *owners), notes


def _numbered(values: np.ndarray | None, kept: np.ndarray) -> np.ndarray | None:
    """Return the index of each kept row's value among them."""
    return None if values is None else np.unique(values[kept], return_inverse=True)[1]


def _official(key: str, source: str, known: Known) -> tuple[Rows, list[str]]:
    """Return the rows of a test or validation file of its own, read as the training table was."""
    data, name = known.project.data, known.name
    table = read_source(source, known.project.folder, data.read)
    columns.require(table, [name], key=key)
    inputs, notes = columns.inputs_of(table, known.features)
    if known.truth.task == "classification":
        values = target.indices_of(table, name, known.truth.classes)
    else:
        values = target.values_of(table, name)
    if known.groups is not None and data.group and data.group in table.frame.columns:
        both = set(known.groups) & set(columns.texts(table, data.group))
        notes += [f"{len(both)} groups of {data.group!r} stand in both data.train and {key}"] if both else []
    return Rows(inputs, values), notes


def _rare(truth: target.Target) -> list[str]:
    if truth.task != "classification":
        return []
    counts = np.bincount(truth.values, minlength=len(truth.classes))
    rare = [f"{name!r} ({count})" for name, count in zip(truth.classes, counts, strict=True) if count < SHARE]
    return [f"too rare to be held out, so all in train: class {', '.join(rare)}"] if rare else []
