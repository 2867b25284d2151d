"""Which published fits speak for a board: its own, else those of boards with its core, else of its kind of core.

    Machine -scales_for-> Scales -ms_of-> milliseconds of convolutions, and the spread of their logarithm

A fit is a multiple of counted costs, and those scale with clock, peak and bandwidth: that is how it is carried to
another board. How far that misses was found by leaving boards out (benchmarks/predict_published.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from edgeml.bench.predict import prior
from edgeml.bench.predict.machine import Machine, known_machines
from edgeml.bench.predict.published import Fit, Row, counted, fits, read_published

Level = Literal["board", "soc", "core", "kind"]
# standard deviations of the logarithm, from benchmarks/results/predict_published.md
RUNTIMES = 0.27  # between runtimes on one board, one model
# of the way from another board: 0.33 over 16 ways, those between boards of one core no shorter; the same chip with
# another clock and memory is a judgement
LEVELS: dict[Level, float] = {"board": 0.0, "soc": 0.15, "core": 0.33, "kind": 0.33}
COUNTED = math.log(2.0) / 1.645  # of what only counting tells: 98 % of 182 timings lay within a factor of two of it
THREADS = 0.15  # where only one thread was timed, and another count is asked


@dataclass(frozen=True)
class Scales:
    """Fits at one thread and at `many`; without any the counted costs stand as they are."""

    level: Level | None
    one: tuple[Fit, ...]
    all: tuple[Fit, ...]
    many: int

    @property
    def models(self) -> int:
        return max((fit.models for fit in (*self.one, *self.all)), default=0)

    @property
    def runtimes(self) -> tuple[str, ...]:
        return tuple(sorted({fit.runtime for fit in (*self.one, *self.all)}))


@functools.cache
def scales_for(machine: Machine, precision: str) -> Scales:
    """Return the fits that speak for `machine`, from the nearest level that has any."""
    kind = prior.kind_of(machine)
    levels: tuple[tuple[Level, Callable[[Row], bool]], ...] = (
        ("board", lambda row: row.board == machine.name),
        ("soc", lambda row: machine.soc is not None and _soc(row.board) == machine.soc),
        ("core", lambda row: row.core == machine.core),
        ("kind", lambda row: _kind(row.board) == kind),
    )
    for level, speaks in levels:
        rows = [row for row in read_published() if speaks(row)]
        found = scales_of(level, rows, precision, itself=machine if level == "board" else None)
        if found.one or found.all:
            return found
    return Scales(None, (), (), 1)


def scales_of(level: Level, rows: Sequence[Row], precision: str, *, itself: Machine | None = None) -> Scales:
    """Return the fits to `rows`, timings on boards that are as near as `level` says, or on the board `itself`.

    The latter may be a guess where its profile leaves facts out: its own timings put that right.
    """
    one, all_, many = list[Fit](), list[Fit](), 1
    for name in sorted({row.board for row in rows}):
        board = itself or _known(name)
        if board is None:
            continue
        own = [row for row in rows if row.board == name]
        one += fits(board, own, precision, threads=1)
        found = fits(board, own, precision, threads=board.cores) if board.cores > 1 else ()
        if found and many in (1, board.cores):
            all_, many = [*all_, *found], board.cores
    return Scales(level, tuple(one), tuple(all_), many)


def _kind(name: str) -> str:
    board = _known(name)
    return prior.kind_of(board) if board is not None else ""


def _soc(name: str) -> str | None:
    board = _known(name)
    return board.soc if board is not None else None


def _known(name: str) -> Machine | None:
    """Return a board that rows are of, None when there is no profile of it that a fit could be relative to."""
    return known_machines().get(name)


def ms_of(work: np.ndarray, board: Machine, scales: Scales, *, precision: str, threads: int) -> tuple[float, float]:
    """Return the milliseconds of `work` (COLUMNS) on so many threads of `board`, and the spread of their logarithm."""
    costs = counted(board, precision)
    threads = min(max(threads, 1), board.cores)
    one = [math.log(work @ (costs * fit.factors)) for fit in scales.one]
    several = [math.log(work @ (costs * fit.factors)) for fit in scales.all]
    apart = [fit.spread for fit in (scales.one if threads == 1 else scales.all) or (*scales.one, *scales.all)]
    if not one and not several:
        return float(work @ costs) / threads**prior.THREAD_EXPONENT, COUNTED
    slowing = prior.THREAD_EXPONENT * math.log(scales.many)
    single = float(np.mean(one)) if one else float(np.mean(several)) + slowing
    if several and scales.many > 1:
        along = math.log(threads) / math.log(scales.many)
        middle = single + along * min(0.0, float(np.mean(several)) - single)  # of other runtimes, perhaps
        guessed = 0.0 if one or threads == scales.many else THREADS
    else:
        middle, guessed = single - prior.THREAD_EXPONENT * math.log(threads), THREADS if threads > 1 else 0.0
    runtimes = len(scales.runtimes)
    between = RUNTIMES * math.sqrt(1 + 1 / runtimes)
    level = LEVELS[scales.level] if scales.level else 0.0
    return math.exp(middle), math.hypot(float(np.mean(apart)), between, level, guessed)
