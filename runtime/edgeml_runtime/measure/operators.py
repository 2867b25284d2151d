"""Where the time of a model goes, operator by operator, from onnxruntime's own profile."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.session import DEFAULTS, Session
from edgeml_runtime.sidefile import placed
from edgeml_runtime.wire.manifest import Settings

KERNEL = "_kernel_time"  # onnxruntime's suffix of an operator's own event


@dataclass(frozen=True, kw_only=True)
class OperatorTime:
    """One node of the graph as it runs, which fusion and layout made out of the one in the file.

    `ms` is the mean of a run's time in its kernel without the slowest tenth (onnxruntime counts whole microseconds,
    of which a median knows nothing finer), `fast_ms` the 20th percentile, which neighbours disturb less.
    """

    name: str
    operator: str  # the profile does not tell its domain: the graph written to `optimized` does, by `name`
    ms: float
    fast_ms: float
    runs: int
    input_bytes: int
    output_bytes: int
    parameter_bytes: int
    shapes: tuple[tuple[str, tuple[int, ...]], ...]  # (element type, shape) of every input and then every output
    inputs: int  # how many of `shapes` are inputs


def operators(
    model: str | Path | bytes,
    feeds: Mapping[str, np.ndarray],
    *,
    runs: int = 50,
    settings: Settings = DEFAULTS,
    optimized: Path | None = None,
    weights: bool = False,
    like: str = "",
) -> tuple[OperatorTime, ...]:
    """Return what every node of `model` takes over `runs` runs of `feeds`, in the order in which they ran.

    With `optimized` the graph that was run is written there. With `weights` their shapes are told, too, which costs
    one more session: what was packed while loading is gone from the profile. Raises ModelRefused and ShapeMismatch
    like Session. `like` names the machine whose graph is wanted, as Session does.
    """
    timed = _profiled(model, feeds, runs=runs, settings=settings, optimized=optimized, like=like)
    if not weights:
        return timed
    unpacked = _profiled(model, feeds, runs=1, settings=replace(settings, prepacking=False), like=like)
    plain = {node.name: node for node in unpacked}
    return tuple(_with_weights(node, plain.get(node.name)) for node in timed)


def _with_weights(node: OperatorTime, plain: OperatorTime | None) -> OperatorTime:
    if plain is None or plain.operator != node.operator:
        return node
    return replace(node, shapes=plain.shapes, inputs=plain.inputs, parameter_bytes=plain.parameter_bytes)


def _profiled(
    model: str | Path | bytes,
    feeds: Mapping[str, np.ndarray],
    *,
    runs: int,
    settings: Settings,
    optimized: Path | None = None,
    like: str = "",
) -> tuple[OperatorTime, ...]:
    with tempfile.TemporaryDirectory() as folder, placed(model, settings) as source:
        profile = str(Path(folder) / "profile")
        session = Session(source, settings, profile=profile, optimized=str(optimized or ""), like=like)
        for _ in range(runs + 1):
            session.run(feeds)
        events = json.loads(session.end_profile().read_text(encoding="utf-8"))
    kernels: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            kernels.setdefault(event["name"].removesuffix(KERNEL), []).append(event)
    return tuple(_operator(name, found, runs) for name, found in kernels.items())


def _operator(name: str, events: list[Mapping[str, Any]], runs: int) -> OperatorTime:
    calls = max(1, len(events) // (runs + 1))  # more than one inside a Loop
    later = np.array([event["dur"] for event in events[calls:]] or [events[0]["dur"]], float) / 1e3
    arguments = events[-1]["args"]
    shapes = [_shape(entry) for side in ("input_type_shape", "output_type_shape") for entry in arguments.get(side, ())]
    return OperatorTime(
        name=name,
        operator=str(arguments["op_name"]),
        ms=float(np.sort(later)[: math.ceil(0.9 * len(later))].mean()) * calls,
        fast_ms=float(np.quantile(later, 0.2)) * calls,
        runs=len(later),
        input_bytes=int(arguments.get("activation_size", 0)),
        output_bytes=int(arguments.get("output_size", 0)),
        parameter_bytes=int(arguments.get("parameter_size", 0)),
        shapes=tuple(shapes),
        inputs=len(arguments.get("input_type_shape", ())),
    )


def _shape(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...]]:
    (kind, shape), *_ = entry.items()
    return str(kind), tuple(int(axis) for axis in shape)
