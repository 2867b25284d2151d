"""The last layer of a release whose devices keep theirs (FedPer): fitted anew to what they learned together.

Devices without tensors of their own run it, so it must be a model as good as the server can make: the layers that
travelled are taken as they came, the last one is trained on rows of the project's training share.
"""

from __future__ import annotations

from collections.abc import Collection

from edgeml import graph
from edgeml.artifacts import OnnxModel, Rows
from edgeml.autodiff import SGD, training_step
from edgeml.tasks import training
from edgeml_runtime import task
from edgeml_runtime.session import Session
from edgeml_runtime.wire import DeviceError
from edgeml_runtime.wire.tasks import DELTA, LOSS_AFTER, LOSS_BEFORE

EPOCHS, BATCH_SIZE, RATE, MOMENTUM = 40, 16, 0.05, 0.9  # 512 rows: 1,280 steps, some tenths of a second


def settle(model: OnnxModel, shared: Collection[str], rows: Rows, *, loss: str, rate: float) -> OnnxModel:
    """Return `model` with all parameters but the `shared` ones trained on `rows`; as it is where that does not help.

    `rate` turns a learning rate for a standardized target into one for the target's own units.
    """
    own = [name for name in training_step(model, loss=loss).parameters if name not in shared]
    if not own or rows.target is None or not len(rows):
        return model
    step = training_step(model, loss=loss, optimizer=SGD(momentum=MOMENTUM), trainable=own)
    made = training(step, epochs=EPOCHS, batch_size=BATCH_SIZE)
    scalars = {"lr": RATE * rate, "seed": 0.0}
    try:
        found = task.run(
            Session(made.data), (rows.inputs, rows.target), kind="training", scalars=scalars, parameters=made.parameters
        )
    except DeviceError:  # it diverged
        return model
    if found.metrics[LOSS_AFTER] >= found.metrics[LOSS_BEFORE]:
        return model
    return graph.set_initializers(model, {n: made.parameters[n] + found.update[DELTA + n] for n in own})
