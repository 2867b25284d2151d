"""What measuring and calling cost by themselves, so that a model of some microseconds is not misread.

The call is timed on a graph that does nothing, through the same session and loop: what is left of a model's time
after it is the model's own.
"""

from __future__ import annotations

import functools
import math
from array import array
from dataclasses import dataclass

import numpy as np

from edgeml_runtime.measure.timing import Query, repeat
from edgeml_runtime.session import Session

# one Identity of a (1, 1) float32, opset 13: the device has no library that writes models
NOTHING = bytes.fromhex(
    "080712003a3f0a100a017812017922084964656e746974791201675a130a0178120e0a0c080112080a0208010a020801"
    "62130a0179120e0a0c080112080a0208010a02080142040a00100d"
)
TURNS, TURN_S = 5, 0.01


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """Milliseconds a query, the least of several medians, which a busy machine disturbs least."""

    loop_ms: float  # of the timing loop and its clock
    predict_ms: float  # of `Session.predict` over a graph that does nothing, the loop included
    run_ms: float  # of `Session.run`


@functools.cache
def overhead() -> Overhead:
    """Return what calls cost on this machine; measured once in a process."""
    session, row = Session(NOTHING), np.zeros((1, 1), np.float32)
    return Overhead(
        loop_ms=_least(lambda: None),
        predict_ms=_least(functools.partial(session.predict, row)),
        run_ms=_least(functools.partial(session.run, {"x": row})),
    )


def _least(one: Query) -> float:
    least = math.inf
    for _ in range(TURNS):
        ends: array[int] = array("q")
        repeat(one, seconds=TURN_S, ends=ends)
        least = min(least, float(np.median(np.asarray(ends))) / 1e6)
    return least
