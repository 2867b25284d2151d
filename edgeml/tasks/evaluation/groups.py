"""Which rows count together: all, and those of each class, category or range of a number."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from edgeml.errors import UserError
from edgeml.tasks.binning import emit_bins, padded
from edgeml.tasks.model_program import ModelProgram
from edgeml.tasks.program import TARGET

ALL, OTHER, MISSING = "all", "other", "missing"


@dataclass(frozen=True)
class By:
    """Rows told apart by an input's `column`: by text `values` (any other is "other"), by sorted `edges` of a number
    (a number on an edge is below it, NaN is "missing"), or, for the input "target", by class."""

    input: str = TARGET
    column: int = 0
    values: tuple[str, ...] = ()
    edges: tuple[float, ...] = ()

    def names(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Return the name of every group, without that of all rows."""
        if self.input == TARGET:
            return tuple(classes)
        if self.values:
            return (*self.values, OTHER)
        bounds = [f"{edge:g}" for edge in self.edges]
        first, last = f"<= {bounds[0]}", f"> {bounds[-1]}"
        between = [f"{a} to {b}" for a, b in itertools.pairwise(bounds)]
        return (first, *between, last, MISSING)


def check(by: By | None, program_inputs: Sequence[str], classes: int) -> None:
    """Raise UserError unless rows can be told apart so."""
    if by is None:
        return
    if by.input == TARGET and not classes:
        raise UserError("groups by target need a classifier: give edges of a numeric input instead")
    if by.input != TARGET and by.input not in program_inputs:
        raise UserError(f"no input {by.input!r} to group by; there is {', '.join(program_inputs)} and {TARGET}")
    if by.input != TARGET and bool(by.values) == bool(by.edges):
        raise UserError(f"groups by {by.input!r} need either values of a text or edges of a number")
    if list(by.edges) != sorted(set(by.edges)) or not np.isfinite(by.edges).all():
        raise UserError(f"edges {by.edges} must be finite and rise")


def emit_groups(p: ModelProgram, by: By | None, classes: int) -> str:
    """Return float64 (n, 1 + groups): 1 in the first column, and in that of each row's group."""
    e = p.e
    one = helper.make_tensor("value", TensorProto.DOUBLE, [1], [1.0])
    ones = p.column(e.op("ConstantOfShape", e.op("Shape", p.y), value=one))
    if by is None:
        return ones
    if by.input == TARGET:
        return e.op("Concat", ones, p.one_hot(p.y, classes), axis=1)
    column = e.op("Gather", p.rows[by.input], e.vector(by.column), axis=1)  # (n, 1)
    if by.values:
        code, size = p.encode(e.op("Squeeze", column, e.vector(1)), by.values), len(by.values) + 1
        return e.op("Concat", ones, p.one_hot(code, size), axis=1)
    edges = padded([np.array(by.edges)])
    bins = emit_bins(e, p.float64(column), e.value(edges), shape=edges.shape)
    places = [*range(len(by.edges) + 1), edges.shape[1] + 1]  # of the padded edges only missing is ever reached
    hot = p.float64(e.op("Equal", bins, e.value(np.array([places], np.int32))))
    return e.op("Concat", ones, hot, axis=1)
