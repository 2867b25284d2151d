"""Latency of a model on a calibrated device: its kernels' measured costs, summed over the graph as it runs there.

The graph must be the device's own: onnxruntime fuses and lays out differently by processor. For an x86-64 device it
is taken from a session here; for an aarch64 one from a session without the blocked layout, which those lack.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace

import numpy as np

from edgeml.artifacts import OnnxModel, Prediction
from edgeml.bench.calibrate import Calibration
from edgeml.bench.calibrate.work import Work, work_of
from edgeml.bench.predict.fit import Kernels
from edgeml.bench.predict.roofline import memory_mb
from edgeml.errors import NotPredictable
from edgeml_runtime.measure import operators
from edgeml_runtime.session import VERSION
from edgeml_runtime.wire.manifest import Settings

LEAST_COVERAGE = 0.8
OTHER_RUNTIME = 1.5  # another onnxruntime has other kernels: its factor on the interval's width
BLOCKED_ON = ("x86_64", "AMD64")


def predict_calibrated(model: OnnxModel, feeds: Mapping[str, np.ndarray], calibration: Calibration) -> Prediction:
    """Return the time of one query `feeds` of `model` on the calibrated device, and its memory, method "calibrated".

    Raises NotPredictable when less than 80 % of the time is of operators that were measured there.
    """
    nodes = nodes_as_on(model, feeds, calibration)
    forecast = Kernels(calibration).forecast(nodes)
    if forecast.coverage < LEAST_COVERAGE:
        named = ", ".join(forecast.unknown[:4])
        raise NotPredictable(
            f"{calibration.device}: its calibration explains {forecast.coverage:.0%} of the model's time, and "
            f"{LEAST_COVERAGE:.0%} are needed: {named} were not measured there; measure the model on the device"
        )
    notes, width = _notes(calibration)
    factor = (forecast.high / forecast.ms) ** width
    low, high = forecast.ms / factor, forecast.ms * factor
    return Prediction(low, forecast.ms, high, memory_mb(model), "calibrated", forecast.coverage, notes)


def nodes_as_on(model: OnnxModel, feeds: Mapping[str, np.ndarray], calibration: Calibration) -> Sequence[Work]:
    """Return the work of the nodes that `calibration`'s device would run."""
    known = {field.name for field in fields(Settings)}
    settings = Settings(**{name: value for name, value in calibration.settings.items() if name in known})
    there, here = str(calibration.environment["machine"]), platform.machine()
    if there not in BLOCKED_ON and here in BLOCKED_ON and settings.graph_level == "all":
        settings = replace(settings, graph_level="extended")
    return [work_of(node) for node in operators(model.data, feeds, runs=1, settings=settings, weights=True)]


def _notes(calibration: Calibration) -> tuple[tuple[str, ...], float]:
    """Return what widens the interval, and the power it is raised to."""
    from_version, here = str(calibration.environment["onnxruntime"]), VERSION
    notes = [f"calibrated under disturbance: {doubt}" for doubt in calibration.doubts]
    if from_version != here:
        notes.append(f"calibrated with onnxruntime {from_version}, here is {here}: the range is wider; calibrate again")
    return tuple(notes), OTHER_RUNTIME if from_version != here else 1.0
