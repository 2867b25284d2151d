"""OnnxModel to its compressed variants, or a plain sentence where there is nothing to compress.

    OnnxModel, calibration Rows, Options -quantize-> [fp32 Variant, other Variants | Skipped]

Each recipe of RECIPES is one way; none of them decides whether its variant may ship, the gates do.
"""

from edgeml.quantize.apply import STOPPED, quantize
from edgeml.quantize.recipe import MIN_CALIBRATION_ROWS, Maker, Options, Recipe, Stopped
from edgeml.quantize.static import calibration_points
from edgeml.quantize.table import RECIPES

__all__ = [
    "MIN_CALIBRATION_ROWS",
    "RECIPES",
    "STOPPED",
    "Maker",
    "Options",
    "Recipe",
    "Stopped",
    "calibration_points",
    "quantize",
]
