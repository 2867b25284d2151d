"""The ways to make a model smaller, as a table; a recipe's name is the variant's name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgeml.artifacts import FP32
from edgeml.errors import UserError


@dataclass(frozen=True)
class Recipe:
    """Static QDQ quantization: signed 8-bit weights with a scale per output channel, asymmetric activations.

    Symmetric activations are not offered: ReLU and Clip then no longer fold away, which costs a
    third more instructions on every Arm core.
    """

    name: str
    precision: Literal["int8"]
    activations: Literal["uint8", "int8"]
    per_channel: bool = True


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("int8-static-u8s8", "int8", "uint8"),  # ahead on cores without dot product: A53, A72
        Recipe("int8-static-s8s8", "int8", "int8"),  # ahead on cores with it: A76
    )
}


def recipes_for(precisions: Sequence[str]) -> list[Recipe]:
    """Return the recipes that `precisions` ask for, by precision or by name; fp32 needs none.

    Raises UserError when one of them is neither.
    """
    wanted: dict[str, Recipe] = {}
    for asked in precisions:
        found = {r.name: r for r in RECIPES.values() if asked in (r.name, r.precision)}
        if not found and asked != FP32:
            known = sorted({FP32, *RECIPES, *(r.precision for r in RECIPES.values())})
            raise UserError(f"no precision {asked!r}: choose from {', '.join(known)}")
        wanted |= found
    return list(wanted.values())
