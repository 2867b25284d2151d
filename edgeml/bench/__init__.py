"""How fast and how large: measured here through the device's code, predicted for boards, and the choice.

    Variant -measure_here-> Measurement;  OnnxModel x DeviceProfile -predict-> Prediction
    Device -calibrate-> Calibration;  OnnxModel x Calibration -predict_calibrated-> Prediction
    Variant x Known -predict_for-> Prediction, of everything that is known of the board
    Variants, Verdicts, Predictions -choose-> Choice

A prediction is never one number without its range.
"""

from edgeml.bench.calibrate import (
    WHOLE,
    Calibration,
    Device,
    Here,
    Scope,
    calibrate,
    parse_calibration,
    read_calibration,
)
from edgeml.bench.choose import choose, nearest_failure
from edgeml.bench.measure import measure_here, one_query
from edgeml.bench.predict import Kernels, Known, memory_mb, predict, predict_calibrated, predict_for

__all__ = [
    "WHOLE",
    "Calibration",
    "Device",
    "Here",
    "Kernels",
    "Known",
    "Scope",
    "calibrate",
    "choose",
    "measure_here",
    "memory_mb",
    "nearest_failure",
    "one_query",
    "parse_calibration",
    "predict",
    "predict_calibrated",
    "predict_for",
    "read_calibration",
]
