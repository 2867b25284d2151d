"""The task graph of a strategy: what its devices run over their rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edgeml.artifacts import OnnxModel, Task, TrainingGraph
from edgeml.autodiff import SGD, training_step
from edgeml.autodiff.shaping import Shaping
from edgeml.errors import UserError
from edgeml.federated.strategy import Strategy
from edgeml.tasks import Local, training


def task_of(
    row: Strategy,
    model: Path | bytes | OnnxModel,
    *,
    loss: str,
    momentum: float = 0.9,
    epochs: int = 1,
    batch_size: int = 16,
    decay: bool = False,
) -> Task:
    """Return the training task of strategy `row` for `model`, with SGD; `decay` makes `lr.decay` an input.

    Raises UserError when the strategy and the model do not go together.
    """
    shaping = Shaping(proximal=row.proximal, control=row.control)
    graph = training_step(model, loss=loss, optimizer=SGD(momentum=momentum), shaping=shaping)
    local = Local(
        personal=head(graph) if row.personal == "head" else (),
        copy=row.personal == "model",
        momentum=momentum,
        decay=decay,
    )
    return training(graph, epochs=epochs, batch_size=batch_size, local=local)


def head(graph: TrainingGraph) -> Sequence[str]:
    """Return the parameters of the last layer: the last one with two axes or more, and those behind it."""
    names = list(graph.parameters)
    layers = [i for i, name in enumerate(names) if np.ndim(graph.parameters[name]) > 1]
    if len(layers) < 2:
        raise UserError(
            f"the model has {len(layers)} layer with weights, and its last one would stay on the devices: nothing "
            f"would be learned together; use a network with a hidden layer, or ditto"
        )
    return names[layers[-1] :]
