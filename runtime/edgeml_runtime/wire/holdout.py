"""Which rows a device learns from, and which it holds out to judge models on: the inputs of a row decide, nothing else.

    place of a row: a hash of its inputs, in [0, 1)        held out: place < share

So a row stays on its side whatever comes or is dropped, before and after it has a label; a duplicate is on the side of
its twin, on every device; and what no training saw in one federation, none saw in an earlier one, unless that held out
a smaller share, or none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeml_runtime.wire.tasks import TaskKind

# No share between: by two shares that differ by one row a server would learn that row.
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
_SEED = b"edgeml hold-out 1"
_BITS = 53  # that a float64 between 0 and 1 tells apart


@dataclass(frozen=True)
class Part:
    """The rows whose place is at least `low` and below `high`."""

    low: float = 0.0
    high: float = 1.0


EVERY = Part()


def part_of(kind: TaskKind, share: float) -> Part:
    """Return the rows that a task of `kind` may see where `share` of them is held out.

    >>> part_of("training", 0.2), part_of("evaluation", 0.2), part_of("drift", 0.2) == EVERY
    (Part(low=0.2, high=1.0), Part(low=0.0, high=0.2), True)
    """
    if not share:
        return EVERY
    return {"training": Part(share, 1.0), "evaluation": Part(0.0, share)}.get(kind, EVERY)


def objection(share: float) -> str:
    """Return why no device holds out this `share`, or ""."""
    if share in SHARES:
        return ""
    return f"held_out {share:g}: a device holds out {', '.join(f'{one:g}' for one in SHARES[:-1])} or {SHARES[-1]:g}"


def too_few(rows: int, needed: int, kind: TaskKind, *, aside: int) -> str:
    """Return why labelled rows do not suffice for a task of `kind`, which may not see those `aside`.

    >>> too_few(4, 10, "evaluation", aside=16)
    '4 labelled rows held out (16 to learn from), and 10 are needed: label more'
    """
    sides = ("held out", "to learn from") if kind == "evaluation" else ("to learn from", "held out")
    told = f" {sides[0]} ({aside} {sides[1]})" if aside else ""
    return f"{rows} labelled rows{told}, and {needed} are needed: label more"


def places(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the place of every row of `inputs`, each (n, ...): float64 (n,) in [0, 1).

    Numbers count as float32, with one zero and one NaN; inputs in the order of their names.
    """
    named = [array.reshape(len(array), -1) for _, array in sorted(inputs.items())]
    numbers = [_canonical(array) for array in named if array.dtype.kind not in "OU"]
    words = [array for array in named if array.dtype.kind in "OU"]
    count = len(named[0]) if named else 0
    table = np.concatenate(numbers, axis=1) if numbers else np.zeros((count, 0), "<f4")
    return np.array([_place(table[i].tobytes(), [word for block in words for word in block[i]]) for i in range(count)])


def _canonical(array: np.ndarray) -> np.ndarray:
    block = array.astype("<f4") + np.float32(0)  # -0 becomes 0
    return np.where(np.isnan(block), np.float32("nan"), block).astype("<f4", copy=False)


def _place(numbers: bytes, words: list[str]) -> float:
    digest = hashlib.blake2b(numbers + json.dumps(words).encode(), digest_size=8, key=_SEED).digest()
    return (int.from_bytes(digest, "big") >> (64 - _BITS)) / (1 << _BITS)
