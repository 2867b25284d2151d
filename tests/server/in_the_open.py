"""What rounds over the stand-in model come to, computed here from rows in the open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeml import graph, tasks
from edgeml.autodiff import SGD, training_step
from edgeml.server import Learner
from edgeml_runtime.session import Session
from edgeml_runtime.wire import gaussian
from edgeml_runtime.wire.holdout import places
from tests.server.stand_ins import a_model

Arrays = Mapping[str, np.ndarray]


def fedavg(rows: Sequence[Arrays], *, clip_norm: float = 0.0) -> dict[str, np.ndarray]:
    """Return the parameters after one round of devices with these `rows`; clipped updates all count alike."""
    task = tasks.training(training_step(a_model(), optimizer=SGD(0.9)), epochs=1, batch_size=16)
    session = Session(task.data)
    scalars = {"lr": np.array(0.1, np.float32), "seed": np.array(0, np.int64)}
    outputs = [session.run({**own, **task.parameters, **scalars}) for own in rows]
    deltas = [{key: out[f"delta.{key}"].astype(np.float64) for key in task.parameters} for out in outputs]
    deltas = [gaussian.clip(delta, clip_norm) for delta in deltas] if clip_norm else deltas
    counts = [1 if clip_norm else len(own["target"]) for own in rows]
    return {
        key: value + np.average([delta[key] for delta in deltas], axis=0, weights=counts)
        for key, value in task.parameters.items()
    }


def learned(rows: Arrays, *, held_out: float = Learner.held_out) -> Arrays:
    """Return those of `rows` that a device trains on, which holds out the others."""
    seen = places({"numeric": rows["numeric"]}) >= held_out
    return {name: value[seen] for name, value in rows.items()}


def noise_of(model: bytes, rows: Sequence[Arrays], *, clip_norm: float) -> float:
    """Return the standard deviation of what `model` has beyond the clipped mean of devices with these `rows`."""
    released, mean = graph.initializers(model), fedavg(rows, clip_norm=clip_norm)
    return float(np.std(np.concatenate([(released[key] - value).ravel() for key, value in mean.items()])))
