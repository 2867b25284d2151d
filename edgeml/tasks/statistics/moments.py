"""Means, then second moments about them: two questions that most linear statistics need.

The sum of squares about zero loses the variance of a column whose mean is large; the first round agrees on
the means, the second sums about them, and what rounding left between is taken out exactly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeml.errors import DataError
from edgeml.tasks.program import LEFT_OUT, ROWS, Columns, Program
from edgeml.tasks.study import Answer, Question, Sums

Next = Question | Answer


@dataclass(frozen=True)
class Moments:
    """What two rounds know of all rows: float64, d features."""

    rows: float
    left_out: float
    mean: np.ndarray  # (d,)
    scatter: np.ndarray  # (d, d), the sum over rows of (x - mean)(x - mean)'
    target_mean: float = 0.0
    cross: np.ndarray | None = None  # (d,), the sum of (x - mean)(y - target mean)

    def notes(self) -> tuple[str, ...]:
        """Return what to say of the rows."""
        return left_out(self.left_out)


def left_out(rows: float) -> tuple[str, ...]:
    """Return a note about rows that no device could use, none where there were none."""
    return (f"{rows:.0f} rows were left out: a missing number, or a target that is none",) if rows else ()


def enough(sums: Sums, *, least: int) -> None:
    """Raise DataError when all devices together have fewer than `least` usable rows."""
    if sums[ROWS] < least:
        raise DataError(
            f"{sums[ROWS]:.0f} usable rows on all devices ({sums[LEFT_OUT]:.0f} left out), and at least {least} are "
            f"needed: label more rows, or widen the cohort"
        )


def moments(
    columns: Columns,
    source: str,
    *,
    target: Literal["", "values"] = "",
    least: int = 1,
    then: Callable[[Moments], Next],
) -> Question:
    """Return the first of two questions; `then` gets the moments of all rows."""
    p = Program(columns, target=target)
    p.output("sum.x", p.total(p.x), (columns.features,))
    if target:
        p.output("sum.y", p.total(p.y), ())

    def about(sums: Sums) -> Next:
        enough(sums, least=least)
        mean = sums["sum.x"] / sums[ROWS]
        target_mean = sums["sum.y"] / sums[ROWS] if target else np.array(0.0)
        return _second(columns, source, origin=(mean, target_mean), with_target=bool(target), then=then)

    return Question(p.task("statistics", source), about)


def _second(
    columns: Columns,
    source: str,
    *,
    origin: tuple[np.ndarray, np.ndarray],
    with_target: bool,
    then: Callable[[Moments], Next],
) -> Question:
    d = columns.features
    p = Program(columns, target="values" if with_target else "")
    x = p.e.op("Sub", p.x, p.parameter("origin.x", origin[0]))
    p.output("sum.x", p.total(x), (d,))
    p.output("sum.xx", p.gram(x, x), (d, d))
    if with_target:
        y = p.e.op("Sub", p.y, p.parameter("origin.y", origin[1]))
        p.output("sum.y", p.total(y), ())
        p.output("sum.xy", p.e.op("Squeeze", p.gram(x, p.column(y)), p.e.vector(1)), (d,))

    def finish(sums: Sums) -> Next:
        enough(sums, least=1)
        n = float(sums[ROWS])
        shift = sums["sum.x"] / n  # what rounding left of the mean; devices may also have learned new rows meanwhile
        scatter = sums["sum.xx"] - n * np.outer(shift, shift)
        known = Moments(n, float(sums[LEFT_OUT]), origin[0] + shift, scatter)
        if not with_target:
            return then(known)
        target_shift = float(sums["sum.y"]) / n
        cross = sums["sum.xy"] - n * shift * target_shift
        return then(
            Moments(n, known.left_out, known.mean, scatter, target_mean=float(origin[1]) + target_shift, cross=cross)
        )

    return Question(p.task("statistics", source), finish)
