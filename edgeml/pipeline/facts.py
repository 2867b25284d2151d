"""Facts that documents carry for their readers: the work of a graph, the peaks of a board, what was predicted."""

from __future__ import annotations

import dataclasses
from typing import Any

from edgeml.artifacts import OnnxModel, Prediction
from edgeml.devices import DeviceProfile
from edgeml.errors import UnsupportedModel
from edgeml.graph import cost
from edgeml_runtime.session import is_program


def work_of(model: OnnxModel) -> dict[str, Any]:
    """Return what one row costs `model`, as graph.Cost counts it; nothing where its shapes cannot be seen."""
    if is_program(model.data):
        return {}
    try:
        found = cost(model)
    except UnsupportedModel:
        return {}
    return dataclasses.asdict(found) | {"macs": found.macs}


def facts_of(board: DeviceProfile) -> dict[str, Any]:
    """Return the facts of `board` without their sources, unknown ones left out."""
    return {name: value for name, value in board.to_plain().items() if name != "sources"}


def told_of(prediction: Prediction) -> dict[str, Any]:
    """Return the latency that was predicted, with its range, method and sources; memory stands elsewhere."""
    return {name: value for name, value in dataclasses.asdict(prediction).items() if name != "memory_mb"}
