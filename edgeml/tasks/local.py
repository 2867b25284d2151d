"""What a device does in its local epochs besides the plain optimizer: what stays with it, what corrects it.

A graph carries a device's memory from round to round as inputs `kept.<name>` and outputs `keep.<name>` that never leave
the device. Before the first round they are zeros; `kept.seen`, 0 then and 1 from then on, tells the two apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgeml.artifacts import TrainingGraph
from edgeml.autodiff.shaping import ANCHOR, CONTROL, MU
from edgeml.errors import UserError

KEPT, KEEP, SEEN = "kept.", "keep.", "seen"
OWN = "personal."  # a device's second model, in its memory
VARIATE = "variate."  # its c_i; not `control.`, lest c of the offer be taken for its first value
DECAY = "lr.decay"


@dataclass(frozen=True, kw_only=True)
class Local:
    """Options of a training task; none of them by default.

    `personal` names parameters that stay on the device (FedPer, arXiv 1912.00818). With `copy` the device trains a
    second model of its own, drawn to the round's parameters by `mu` (Ditto, arXiv 2012.04221). With `decay` the
    learning rate of epoch e is lr * lr.decay ** e, and `lr.decay` an input. `momentum` is what the graph's SGD has:
    control variates need it to tell the mean gradient from the way that was gone.
    """

    personal: Sequence[str] = ()
    copy: bool = False
    decay: bool = False
    momentum: float = 0.0


@dataclass(frozen=True)
class Roles:
    """What the inputs of a step are: rows, scalars of the round, corrections of its gradients."""

    proximal: bool
    control: bool
    scalars: tuple[str, ...]
    shared: Mapping[str, np.ndarray]  # parameters that leave as a change
    personal: Mapping[str, np.ndarray]  # parameters that stay
    corrections: frozenset[str]  # inputs `mu`, `anchor.w` and `control.w`


def roles(graph: TrainingGraph, local: Local, inputs: Sequence[str]) -> Roles:
    """Return what `inputs` of the step are under `local`; raise UserError for what cannot go together."""
    proximal, control = MU in inputs, any(name.startswith(CONTROL) for name in inputs)
    if unknown := sorted(set(local.personal) - set(graph.parameters)):
        raise UserError(f"personal names {unknown[0]!r}, no parameter; known: {', '.join(graph.parameters)}")
    if graph.parameters and set(local.personal) == set(graph.parameters):
        raise UserError("every parameter is personal: nothing is left to learn together")
    if local.copy and not proximal:
        raise UserError("a second model is drawn to the first: make the step with Shaping(proximal=True)")
    if control and (local.copy or local.personal):
        raise UserError("control variates correct the shared model: not together with personal parameters")
    _check_rate(graph, local, control=control)
    corrections = (name for name in inputs if name == MU or name.startswith((ANCHOR, CONTROL)))
    return Roles(
        proximal=proximal,
        control=control,
        scalars=("lr", "seed") + (MU,) * proximal + (DECAY,) * local.decay,
        shared={name: value for name, value in graph.parameters.items() if name not in local.personal},
        personal={name: value for name, value in graph.parameters.items() if name in local.personal},
        corrections=frozenset(corrections),
    )


def _check_rate(graph: TrainingGraph, local: Local, *, control: bool) -> None:
    """Control variates divide the way by the sum of the rates, known for plain SGD and heavy-ball momentum."""
    if not control:
        return
    expected = {f"velocity.{name}" for name in graph.parameters} if local.momentum else set()
    if graph.state.keys() != expected or "nesterov" in graph.optimizer:
        raise UserError(
            f"control variates with {graph.optimizer} and momentum {local.momentum:g}: use SGD without nesterov, and "
            f"say its momentum in Local"
        )
    if local.decay and local.momentum:
        raise UserError(f"control variates with momentum {local.momentum:g} and a decaying rate: choose one of them")
