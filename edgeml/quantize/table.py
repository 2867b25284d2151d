"""The ways to make a model smaller, as a table, and which of them a precision or a graph asks for."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto

from edgeml.artifacts import FP32
from edgeml.errors import UserError
from edgeml.quantize import dynamic, forest, prune, vocabulary
from edgeml.quantize.choice import suitable
from edgeml.quantize.equalize import equalized
from edgeml.quantize.float16 import float16
from edgeml.quantize.mixed import mixed
from edgeml.quantize.plain import plain
from edgeml.quantize.qdq import Form
from edgeml.quantize.recipe import MIN_CALIBRATION_ROWS, Recipe
from edgeml.quantize.smooth import smooth
from edgeml.quantize.static import Static, maker
from edgeml.quantize.weights import int4, weights8, weights16
from edgeml_runtime.wire.manifest import PLAIN

AUTO = "auto"


def _static(name: str, precision: str, how: Static, *, summary: str) -> Recipe:
    return Recipe(name, precision, maker(name, how), summary, MIN_CALIBRATION_ROWS, takes_ranges=True)


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _static(
            "int8-static-u8s8",
            "int8",
            Static(Form("uint8")),
            summary="8-bit products, unsigned activations: ahead on cores without dot product (A53, A72)",
        ),
        _static(
            "int8-static-s8s8",
            "int8",
            Static(Form("int8")),
            summary="8-bit products, signed activations: ahead on cores with dot product (A76)",
        ),
        _static(
            "int8-tensor-u8s8",
            "per-tensor",
            Static(Form("uint8", per_channel=False)),
            summary="one scale per weight: faster where matrices are large, less exact",
        ),
        _static(
            "int8-tensor-s8s8",
            "per-tensor",
            Static(Form("int8", per_channel=False)),
            summary="one scale per weight, signed activations",
        ),
        _static(
            "int8-qoperator-u8s8",
            "qoperator",
            Static(Form("uint8"), operators=True),
            summary="int8-static-u8s8 written as 8-bit operators: the smallest file",
        ),
        _static(
            "int8-qoperator-s8s8",
            "qoperator",
            Static(Form("int8"), operators=True),
            summary="int8-static-s8s8 written as 8-bit operators",
        ),
        _static(
            "int8-percentile",
            "ranges",
            Static(method="percentile"),
            summary="int8-static-u8s8 whose ranges leave out 0.01 % of the activations",
        ),
        _static(
            "int8-entropy",
            "ranges",
            Static(method="entropy"),
            summary="int8-static-u8s8 whose ranges keep most information",
        ),
        _static(
            "int8-mse",
            "ranges",
            Static(method="mse"),
            summary="int8-static-u8s8 whose ranges have the least squared error",
        ),
        Recipe(
            "int8-dynamic",
            "dynamic",
            dynamic.per_channel,
            "8-bit MatMul, Gemm and LSTM, activations rounded at every call",
        ),
        Recipe("int8-dynamic-tensor", "dynamic", dynamic.per_tensor, "the same with one scale per weight: faster"),
        Recipe("fp16", "fp16", float16, "16-bit floats: half the size, slower unless the core has fp16"),
        Recipe("int4-weights", "int4", int4, "4-bit weights in blocks of 32 for large Gemm and MatMul"),
        Recipe("int8-weights", "weights8", weights8, "8-bit weights, unfolded while loading: a quarter of the file"),
        Recipe("fp16-weights", "weights16", weights16, "16-bit weights, unfolded while loading: half of the file"),
        Recipe(
            "int8-equalized",
            "equalized",
            equalized,
            "int8-static-u8s8 after equalizing neighbouring convolutions and correcting their biases",
            MIN_CALIBRATION_ROWS,
        ),
        Recipe(
            "int8-smooth",
            "smooth",
            smooth,
            "int8-static-u8s8 after moving the spread of layer norms into the weights",
            MIN_CALIBRATION_ROWS,
        ),
        Recipe(
            forest.NAME,
            "compact",
            forest.pruned,
            "tree ensembles whose least important subtrees became leaves, within the bound",
            MIN_CALIBRATION_ROWS,
        ),
        Recipe(
            vocabulary.NAME,
            "compact",
            vocabulary.pruned,
            "text models without the words that decide least, within the bound",
            MIN_CALIBRATION_ROWS,
        ),
        Recipe(
            prune.PRUNED,
            "pruned",
            prune.pruned,
            "networks with fewer channels, the layer behind them repaired by least squares",
            MIN_CALIBRATION_ROWS,
        ),
        Recipe(
            prune.DISTILLED,
            "distilled",
            prune.distilled,
            "narrower networks that learned the answers of the whole one, where operators have gradients",
            MIN_CALIBRATION_ROWS,
        ),
        Recipe(
            PLAIN,
            PLAIN,
            plain,
            "a numpy program for boards without onnxruntime (32-bit Arm): linear models, trees, small networks",
        ),
        Recipe("mixed", "mixed", mixed, "int8 but for the operators that do most damage", MIN_CALIBRATION_ROWS),
    )
}


def recipes_for(precisions: Sequence[str], proto: ModelProto) -> list[Recipe]:
    """Return the recipes that `precisions` ask for, by precision or by name; "auto" asks for what suits the graph.

    Raises UserError when one of them is neither.
    """
    asked = [name for word in precisions for name in (suitable(proto) if word == AUTO else [word])]
    wanted: dict[str, Recipe] = {}
    for word in asked:
        found = {r.name: r for r in RECIPES.values() if word in (r.name, r.precision)}
        if not found and word in precisions and word != FP32:
            known = sorted({FP32, AUTO, *RECIPES, *(r.precision for r in RECIPES.values())})
            raise UserError(f"no precision {word!r}: choose from {', '.join(known)}")
        wanted |= found
    return list(wanted.values())
