"""What is done to the gradients before the optimizer sees them: penalties, corrections, clipping, in this order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgeml.autodiff.builder import GraphBuilder
from edgeml.errors import UserError

ANCHOR, CONTROL, MU = "anchor.", "control.", "mu"


@dataclass(frozen=True, kw_only=True)
class Shaping:
    """Options; none of them by default.

    `l2` adds l2 * w to a gradient. `proximal` adds mu * (w - anchor.w), FedProx's term (arXiv 1812.06127), with inputs
    `mu` and `anchor.w`. `control` adds the input `control.w`, SCAFFOLD's c - c_i (arXiv 1910.06378). `clip_norm`
    scales all gradients together to at most this 2-norm, `clip_value` cuts every element.
    """

    l2: float = 0.0
    proximal: bool = False
    control: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None

    def __post_init__(self) -> None:
        for name in ("clip_norm", "clip_value"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"{name} {value}: choose a number above 0")
        if self.l2 < 0:
            raise UserError(f"l2 {self.l2}: choose 0 or more")

    def inputs(self, parameter: str) -> tuple[str, ...]:
        """Return the inputs, shaped like `parameter`, that a step needs for it."""
        return ((ANCHOR + parameter,) if self.proximal else ()) + ((CONTROL + parameter,) if self.control else ())

    def shaped(self, g: GraphBuilder, gradients: Mapping[str, str]) -> dict[str, str]:
        """Return the gradients, by parameter, that the optimizer takes."""
        found = {parameter: self._corrected(g, parameter, gradient) for parameter, gradient in gradients.items()}
        if self.clip_norm is not None:
            found = _within_norm(g, found, self.clip_norm)
        if self.clip_value is not None:
            low, high = g.const(-self.clip_value), g.const(self.clip_value)
            found = {parameter: g.op("Clip", gradient, low, high) for parameter, gradient in found.items()}
        return found

    def _corrected(self, g: GraphBuilder, parameter: str, gradient: str) -> str:
        if self.l2:
            gradient = g.op("Add", gradient, g.op("Mul", parameter, g.const(self.l2)))
        if self.proximal:
            gradient = g.op("Add", gradient, g.op("Mul", MU, g.op("Sub", parameter, ANCHOR + parameter)))
        return g.op("Add", gradient, CONTROL + parameter) if self.control else gradient


def _within_norm(g: GraphBuilder, gradients: Mapping[str, str], most: float) -> dict[str, str]:
    squares = [g.op("ReduceSum", g.op("Mul", one, one), keepdims=0) for one in gradients.values()]
    norm = g.op("Sqrt", squares[0] if len(squares) == 1 else g.op("Sum", *squares))
    limit = g.const(most)
    share = g.op("Div", limit, g.op("Max", norm, limit))
    return {parameter: g.op("Mul", gradient, share) for parameter, gradient in gradients.items()}
