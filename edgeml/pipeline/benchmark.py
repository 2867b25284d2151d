"""`edgeml bench`: a model or a bundle measured on this machine, and predicted for boards."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeml import bench, convert
from edgeml.artifacts import FP32, Measurement, OnnxModel, Prediction, Rows, Variant
from edgeml.devices import find_board, read_boards
from edgeml.files import read_bundle
from edgeml.graph import random_rows
from edgeml.pipeline.examine import bundle_models
from edgeml_runtime.measure import Plan
from edgeml_runtime.wire.tensors import unpack


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    boards: tuple[str, ...] = ()  # none: every board there is a profile of
    measure: bool = True
    predict: bool = True
    seconds: float = 1.0


def bench_path(path: Path, options: BenchOptions) -> dict[str, Any]:
    """Return latency and memory of every variant at `path`, here and on the boards.

    The first result's fields stand at the top, so that a program that asked for one finds one.
    """
    models, rows = _subject(path)
    plan = Plan(min_s=options.seconds)
    boards = [find_board(name) for name in options.boards] or list(read_boards().values())
    results = []
    for name, model in models.items():
        variant = Variant(model, name, model.digest)
        measured = bench.measure_here(variant, rows, plan) if options.measure else None
        if not options.predict:
            results.append(_result((name, "this-machine"), measured, None))
        for board in boards if options.predict else []:
            results.append(_result((name, board.name), measured, bench.predict(model, board)))
    return {"model": path.name, **results[0], "results": results}


def _subject(path: Path) -> tuple[Mapping[str, OnnxModel], Rows]:
    if path.is_dir() and (path / "manifest.json").exists():
        bundle = read_bundle(path)
        goldens = unpack(bundle.blobs[bundle.manifest.goldens.digest])
        inputs = {name.removeprefix("input."): rows for name, rows in goldens.items() if name.startswith("input.")}
        return bundle_models(bundle), Rows(inputs)
    model = convert.read_model(path)
    return {FP32: model}, Rows(random_rows(model, 1))


def _result(names: tuple[str, str], measured: Measurement | None, predicted: Prediction | None) -> dict[str, Any]:
    result: dict[str, Any] = {"variant": names[0], "board": names[1], "measured": None, "predicted": None}
    if measured is not None:
        result["measured"] = {
            "p50_ms": measured.p50,
            "p90_ms": measured.p90,
            "p99_ms": measured.p99,
            "ci95_ms": list(measured.ci95),
            "n": measured.n,
            "valid": measured.valid,
            "why": measured.why,
        }
        result["environment"] = dict(measured.environment)
    if predicted is not None:
        result["predicted"] = {
            "low": predicted.low,
            "predicted": predicted.predicted,
            "high": predicted.high,
            "method": predicted.method,
            "coverage": predicted.coverage,
        }
        result["memory_mb"] = {"predicted": predicted.memory_mb}
    return result
