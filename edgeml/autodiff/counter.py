"""Random numbers that are a function of a counter, the same in numpy and inside any graph.

A random generator inside a graph is not reproducible across onnxruntime versions, so every place gets a key: a
polynomial of its index modulo a prime, whose coefficients derive from a seed and a turn. All products stay below 2^63.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

PRIME = 2**31 - 1
_MULTIPLIER, _INCREMENT = 48271, 12345  # of the Lehmer generator that spreads small numbers


class Writer(Protocol):
    """What can add integer nodes to a graph."""

    def op(self, op_type: str, *inputs: str) -> str:
        """Return the one output of a new node."""

    def number(self, value: int) -> str:
        """Return a 0-d int64 constant."""


def keys(count: int, seed: int, turn: int) -> np.ndarray:
    """Return a key from 0 to PRIME - 1 for each of `count` places: int64 (count,)."""
    raw = _mix(_mix(seed % PRIME) + turn)
    b = _mix(raw + 2)
    c = _mix(b + 3)
    a = 1 + raw % (PRIME - 1)
    key = (np.arange(count, dtype=np.int64) * a + b) % PRIME
    key = (key * key + c) % PRIME
    return np.asarray((key * key + a) % PRIME)


def emit_keys(w: Writer, *, count: str, seed: str, turn: str) -> tuple[str, str]:
    """Return the tensors of `keys` and of the places, for int64 tensors `count`, `seed` and `turn`, all 0-d."""
    op, number = w.op, w.number
    prime, one = number(PRIME), number(1)

    def modulo(name: str) -> str:
        return op("Mod", name, prime)

    def mix(name: str) -> str:
        x = modulo(op("Add", op("Mul", name, number(_MULTIPLIER)), number(_INCREMENT)))
        return modulo(op("Add", op("Add", op("Mul", x, x), x), one))

    raw = mix(op("Add", mix(modulo(seed)), turn))
    b = mix(op("Add", raw, number(2)))
    c = mix(op("Add", b, number(3)))
    a = op("Add", one, op("Mod", raw, number(PRIME - 1)))
    index = op("Range", number(0), count, one)
    key = modulo(op("Add", op("Mul", index, a), b))
    key = modulo(op("Add", op("Mul", key, key), c))
    return modulo(op("Add", op("Mul", key, key), a)), index


def _mix(x: int) -> int:
    x = (x * _MULTIPLIER + _INCREMENT) % PRIME
    return (x * x + x + 1) % PRIME
