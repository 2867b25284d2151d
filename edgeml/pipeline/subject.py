"""What is being proven, what was proven about it, and the watch that times the stages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgeml.artifacts import (
    ActivationRanges,
    Answers,
    Bundle,
    Candidate,
    Choice,
    Dataset,
    Measurement,
    ModelTask,
    Rows,
    Skipped,
    Variant,
    Verdict,
)
from edgeml.errors import NotFound
from edgeml.files import Cache
from edgeml.project import Project
from edgeml.verify import Evidence, edge_cases
from edgeml_runtime.wire.manifest import Feature

CALIBRATION_ROWS = 512  # activation ranges settle long before; bounds the calibrator's memory


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model's source as far as the gates need it: rows nobody fitted on, and its answers on them."""

    project: Project
    task: ModelTask
    metric: str
    calibration: Rows | None  # rows of the training share; None: nothing to calibrate with
    held_out: Rows
    reference: Answers  # the source's answers on `held_out`
    evidence: tuple[Evidence, ...] = ()  # more rows that count for parity, with the source's answers
    valid: Rows | None = None  # rows that later releases are compared on
    dataset: Mapping[str, Any]  # the `dataset` section of the summary
    features: tuple[Feature, ...] = ()
    classes: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    target: str = ""
    lineage: Mapping[str, str] = field(default_factory=dict)
    ranges: ActivationRanges | None = None  # found in the field, in place of `calibration` for static recipes
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Proof:
    """Everything the gates found, by variant and by board, and what may ship because of it."""

    variants: tuple[Variant, ...]
    skipped: tuple[Skipped, ...]
    verdicts: Mapping[str, Verdict]
    measurements: Mapping[str, Measurement]
    choices: Mapping[str, Choice]
    bundle: Bundle


class Reached(Exception):
    """The stage that was asked for is done."""


class Stopwatch:
    """Times the stages, tells each one's progress, and stops after the stage `until`."""

    def __init__(self, progress: Callable[[str, str], None], until: str | None = None) -> None:
        self._progress, self._until, self._stage = progress, until, ""
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self._stage, began = name, time.perf_counter()
        self.say("")
        yield
        self.seconds[name] = round(time.perf_counter() - began, 3)
        if name == self._until:
            raise Reached

    def say(self, line: str) -> None:
        self._progress(self._stage, line)


def subject_of(project: Project, dataset: Dataset, reference: Answers) -> Subject:
    """Return what the gates need of a model learned from `dataset`, whose source gave `reference` on its test rows."""
    rows = len(dataset.train) + len(dataset.valid) + len(dataset.test)
    section = {
        "rows": rows,
        "train": len(dataset.train),
        "valid": len(dataset.valid),
        "test": len(dataset.test),
        "digest": dataset.digest,
        "target": dataset.target,
        "features": [{"name": feature.name, "kind": feature.kind} for feature in dataset.features],
        "classes": list(dataset.classes),
        "notes": list(dataset.notes),
    }
    return Subject(
        project=project,
        task=dataset.task,
        metric=dataset.metric,
        calibration=dataset.train.take(slice(CALIBRATION_ROWS)),
        held_out=dataset.test,
        reference=reference,
        valid=dataset.valid,
        dataset=section,
        features=dataset.features,
        classes=dataset.classes,
        target=dataset.target,
        lineage={"dataset": dataset.digest},
    )


def gather_evidence(
    source: Callable[[Rows], Answers], *, calibration: Rows | None, around: Rows, edges: bool = True
) -> tuple[Evidence, ...]:
    """Return what `source` answers on the calibration rows and on edge cases around rows."""
    found = []
    if calibration is not None:
        rows = Rows(calibration.inputs)
        found.append(Evidence("calibration", rows, source(rows)))
    if edges and len((cases := edge_cases(around)).rows):
        found.append(Evidence("edge cases", cases.rows, source(cases.rows), cases.kinds))
    return tuple(found)


def write_subject(folder: Path, subject: Subject) -> None:
    """Keep in `folder` what the gates judged on, so that a later release is judged on the same."""
    Cache(folder, refresh=True).stage("subject", "", lambda: subject)


def read_subject(folder: Path) -> Subject:
    """Return what the release made in `folder` was judged on; NotFound when the folder is gone."""

    def gone() -> Subject:
        raise NotFound(f"{folder} does not hold the rows its release was judged on: build the project again")

    return Cache(folder).stage("subject", "", gone)
