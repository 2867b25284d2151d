"""The plain summary of a run: what `--json` prints, what the report is drawn from."""

from __future__ import annotations

import dataclasses
import math
import platform
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeml import bench, metrics, verify
from edgeml.artifacts import FP32, Choice, Measurement, Rows, Variant
from edgeml.devices import DeviceProfile
from edgeml.pipeline.facts import facts_of, told_of, work_of
from edgeml.pipeline.plan import versions
from edgeml.pipeline.subject import Proof, Subject


def summarize(proof: Proof, subject: Subject, boards: Mapping[str, DeviceProfile]) -> dict[str, Any]:
    """Return everything about the run that a program or a reader may want, as JSON values: None for NaN or infinity."""
    manifest, float_verdict = proof.bundle.manifest, proof.verdicts[FP32]
    shipped = proof.bundle.manifest.default_variant
    told = {
        "model": manifest.model,
        "task": manifest.task,
        "release": manifest.release,
        "metric": subject.metric,
        "created": manifest.created,
        "dataset": dict(subject.dataset),
        "metrics": {
            "source": _source_metrics(subject),
            "test": dict(float_verdict.metrics),
        },
        "search": [_candidate(candidate) for candidate in subject.candidates],
        "variants": [_variant(variant, proof) for variant in proof.variants],
        "best_failure": _best_failure(proof),
        "skipped": [{"name": item.recipe, "reason": item.reason} for item in proof.skipped],
        "devices": {name: _device(choice, subject, boards[name]) for name, choice in proof.choices.items()},
        "default_variant": shipped,
        "confusion": _confusion(proof, subject),
        "notes": list(subject.notes),
        "lineage": dict(manifest.lineage),
        "environment": {**versions(), "python": platform.python_version(), **_environment(proof)},
    }
    return {name: _finite(value) for name, value in told.items()}


def _finite(value: Any) -> Any:
    """Return `value` with None for every number that JSON cannot say."""
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _best_failure(proof: Proof) -> dict[str, Any] | None:
    """Return the compressed variant that failed by the least; its file is kept among the others."""
    failed = bench.nearest_failure(list(proof.verdicts.values()))
    return None if failed is None else {"name": failed.recipe, "missed_by": failed.missed, "reason": failed.reason}


def _source_metrics(subject: Subject) -> dict[str, float]:
    if subject.held_out.target is None:
        return {}
    return metrics.evaluate(subject.task, subject.held_out.target, subject.reference)


def _candidate(candidate: Any) -> dict[str, Any]:
    return {
        "estimator": candidate.estimator,
        "parameters": dict(candidate.parameters),
        "score": candidate.score,
        "spread": candidate.spread,
        "seconds": candidate.seconds,
    }


def _variant(variant: Variant, proof: Proof) -> dict[str, Any]:
    verdict = proof.verdicts[variant.recipe]
    parity = verdict.parity
    return {
        "name": variant.recipe,
        "bytes": len(variant.model.data),
        "metrics": dict(verdict.metrics),
        "accuracy_drop": verdict.accuracy_drop,
        "accuracy_drop_upper": verdict.accuracy_drop_upper,
        "parity": {
            "max_abs": parity.max_abs,
            "label_flips": parity.label_flips,
            "ties": parity.ties,
            "rows": parity.rows,
        },
        "host_latency_ms": _latency(proof.measurements[variant.recipe]),
        "measurement": dict(proof.measurements[variant.recipe].details),
        "digest": variant.model.digest,
        "work": work_of(variant.model),
        "verdict": "pass" if verdict.passed else "fail",
        "reason": verdict.reason,
        "missed_by": verdict.missed,
        "worst": [dataclasses.asdict(row) for row in verdict.worst],
    }


def _latency(measured: Measurement) -> dict[str, Any]:
    return {
        "p50": measured.p50,
        "p90": measured.p90,
        "p99": measured.p99,
        "n": measured.n,
        "ci95": list(measured.ci95),
        "valid": measured.valid,
        "why": measured.why,
        "samples": list(measured.samples),
    }


def _device(choice: Choice, subject: Subject, board: DeviceProfile) -> dict[str, Any]:
    chosen = choice.predictions[choice.variant]
    target = next(target for target in subject.project.devices if target.board == choice.board)
    return {
        "variant": choice.variant,
        "latency_ms": told_of(chosen),
        "memory_mb": chosen.memory_mb,
        "fits": choice.fits,
        "reason": choice.reason,
        "limits": {"latency_p90_ms": target.latency_p90_ms, "memory_mb": target.memory_mb},
        "predictions": {name: dataclasses.asdict(item) for name, item in choice.predictions.items()},
        "profile": facts_of(board),
    }


def _confusion(proof: Proof, subject: Subject) -> dict[str, Any] | None:
    """Return the confusion matrix of the default variant on the held-out rows: rows are the truth."""
    target, classes = subject.held_out.target, list(subject.classes)
    if subject.task != "classification" or target is None or not classes:
        return None
    name = proof.bundle.manifest.default_variant
    variant = next(variant for variant in proof.variants if variant.recipe == name)
    labels = verify.run_answers(variant.model, Rows(subject.held_out.inputs), subject.task).labels
    assert labels is not None, "a classifier answers with labels"
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (target, labels), 1)
    return {"labels": classes, "counts": counts.tolist()}


def _environment(proof: Proof) -> dict[str, Any]:
    return dict(proof.measurements[FP32].environment)
