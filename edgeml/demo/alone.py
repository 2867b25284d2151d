"""What each agent would reach without the others: the same task graph, run here on its rows alone."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeml import autodiff, graph, tasks
from edgeml.artifacts import FP32, OnnxModel
from edgeml.demo.digits import Share
from edgeml.registry import Registry
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import LABEL, NUMERIC, Manifest


def accuracy_alone(
    registry: Registry, shares: dict[str, Share], test: Share, *, epochs: int, learning_rate: float
) -> list[dict[str, Any]]:
    """Return, for each device, its rows, their labels, and the test accuracy after `epochs` on them alone."""
    bundle = registry.bundle_of(registry.find("digits@1"))
    manifest = bundle.manifest
    model = OnnxModel(next(bundle.blobs[v.graph.digest] for v in manifest.variants if v.name == FP32), source="")
    task = tasks.training(autodiff.training_step(model, loss="softmax_cross_entropy"), epochs=epochs, batch_size=16)
    session, told = Session(task.data), []
    for device, share in shares.items():
        outputs = session.run(
            {
                NUMERIC: _numeric(share, manifest),
                "target": _indices(share, manifest),
                "lr": np.array(learning_rate, np.float32),
                "seed": np.array(0, np.int64),
                **task.parameters,
            }
        )
        learned = graph.set_initializers(
            model, {name: old + outputs[f"delta.{name}"] for name, old in task.parameters.items()}
        )
        said = Session(learned.data).run({NUMERIC: _numeric(test, manifest)})[LABEL]
        digits, counts = np.unique(share.digits, return_counts=True)
        told.append(
            {
                "device": device,
                "rows": len(share.digits),
                "labels": {str(digit): int(count) for digit, count in zip(digits, counts, strict=True)},
                "accuracy": float(np.mean(said == _indices(test, manifest))),
            }
        )
    return told


def _numeric(share: Share, manifest: Manifest) -> np.ndarray:
    return share.pixels[:, [share.columns.index(feature.name) for feature in manifest.features]]


def _indices(share: Share, manifest: Manifest) -> np.ndarray:
    return np.array([manifest.classes.index(str(digit)) for digit in share.digits], dtype=np.int64)
