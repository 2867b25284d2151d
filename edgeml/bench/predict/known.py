"""All that is known of a board, and the one prediction that follows from it.

Variant x Known -predict_for-> Prediction: as measured there, else every estimate there is, combined
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from edgeml.artifacts import Measurement, Prediction, Rows, Variant
from edgeml.bench.calibrate import Calibration
from edgeml.bench.measure import one_query
from edgeml.bench.predict.calibrated import predict_calibrated
from edgeml.bench.predict.combine import combine
from edgeml.bench.predict.emulated import emulate
from edgeml.bench.predict.memory import memory_mb
from edgeml.bench.predict.roofline import predict
from edgeml.devices import DeviceProfile
from edgeml.errors import NotFound, NotPredictable


@dataclass(frozen=True, kw_only=True)
class Known:
    """What there is to go on for one board."""

    profile: DeviceProfile | None = None
    calibration: Calibration | None = None
    rows: Rows | None = None  # a query of the model, which calibration needs to see the graph as it runs
    measured: Mapping[str, Measurement] = field(default_factory=dict)  # by variant, on a device of this board
    threads: int = 1


def predict_for(variant: Variant, known: Known) -> Prediction:
    """Return time and memory of one row of `variant` on a board: as measured there, else as predicted.

    A measurement that is INVALID counts for nothing. Raises NotFound when there is nothing to go on, and
    NotPredictable when a calibration is all there is and it explains too little of the model.
    """
    found = known.measured.get(variant.recipe)
    if found is not None and found.valid:
        return of_measurement(found, variant)
    estimates, notes = [], list[str]()
    for method in METHODS:
        try:
            estimate = method(variant, known)
        except NotPredictable as error:
            if known.profile is None:
                raise
            notes.append(str(error))
            continue
        estimates += [estimate] if estimate is not None else []
    if not estimates:
        raise NotFound("nothing is known of this board: it has neither a profile nor a calibration for these settings")
    combined = combine(estimates)
    return replace(combined, notes=(*combined.notes, *notes))


def of_measurement(found: Measurement, variant: Variant) -> Prediction:
    """Return a measurement on the board as a prediction: its median and the interval of that."""
    memory = dict(found.details.get("memory_mb", {})).get("peak")
    return Prediction(
        min(found.ci95[0], found.p50),
        found.p50,
        max(found.ci95[1], found.p50),
        float(memory) if memory else memory_mb(variant.model),
        "measured",
    )


def _by_profile(variant: Variant, known: Known) -> Prediction | None:
    if known.profile is None:
        return None
    return predict(variant.model, known.profile, known.threads)


def _by_calibration(variant: Variant, known: Known) -> Prediction | None:
    calibration, rows = known.calibration, known.rows
    if calibration is None or rows is None:
        return None
    threads = int(calibration.settings.get("threads", 1))
    if threads != known.threads:
        raise NotPredictable(
            f"{calibration.device} is calibrated for {threads} threads, and {known.threads} are asked: calibrate again"
        )
    return predict_calibrated(variant.model, one_query(variant, rows), calibration)


def _by_emulation(variant: Variant, known: Known) -> Prediction | None:
    if known.profile is None:
        return None
    feeds = one_query(variant, known.rows) if known.rows is not None else None
    return emulate(variant.model, feeds, known.profile, threads=known.threads)


METHODS: list[Callable[[Variant, Known], Prediction | None]] = [_by_profile, _by_emulation, _by_calibration]
