"""Which rows a variant answers worst: what a person looks at first when it fails."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeml.artifacts import Answers, WorstRow
from edgeml.verify.parity import differences

SHOWN = 5
SCORES = 10  # of a row, at most


@dataclass(frozen=True)
class Compared:
    """A variant's answers beside its source's, on rows of one origin; `kinds` names each row or is empty."""

    origin: str
    answers: Answers
    reference: Answers
    kinds: tuple[str, ...]


def worst_rows(compared: Sequence[Compared], shown: int = SHOWN) -> tuple[WorstRow, ...]:
    """Return the rows that differ most, the farthest first; rows that agree exactly are left out."""
    found: list[WorstRow] = []
    for each in compared:
        far = differences(each.answers.scores, each.reference.scores).max(axis=1, initial=0.0)
        for row in np.argsort(-far, kind="stable")[:shown]:
            if far[row] > 0:
                found.append(_row(each, int(row), float(far[row])))
    return tuple(sorted(found, key=lambda one: -one.difference)[:shown])


def _row(compared: Compared, row: int, difference: float) -> WorstRow:
    where = f"edge case {compared.kinds[row]}" if compared.kinds else f"{compared.origin} row {row}"
    source, variant = (
        tuple(float(value) for value in answers.scores[row, :SCORES])
        for answers in (compared.reference, compared.answers)
    )
    return WorstRow(where, source, variant, difference)
