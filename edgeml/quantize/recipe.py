"""What a recipe is: a name, the precision that asks for it, and the function that makes its variant."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from edgeml.artifacts import ActivationRanges, ModelTask, OnnxModel, Rows, Skipped, Variant
from edgeml.errors import DataError

MIN_CALIBRATION_ROWS = 32  # fewer rows leave the activation ranges to chance


def silent(message: str) -> None:
    """Say nothing."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the recipes that search may lose and spend."""

    max_drop: float = 0.01  # of the metric, estimated on the calibration rows
    metric: str | None = None  # a name of edgeml.metrics; None: agreement with fp32
    task: ModelTask = "tensor"
    threads: int = 1
    budget_s: float = 600.0  # of one search; when it is over, the best so far is the answer
    progress: Callable[[str], None] = silent
    field: ActivationRanges | None = None  # of `calibration_points`: the static recipes take them in place of rows


Made = Variant | Skipped | list[Variant | Skipped]
Maker = Callable[[OnnxModel, Rows, Options], Made]


@dataclass(frozen=True)
class Recipe:
    """One way to a smaller model; a recipe's name is its variant's name, or the start of it where it makes several.

    A maker raises UnsupportedModel where it has nothing to do: its message becomes the reason of the Skipped.
    """

    name: str
    precision: str  # asks for every recipe that has it
    make: Maker
    summary: str  # what it does, in one line for the list
    min_rows: int = 0  # calibration rows it cannot do without
    takes_ranges: bool = False  # or activation ranges in their place


class Stopped(KeyboardInterrupt):
    """Ctrl-C during a search, with what was found until then."""

    def __init__(self, kept: Sequence[Variant | Skipped] = ()) -> None:
        super().__init__("stopped by Ctrl-C")
        self.kept = list(kept)


def enough(rows: Rows, recipe: str) -> None:
    """Raise DataError, saying so, when there are fewer than `MIN_CALIBRATION_ROWS` rows."""
    if len(rows) < MIN_CALIBRATION_ROWS:
        raise DataError(
            f"{len(rows)} calibration rows, but {recipe} needs {MIN_CALIBRATION_ROWS}: "
            f"pass more rows of the training set, or ask for fp32 only"
        )
