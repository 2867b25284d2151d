"""Sums of a task's outputs under masks: whole numbers exactly, others to a step that is agreed beforehand.

A whole number is one word of 64 bits. Any other number v is trunc(v x 2^k) = high x 2^54 + low, both of the sign of v,
in two words, where 2^(108 - k) is the least power of two above the output's range. Words are added one by one modulo
2^64: with 10 bits to spare in each, no sum over MAX_DEVICES devices wraps around. The last word counts devices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from edgeml_runtime.errors import MalformedMessage, TaskRefused
from edgeml_runtime.wire.tasks import KEEP

WORD = np.dtype(np.uint64)
HALF_BITS = 54  # of high, of low and of a whole number
MOST = 2.0**HALF_BITS
LARGEST_RANGE = 2.0**100  # leaves a step of 2^-8
Outputs = Mapping[str, tuple[str, tuple[int, ...]]]  # name -> dtype and shape, as tasks declare them


def sent(outputs: Outputs) -> dict[str, tuple[np.dtype[np.generic], tuple[int, ...]]]:
    """Return what leaves a device of `outputs`, by sorted names; raise TaskRefused for what cannot be added up."""
    found = {name: (np.dtype(outputs[name][0]), tuple(outputs[name][1])) for name in sorted(outputs)}
    found = {name: told for name, told in found.items() if not name.startswith(KEEP)}
    for name, (dtype, _) in found.items():
        if dtype.kind not in "iuf":
            raise TaskRefused(f"output {name!r} has numbers of type {dtype}, which have no sum under masks")
    return found


def length(outputs: Outputs) -> int:
    """Return how many words the masked vector of `outputs` has."""
    return sum(math.prod(shape) * _words(dtype) for dtype, shape in sent(outputs).values()) + 1


def step(most: float) -> float:
    """Return to what the sum of each device's numbers is exact, where they are at most `most`."""
    return 2.0 ** -_shift(most)


def fixed(answer: Mapping[str, np.ndarray], ranges: Mapping[str, float]) -> np.ndarray:
    """Return a device's `answer` as words; raise TaskRefused for a number that is none, or beyond its range."""
    words: list[np.ndarray] = []
    for name, (dtype, _) in sent({name: (str(value.dtype), value.shape) for name, value in answer.items()}).items():
        if name not in ranges:
            raise TaskRefused(f"no range is agreed for the output {name!r}: without one it has no sum under masks")
        values = answer[name].ravel()
        limit = ranges[name] if dtype.kind == "f" else MOST
        largest = float(np.abs(values.astype(np.float64)).max(initial=0.0))
        if not largest < limit:  # NaN too
            raise TaskRefused(
                f"the output {name!r} has a value of {largest:.3g} here, and masks are agreed for less than "
                f"{limit:.3g}: raise secure.largest, or scale the columns"
            )
        words += _halves(values.astype(np.float64), _shift(limit)) if dtype.kind == "f" else [values.astype(np.int64)]
    return np.concatenate([*words, np.ones(1, np.int64)]).astype(WORD)


def sums_of(total: np.ndarray, outputs: Outputs, ranges: Mapping[str, float], *, devices: int) -> dict[str, np.ndarray]:
    """Return the sums that the unmasked words of so many `devices` stand for, float64 by output.

    Raises MalformedMessage when no devices within the ranges can have them: someone sent something else.
    """
    words, found, at = total.astype(WORD).view(np.int64), {}, 0
    for name, (dtype, shape) in sent(outputs).items():
        size, parts = math.prod(shape), _words(dtype)
        high, low = words[at : at + size], words[at + size : at + size * parts]
        at += size * parts
        if (largest := float(np.abs(words[at - size * parts : at].astype(np.float64)).max(initial=0))) > MOST * devices:
            raise MalformedMessage(
                f"the sum of {name!r} has a part of {largest:.3g}, and {devices} devices have at most "
                f"{MOST * devices:.3g}: a device sent something that is no masked answer"
            )
        values = _joined(high, low, _shift(ranges[name])) if parts == 2 else high.astype(np.float64)
        found[name] = values.reshape(shape)
    return found


def _words(dtype: np.dtype[np.generic]) -> int:
    return 2 if dtype.kind == "f" else 1


def _shift(most: float) -> int:
    """Return k of the module's docstring for a range of `most`."""
    return 2 * HALF_BITS - math.ceil(math.log2(most))


def _halves(values: np.ndarray, shift: int) -> list[np.ndarray]:
    scaled = np.ldexp(values, shift - HALF_BITS)  # a power of two: exact
    high = np.trunc(scaled)
    return [high.astype(np.int64), np.trunc(np.ldexp(scaled - high, HALF_BITS)).astype(np.int64)]


def _joined(high: np.ndarray, low: np.ndarray, shift: int) -> np.ndarray:
    carry = low >> HALF_BITS
    rest = low - (carry << HALF_BITS)
    upper = np.ldexp((high + carry).astype(np.float64), HALF_BITS - shift)
    return np.asarray(upper + np.ldexp(rest.astype(np.float64), -shift))
