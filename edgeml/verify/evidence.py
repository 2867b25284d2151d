"""Rows beyond the held-out ones: the rows that were learned from, and edge cases made from the columns.

    Rows -edge_cases-> Rows; every row is the median one with a single column changed

Edge cases are the ends of each column's range and a tenth beyond, zero, tiny, huge and missing numbers, unseen
categories, empty and non-ASCII text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from edgeml.artifacts import Answers, Rows

MAX_COLUMNS = 64  # spread over the columns of a wider input
TINY, HUGE = 1e-30, 1e6  # HUGE is in multiples of the column's largest value
TEXTS = ("", "never seen before", "Zürich Ωμέγα 東京", "É", " ", "x" * 300)

NUMBERS: dict[str, Callable[[np.ndarray], float]] = {
    "low end": lambda column: float(column.min()),
    "high end": lambda column: float(column.max()),
    "below": lambda column: float(column.min() - 0.1 * np.ptp(column)),
    "above": lambda column: float(column.max() + 0.1 * np.ptp(column)),
    "zero": lambda column: 0.0,
    "tiny": lambda column: TINY,
    "missing": lambda column: float("nan"),
    "huge": lambda column: HUGE * max(1.0, float(np.abs(column).max())),
    "huge negative": lambda column: -HUGE * max(1.0, float(np.abs(column).max())),
}
UNJUDGED = frozenset({"huge", "huge negative"})  # float32 rounds sums of such numbers: finite is all that is asked


@dataclass(frozen=True)
class Evidence:
    """Rows and what the source answers on them; `kinds` says of each row why it is there."""

    origin: str  # calibration, edge cases
    rows: Rows
    reference: Answers
    kinds: tuple[str, ...] = ()

    def judged(self) -> np.ndarray:
        """Return which rows must agree: bool (n,)."""
        if not self.kinds:
            return np.ones(len(self.rows), dtype=bool)
        return np.array([kind.partition(": ")[2] not in UNJUDGED for kind in self.kinds])


@dataclass(frozen=True)
class EdgeCases:
    rows: Rows
    kinds: tuple[str, ...]  # "column: what"


def edge_cases(rows: Rows, *, missing: bool = True) -> EdgeCases:
    """Return edge cases around `rows`; without NaN where the source takes none (`missing` False).

    Only matrices are varied: floats (n, f) and strings (n, c). An image or a window stays as it is.
    """
    base = {name: _typical(array) for name, array in rows.inputs.items()}
    made: list[Mapping[str, np.ndarray]] = []
    kinds: list[str] = []
    for name, array in rows.inputs.items():
        if array.ndim != 2:
            continue
        for column in np.unique(np.linspace(0, array.shape[1] - 1, min(array.shape[1], MAX_COLUMNS)).astype(int)):
            for kind, value in _values(array[:, column], missing=missing).items():
                changed = base[name].copy()
                changed[column] = value
                made.append({**base, name: changed})
                kinds.append(f"{name}[{column}]: {kind}")
    stacked = {
        name: np.stack([row[name] for row in made]).astype(array.dtype) if made else array[:0]
        for name, array in rows.inputs.items()
    }
    return EdgeCases(Rows(stacked), tuple(kinds))


def _values(column: np.ndarray, *, missing: bool) -> dict[str, object]:
    if column.dtype.kind in "OUS":
        return {f"text {text[:20]!r}": text for text in TEXTS}
    if column.dtype.kind != "f":
        return {"low end": column.min(), "high end": column.max()}
    finite = column[np.isfinite(column)]
    known = finite if len(finite) else np.zeros(1, column.dtype)
    return {kind: of(known) for kind, of in NUMBERS.items() if missing or kind != "missing"}


def _typical(array: np.ndarray) -> np.ndarray:
    """Return the median row of numbers, the most frequent cell of each column of texts."""
    if array.dtype.kind == "f" and array.ndim == 2:
        finite = np.where(np.isfinite(array), array, np.nan)
        some = np.isfinite(finite).any(axis=0)
        filled = np.where(some, finite, 0.0)
        return np.asarray(np.nanmedian(filled, axis=0), dtype=array.dtype)
    if array.dtype.kind in "OUS" and array.ndim == 2:
        return np.array([_most_frequent(column) for column in array.T], dtype=object)
    return np.asarray(array[0])


def _most_frequent(column: np.ndarray) -> str:
    values, counts = np.unique(column.astype(str), return_counts=True)
    return str(values[counts.argmax()])
