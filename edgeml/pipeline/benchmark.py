"""`edgeml bench`: a model or a bundle measured on this machine, and predicted for boards."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml import bench, convert
from edgeml.artifacts import FP32, Measurement, OnnxModel, Prediction, Rows, Variant
from edgeml.devices import own_boards, read_boards
from edgeml.errors import DataError, NotFound
from edgeml.files import read_bundle
from edgeml.graph import random_rows
from edgeml.pipeline.calibration import known_of
from edgeml.pipeline.examine import bundle_models
from edgeml.pipeline.facts import facts_of, told_of, work_of
from edgeml.pipeline.settings import check_keepable, keep_settings
from edgeml_runtime.measure import Plan, Scenario, tune
from edgeml_runtime.wire.manifest import PLAIN, Settings
from edgeml_runtime.wire.tensors import unpack

COLD_STARTS = 3
EVERY = "all"
USUAL = ("raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-5")  # the boards that are predicted for unasked
LONGEST = 10.0  # times --seconds, when the interval does not get tight


def _silent(_stage: str, _line: str) -> None: ...


def _unseen(_stage: str, _line: str, _share: float) -> None: ...


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    boards: tuple[str, ...] = ()  # none: the usual ones and the user's own; "all": every board
    variants: tuple[str, ...] = ()  # none: every one
    measure: bool = True
    predict: bool = True
    seconds: float = 1.0
    sustained_s: float = 0.0
    scenario: Scenario = "single-stream"
    rows: int = 0
    rate_hz: float = 10.0
    threads: int | None = None  # None: the settings of the bundle, else one
    tune: bool = False
    keep: Path | None = None  # the registry that signs the bundle with its new settings
    progress: Callable[[str, str], None] = _silent
    bar: Callable[[str, str, float], None] = _unseen  # stage, what, share of it that is done

    def plan(self) -> Plan:
        least, most = (self.sustained_s,) * 2 if self.sustained_s else (self.seconds, LONGEST * self.seconds)
        return Plan(min_s=least, max_s=most, scenario=self.scenario, rows=self.rows, rate_hz=self.rate_hz)


def bench_path(path: Path, options: BenchOptions) -> dict[str, Any]:
    """Return latency and memory of every variant at `path`, here and on the boards.

    The first result's fields stand at the top, so that a program that asked for one finds one. Raises NotFound for
    a board or a variant that does not exist.
    """
    if options.keep is not None:
        check_keepable(path)
    models, rows = subject(path, options.variants)
    boards = tuple(read_boards()) if options.boards == (EVERY,) else options.boards or (*USUAL, *own_boards())
    for board in set(options.boards) - {EVERY} if options.predict else ():
        known_of(board, rows=rows, threads=options.threads or 1)  # one that is not there is said before the work
    stored = stored_settings(path)
    results = []
    for name, model in models.items():
        variant = Variant(model, name, model.digest)
        settings = Settings(threads=options.threads) if options.threads else stored.get(name, Settings())
        measured = _measure(variant, rows, (options, settings)) if options.measure else None
        if name == PLAIN or not options.predict:  # a numpy program is for boards that nothing is known of
            results.append(_result((name, "this-machine"), measured, None))
        for board in boards if options.predict and name != PLAIN else ():
            results.append(_result((name, board), measured, _predict(variant, rows, (board, options.threads or 1))))
    document = {
        "model": path.name,
        **results[0],
        "results": results,
        "variants": {
            name: {"bytes": len(model.data), "digest": model.digest, "work": work_of(model)}
            for name, model in models.items()
        },
        "boards": {name: facts_of(read_boards()[name]) for name in boards if options.predict and name in read_boards()},
    }
    if options.keep is not None:
        document["release"] = _keep(path, results, options)
    return document


def stored_settings(path: Path) -> Mapping[str, Settings]:
    """Return how the variants of the bundle at `path` are run, nothing where it is a model."""
    if not (path.is_dir() and (path / "manifest.json").exists()):
        return {}
    return {variant.name: variant.session for variant in read_bundle(path).manifest.variants}


def _keep(path: Path, results: Sequence[Mapping[str, Any]], options: BenchOptions) -> str:
    """Write the settings that won into the bundle, for the one board that was named, else for all; return its release.

    Raises DataError where there is no bundle or nothing was tuned.
    """
    won = {
        r["variant"]: Settings(**r["measured"]["tuned"]["settings"])
        for r in results
        if (r["measured"] or {}).get("tuned")
    }
    if not won or len(options.boards) > 1:
        raise DataError("settings are kept of what was tuned here, for one --device or for all: give --tune, one board")
    board = "" if options.boards in ((), (EVERY,)) else options.boards[0]
    return keep_settings(path, won, registry=options.keep or Path(), board=board)


def subject(path: Path, variants: tuple[str, ...] = ()) -> tuple[Mapping[str, OnnxModel], Rows]:
    """Return the models at `path` by variant, and rows to time them on: goldens of a bundle, else made up."""
    if not (path.is_dir() and (path / "manifest.json").exists()):
        model = convert.read_model(path)
        return {FP32: model}, Rows(random_rows(model, 1))
    bundle = read_bundle(path)
    goldens = unpack(bundle.blobs[bundle.manifest.goldens.digest])
    inputs = {name.removeprefix("input."): rows for name, rows in goldens.items() if name.startswith("input.")}
    models = bundle_models(bundle)
    if missing := [name for name in variants if name not in models]:
        raise NotFound(f"no variant {missing[0]!r} in {path}: it has {', '.join(models)}")
    return {name: model for name, model in models.items() if name in variants or not variants}, Rows(inputs)


def _measure(variant: Variant, rows: Rows, how: tuple[BenchOptions, Settings]) -> dict[str, Any]:
    """Return the document of one variant's benchmark here."""
    options, settings = how
    plan, name = options.plan(), variant.recipe
    options.progress("bench", f"{name}: at least {plan.min_s:g} s")
    found = bench.measure_here(
        variant,
        rows,
        plan,
        settings=settings,
        starts=COLD_STARTS,
        profile=True,
        watch=lambda seconds: options.bar("bench", f"{name} {seconds:.0f} s", min(1.0, seconds / plan.min_s)),
    )
    document = dict(found.details)
    if options.sustained_s:
        document["sustained"] = sustained(found)
    if options.tune:
        options.progress("tune", f"{variant.recipe}: settings in turns")
        tuned = tune(
            variant.model.data,
            bench.one_query(variant, rows),
            Plan(min_s=options.seconds / 2, max_s=2.0),
            progress=lambda done, of: options.bar("tune", f"{name} {done} of {of}", done / of),
        )
        document["tuned"] = asdict(tuned)
    return document


def sustained(measurement: Measurement) -> dict[str, Any]:
    """Return how the last tenth of a long run compares with its first, in numbers and in words."""
    medians = np.array([point[1] for point in measurement.details["series"]])
    tenth = max(1, len(medians) // 10)
    first, last = float(np.median(medians[:tenth])), float(np.median(medians[-tenth:]))
    words = "as at the start" if abs(last / first - 1) < 0.05 else f"{last / first:.2f} of the start"
    verdict = f"{last:.4g} ms at the end, {words}"
    return {"first_ms": first, "last_ms": last, "ratio": last / first, "verdict": verdict}


def _predict(variant: Variant, rows: Rows, where: tuple[str, int]) -> Prediction:
    """Return the prediction for a board and threads, of all that is known of it."""
    board, threads = where
    return bench.predict_for(variant, known_of(board, rows=rows, threads=threads))


def _result(names: tuple[str, str], measured: Mapping[str, Any] | None, predicted: Prediction | None) -> dict[str, Any]:
    result: dict[str, Any] = {"variant": names[0], "board": names[1], "measured": measured, "predicted": None}
    memory = dict(measured.get("memory_mb", {})) if measured else {}
    if measured is not None:
        result["environment"] = dict(measured["environment"])
    if predicted is not None:
        result["predicted"] = told_of(predicted)
        memory["predicted"] = predicted.memory_mb
    return result | {"memory_mb": memory}
