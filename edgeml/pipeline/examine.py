"""Looking at what was made: verify a bundle, and predict with it as a device would."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeml import convert, data, metrics, verify
from edgeml.artifacts import Bundle, OnnxModel, Rows
from edgeml.devices import find_board
from edgeml.errors import DataError
from edgeml.files import read_bundle, write_atomic
from edgeml.graph.lint import Finding, lint
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import LABEL, PREDICTION, PROBABILITIES, SCORES, Manifest, ReleaseVariant
from edgeml_runtime.wire.tensors import unpack


def verify_bundle(path: Path, rows_path: Path | None) -> dict[str, Any]:
    """Return the verdict on the bundle at `path`: goldens replayed here, metrics where rows are given.

    Raises VerificationError when a blob is not what its digest says, DataError for rows without their truth.
    """
    bundle = read_bundle(path)
    manifest = bundle.manifest
    goldens = unpack(bundle.blobs[manifest.goldens.digest])
    found = [_replay(variant, bundle.blobs[variant.graph.digest], goldens) for variant in manifest.variants]
    if rows_path is not None:
        rows = data.read_rows(rows_path, manifest)
        if rows.target is None:
            raise DataError(f"{rows_path} has no truth to check against: give the column {manifest.target!r}")
        for entry, variant in zip(found, manifest.variants, strict=True):
            model = OnnxModel(bundle.blobs[variant.graph.digest], source="")
            answers = verify.run_answers(model, Rows(rows.inputs), manifest.task)
            entry["metrics"] = metrics.evaluate(manifest.task, rows.target, answers)
            entry["reason"] += "; " + ", ".join(f"{name} {value:.4f}" for name, value in entry["metrics"].items())
    verdict = "pass" if all(entry["passed"] for entry in found) else "fail"
    return {"model": manifest.model, "release": manifest.release, "verdict": verdict, "variants": found}


def lint_model(
    path: Path, *, trust: bool = False, boards: Sequence[str] = (), runtime: str | None = None
) -> list[Finding]:
    """Return what is worth knowing of the finished model at `path` before it goes to `boards`; nothing is written.

    `runtime` is the onnxruntime there, what their profiles say if not given.
    """
    named = [runtime or find_board(board).runtime for board in boards] or [runtime]
    versions = [version for version in dict.fromkeys(named) if version]
    return lint(convert.read_model(path, trust=trust, runtimes=versions), versions)


def predict_rows(path: Path, data_path: Path, *, board: str = "") -> dict[str, Any]:
    """Return what the variant for `board` of the bundle at `path` answers for every row of `data_path`."""
    bundle = read_bundle(path)
    manifest = bundle.manifest
    rows = data.read_rows(data_path, manifest)
    variant = manifest.variant_for(board)
    outputs = Session(bundle.blobs[variant.graph.digest], manifest.session_for(board)).run(rows.inputs)
    columns, table = _readable(outputs, manifest)
    head = {"model": manifest.model, "release": manifest.release, "variant": variant.name}
    return {**head, "columns": columns, "rows": table}


def write_predictions(path: Path, answers: Mapping[str, Any]) -> None:
    """Write the rows of `answers` as .csv, all or nothing."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(answers["columns"])
    writer.writerows(answers["rows"])
    write_atomic(path, text.getvalue().encode())


def _replay(variant: ReleaseVariant, graph: bytes, goldens: Mapping[str, np.ndarray]) -> dict[str, Any]:
    feeds = {name.removeprefix("input."): array for name, array in goldens.items() if name.startswith("input.")}
    answers, difference, flips = Session(graph, variant.session).run(feeds), 0.0, 0
    for name, answer in answers.items():
        expected = goldens[f"{variant.name}.{name}"]
        if answer.dtype.kind == "f":
            gap = np.abs(answer.astype(np.float64) - expected)
            difference = max(difference, float(gap.max(initial=0.0)) if np.isfinite(gap).all() else float("inf"))
        elif name == LABEL:
            flips += int((answer != expected).sum())
    rows = len(next(iter(feeds.values())))
    return {
        "name": variant.name,
        "rows": rows,
        "max_abs": difference,
        "label_flips": flips,
        "passed": difference <= variant.bounds.max_abs and flips <= variant.bounds.label_flips,
        "reason": f"{rows} goldens replayed; bounds {variant.bounds.max_abs:g} and {variant.bounds.label_flips} flips",
    }


def _readable(outputs: Mapping[str, np.ndarray], manifest: Manifest) -> tuple[list[str], list[list[Any]]]:
    if manifest.task == "classification":
        kind, shown = ("p", PROBABILITIES) if PROBABILITIES in outputs else ("score", SCORES)
        names = list(manifest.classes) or [str(k) for k in range(max(outputs[shown].shape[1], 2))]
        pairs = zip(outputs[LABEL].tolist(), outputs[shown].tolist(), strict=True)
        table = [[names[label], *(round(value, 6) for value in values)] for label, values in pairs]
        return ["label", *(f"{kind}({name})" for name in names[-outputs[shown].shape[1] :])], table
    if manifest.task == "regression":
        return [PREDICTION], [[value] for value in outputs[PREDICTION].ravel().tolist()]
    flat = {name: array.reshape(len(array), -1) for name, array in outputs.items()}
    columns = [f"{name}[{k}]" for name, array in flat.items() for k in range(array.shape[1])]
    return columns, np.concatenate(list(flat.values()), axis=1).tolist()


def bundle_models(bundle: Bundle) -> dict[str, OnnxModel]:
    """Return the graphs that `bundle` carries, by variant."""
    return {v.name: OnnxModel(bundle.blobs[v.graph.digest], source="") for v in bundle.manifest.variants}
