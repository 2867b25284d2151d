"""Latency of a model on a calibrated device: its kernels' measured costs, summed over the graph as it runs there.

The graph must be the device's own: onnxruntime fuses and lays out differently by processor. For an x86-64 device it
is taken from a session here; for an aarch64 one from a session without the blocked layout, which those lack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgeml.artifacts import OnnxModel, Prediction
from edgeml.bench.calibrate import Calibration
from edgeml.bench.calibrate.work import Work, works_of
from edgeml.bench.predict.fit import Kernels
from edgeml.bench.predict.memory import memory_mb
from edgeml.errors import NotPredictable
from edgeml_runtime.measure import OperatorTime, operators
from edgeml_runtime.session import DEFAULTS, LIKE, VERSION
from edgeml_runtime.wire.manifest import Settings

LEAST_COVERAGE = 0.8
OTHER_RUNTIME = 1.5  # another onnxruntime has other kernels: its factor on the interval's width


def predict_calibrated(
    model: OnnxModel,
    feeds: Mapping[str, np.ndarray],
    calibration: Calibration,
    *,
    nodes: Sequence[OperatorTime] | None = None,
    runtime: str = VERSION,
) -> Prediction:
    """Return the time of one query `feeds` of `model` on the calibrated device, and its memory, method "calibrated".

    `nodes` are those of the model as the device itself ran it, if it was asked; else they are taken from a session
    here. `runtime` is the onnxruntime that will run it. Raises NotPredictable when less than 80 % of the time is of
    operators that were measured there.
    """
    works = nodes_as_on(model, feeds, calibration) if nodes is None else works_of(nodes, model.data)
    forecast = Kernels(calibration).forecast(works)
    if forecast.coverage < LEAST_COVERAGE:
        named = ", ".join(forecast.unknown[:4])
        raise NotPredictable(
            f"{calibration.device}: its calibration explains {forecast.coverage:.0%} of the model's time, and "
            f"{LEAST_COVERAGE:.0%} are needed: {named} were not measured there; measure the model on the device"
        )
    notes, width = _notes(calibration, runtime)
    factor = (forecast.high / forecast.ms) ** width
    machine = str(calibration.environment["machine"])
    memory = memory_mb(model, settings=calibration.session_settings(), machine=machine)
    low, high = forecast.ms / factor, forecast.ms * factor
    return Prediction(low, forecast.ms, high, memory, "calibrated", forecast.coverage, notes)


def nodes_as_on(model: OnnxModel, feeds: Mapping[str, np.ndarray], calibration: Calibration) -> Sequence[Work]:
    """Return the work of the nodes that `calibration`'s device would run."""
    settings, machine = calibration.session_settings(), str(calibration.environment["machine"])
    return works_on(machine, model, feeds, settings=settings)


def works_on(
    machine: str, model: OnnxModel, feeds: Mapping[str, np.ndarray], *, settings: Settings = DEFAULTS
) -> list[Work]:
    """Return the work of the nodes that onnxruntime runs `model` as on a `machine`, seen in a session here.

    A lower graph level would not do: int8 convolutions get channels last at the highest, on every machine.
    """
    like = machine if machine in LIKE else ""
    found = operators(model.data, feeds, runs=1, settings=settings, weights=True, like=like)
    return works_of(found, model.data)


def _notes(calibration: Calibration, runtime: str) -> tuple[tuple[str, ...], float]:
    """Return what widens the interval, and the power it is raised to."""
    calibrated = str(calibration.environment["onnxruntime"])
    notes = [f"calibrated under disturbance: {doubt}" for doubt in calibration.doubts[:1]]
    if calibrated == runtime:
        return tuple(notes), 1.0
    notes.append(
        f"stale: calibrated with onnxruntime {calibrated}, and {runtime} will run it: the range is "
        f"{OTHER_RUNTIME:g} times as wide; calibrate again"
    )
    return tuple(notes), OTHER_RUNTIME
