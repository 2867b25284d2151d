"""A device's kernels and five reference nets, timed: what predictions for it are made from.

Device -calibrate-> Calibration
"""

from edgeml.bench.calibrate.calibration import Calibration, Reference, read_calibration
from edgeml.bench.calibrate.run import Device, Here, calibrate

__all__ = ["Calibration", "Device", "Here", "Reference", "calibrate", "read_calibration"]
