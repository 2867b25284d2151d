"""A device's kernels and five reference nets, timed: what predictions for it are made from.

Device -calibrate-> Calibration
"""

from edgeml.bench.calibrate.ask import Ask
from edgeml.bench.calibrate.calibration import Calibration, Reference, parse_calibration, read_calibration
from edgeml.bench.calibrate.journal import operator_time
from edgeml.bench.calibrate.run import WHOLE, Device, Here, Scope, calibrate

__all__ = [
    "WHOLE",
    "Ask",
    "Calibration",
    "Device",
    "Here",
    "Reference",
    "Scope",
    "calibrate",
    "operator_time",
    "parse_calibration",
    "read_calibration",
]
