"""What goes to the devices of a round and what comes back: the offer of a task, and the check of an upload."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from edgeml.artifacts import Task
from edgeml.federated.plan import Plan
from edgeml.federated.updates import check_update
from edgeml_runtime.wire import compress, tensors
from edgeml_runtime.wire.blocks import digest_of
from edgeml_runtime.wire.messages import Secure, TaskOffer

UPDATE_SLACK_BYTES = 16 << 10  # names, shapes and losses of an update, beyond the parameters themselves


def check_upload(
    arrays: Mapping[str, np.ndarray], plan: Plan, parameters: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return the changes in an upload, as they were before compression; raise WireError when it has none."""
    shapes = {name: value.shape for name, value in parameters.items()}
    return check_update(compress.decode(arrays, plan.compress, shapes), parameters)


def make_offer(
    plan: Plan,
    task: Task,
    *,
    parameters: Mapping[str, np.ndarray],
    round: str,
    model: str,
    cohort: Iterable[str],
    number: int,
    deadline_s: float,
    secure: Secure | None = None,
) -> tuple[TaskOffer, bytes]:
    """Return the offer of `task` to `cohort`, to be signed, and the blob of parameters it names.

    `number` counts the rounds before this one: every round has its own seed.
    """
    blob = tensors.pack(parameters)
    rate, privacy = plan.learning_rate * plan.decay**number, plan.privacy
    given = {"lr": rate, "seed": float(plan.seed + number), "mu": plan.row.mu, "lr.decay": plan.epoch_decay}
    offer = TaskOffer(
        round=round,
        kind=task.kind,
        model=model,
        cohort=tuple(sorted(cohort)),
        graph=task.digest,
        graph_bytes=len(task.data),
        parameters=digest_of(blob),
        parameters_bytes=len(blob),
        scalars={name: given[name] for name in task.scalars},
        min_rows=plan.least(task.kind),
        max_update_bytes=len(blob) * (2 if secure and secure.bits == 64 else 1) + UPDATE_SLACK_BYTES,
        deadline_s=deadline_s,
        compress=plan.compress,
        clip_norm=privacy.clip_norm if privacy.where and not privacy.adapt else 0.0,  # else the server must see lengths
        noise=privacy.noise if privacy.where == "device" else 0.0,
        secure=secure,
        held_out=plan.held_out,
    )
    return offer, blob
