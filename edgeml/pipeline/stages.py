"""The stages in order, each a verb of its own room, cached by the digest of what goes in."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

from edgeml import convert, data, train, verify
from edgeml.artifacts import Dataset, FittedModel, OnnxModel, Rows
from edgeml.errors import UserError
from edgeml.files import Cache, require_room
from edgeml.graph import random_rows
from edgeml.pipeline.finish import Delivery, finish
from edgeml.pipeline.given import rows_given
from edgeml.pipeline.plan import Plan, key, versions
from edgeml.pipeline.prove import Desk, prove
from edgeml.pipeline.run import BuildOptions, CompileOptions
from edgeml.pipeline.runtimes import opset_of, runtimes_of
from edgeml.pipeline.subject import CALIBRATION_ROWS, Reached, Stopwatch, Subject, gather_evidence, subject_of
from edgeml.project import Project, Search
from edgeml.registry import Registry

ROOM = 4  # times a model's size: its variants, those in the bundle, those in the cache
RANDOM_ROWS = 64  # rows made up for a finished model that came without any


def build(plan: Plan, registry: Registry, options: BuildOptions) -> dict[str, Any]:
    """Run the stages of `plan`, up to `options.only` if given, and return the summary of what was made."""
    desk = Desk(Cache(plan.work / "cache", refresh=options.force), Stopwatch(options.progress, options.only), registry)
    try:
        fitted, model = learn(plan, desk)
        subject = dataclasses.replace(
            subject_of(plan.project, fitted.dataset, train.answers(fitted, fitted.dataset.test)),
            candidates=fitted.candidates,
            evidence=gather_evidence(
                functools.partial(train.answers, fitted),
                calibration=fitted.dataset.train.take(slice(CALIBRATION_ROWS)),
                around=fitted.dataset.train,
                edges=plan.project.verify.edge_cases,
            ),
            lineage={"dataset": fitted.dataset.digest, "fitted": fitted.digest, "onnx": model.digest},
            notes=model.notes,
        )
        delivery = Delivery(registry, plan.folder, desk.watch, options.command)
        return finish(prove(model, subject, desk), subject, delivery)
    except Reached:
        made = {"run": plan.run, "model": plan.project.name, "stage": options.only}
        return {**made, "timings_s": desk.watch.seconds}


def read(plan: Plan, desk: Desk) -> Dataset:
    """Return the rows of `plan`."""
    project, watch, cache = plan.project, desk.watch, desk.cache
    with watch.stage("data"):
        dataset_key = key(plan.dataset_digest, project.data, project.task, project.search.metric, project.search.seed)
        dataset: Dataset = cache.stage("data", dataset_key, lambda: data.load(project))
        shares = len(dataset.train), len(dataset.valid), len(dataset.test)
        watch.say(
            f"{len(dataset.features)} features; {shares[0]:,} rows to train, {shares[1]:,} valid, {shares[2]:,} test"
        )
    return dataset


def learn(plan: Plan, desk: Desk, dataset: Dataset | None = None) -> tuple[FittedModel, OnnxModel]:
    """Return the pipeline of `plan`, trained on its `dataset` (read if not given), and the same as ONNX."""
    project, watch, cache = plan.project, desk.watch, desk.cache
    dataset = dataset or read(plan, desk)
    with watch.stage("train"):
        search = _search(project)
        train_key = key(dataset.digest, dataset.metric, search, versions())
        fitted = cache.stage("train", train_key, lambda: train.fit(dataset, search, progress=watch.say))
        best = fitted.candidates[0]
        watch.say(f"{fitted.estimator}: {dataset.metric} {best.score:.4f} ± {best.spread:.4f} over the folds")
    with watch.stage("convert"):
        model = cache.stage("convert", key(fitted.digest, versions()), lambda: convert.to_onnx(fitted))
        model = convert.fit_runtimes(model, runtimes_of(project), opset=opset_of(project))
        watch.say(f"{len(model.data):,} bytes of ONNX, preprocessing inside")
    return fitted, model


def _search(project: Project) -> Search:
    """Return the search of `project`; a federated one only looks at what devices can train."""
    names = project.search.estimators
    if project.federated.enabled:
        asked = sorted(train.FEDERABLE) if names == "auto" else names
        if impossible := sorted(set(asked) - train.FEDERABLE):
            able = ", ".join(sorted(train.FEDERABLE))
            raise UserError(f"federated.enabled, but {', '.join(impossible)} cannot train on devices; use {able}")
        names = asked
    return project.search.model_copy(update={"estimators": names})


def compile_model(path: Path, project: Project, registry: Registry, *, options: CompileOptions) -> dict[str, Any]:
    """Walk the finished model at `path` through the gates and return the summary of its release."""
    watch = Stopwatch(options.progress)
    folder = (options.output or Path(f"{project.name}-edgeml")).resolve()
    if path.is_file():
        require_room(folder, ROOM * path.stat().st_size, what=f"the release of {path.name}")
    with watch.stage("convert"):
        model = convert.read_model(path, trust=options.trust, runtimes=runtimes_of(project), opset=opset_of(project))
        watch.say(f"{len(model.data):,} bytes of ONNX; " + ("; ".join(model.notes) or "taken as it is"))
    require_room(folder, ROOM * len(model.data), what=f"the release of {path.name}")
    subject = _finished_subject(model, project, options)
    proof = prove(model, subject, Desk(Cache(folder / "cache"), watch, registry))
    return finish(proof, subject, Delivery(registry, folder, watch, options.command))


def _finished_subject(model: OnnxModel, project: Project, options: CompileOptions) -> Subject:
    asked = project.compile.precisions
    given = rows_given(
        model, options.calibration, options.labels, precisions=[asked] if isinstance(asked, str) else asked
    )
    task, calibration, labelled = given.task, given.calibration, given.labelled
    held_out = labelled or calibration or Rows(random_rows(model, RANDOM_ROWS))
    note = () if labelled or calibration else (f"no data given: checked on {RANDOM_ROWS} seeded random rows",)
    return Subject(
        project=project,
        task=task,
        metric="rmse" if task == "regression" else "accuracy",
        calibration=calibration,
        held_out=held_out,
        reference=verify.run_answers(model, held_out, task),
        dataset={"rows": len(held_out), "train": 0, "valid": 0, "test": len(held_out), "digest": "", "notes": [*note]},
        features=model.features,
        classes=model.classes,
        lineage={"onnx": model.digest, "source": model.source},
        notes=(*model.notes, *note),
    )
