"""OnnxModel to its compressed variants, or a plain sentence where there is nothing to compress.

    OnnxModel, calibration Rows -quantize-> [fp32 Variant, int8 Variants | Skipped]

Only Conv, Gemm and MatMul become int8; preprocessing, trees and strings stay as they are.
"""

from edgeml.quantize.recipe import RECIPES, Recipe
from edgeml.quantize.static import MIN_CALIBRATION_ROWS, quantize

__all__ = ["MIN_CALIBRATION_ROWS", "RECIPES", "Recipe", "quantize"]
