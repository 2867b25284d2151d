"""The seeded order of rows in one epoch, the same in numpy and inside a task graph.

A random generator inside a graph is not reproducible across onnxruntime versions, so the order
comes from integer arithmetic: every row gets a key, a polynomial of its index modulo a prime whose
coefficients derive from seed and epoch, and rows are sorted by key. All products stay below 2^63.
"""

from __future__ import annotations

import numpy as np

from edgeml.tasks.emitter import Emitter

PRIME = 2**31 - 1  # also the most rows that one task can shuffle
_MULTIPLIER, _INCREMENT = 48271, 12345  # of the Lehmer generator that spreads small seeds and epochs


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which `epoch` of a task with `seed` visits `n` rows: int64 (n,).

    >>> permutation(6, 1, 0).tolist() != permutation(6, 1, 1).tolist()
    True
    >>> sorted(permutation(6, 1, 0).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    a, b, c = _coefficients(seed % PRIME, epoch)
    index = np.arange(n, dtype=np.int64)
    key = (index * a + b) % PRIME
    key = (key * key + c) % PRIME
    key = (key * key + a) % PRIME
    return np.argsort(key * n + index).astype(np.int64)  # the index makes equal keys different


def _mix(x: int) -> int:
    x = (x * _MULTIPLIER + _INCREMENT) % PRIME
    return (x * x + x + 1) % PRIME


def _coefficients(seed: int, epoch: int) -> tuple[int, int, int]:
    a = _mix(_mix(seed) + epoch)
    b = _mix(a + 2)
    c = _mix(b + 3)
    return 1 + a % (PRIME - 1), b, c


def emit_permutation(e: Emitter, *, rows: str, seed: str, epoch: str) -> str:
    """Return the tensor that holds `permutation(rows, seed, epoch)`."""
    op, number = e.op, e.number
    prime, one = number(PRIME), number(1)

    def modulo(name: str) -> str:
        return op("Mod", name, prime)

    def mix(name: str) -> str:
        x = modulo(op("Add", op("Mul", name, number(_MULTIPLIER)), number(_INCREMENT)))
        return modulo(op("Add", op("Add", op("Mul", x, x), x), one))

    raw = mix(op("Add", mix(modulo(seed)), epoch))
    b = mix(op("Add", raw, number(2)))
    c = mix(op("Add", b, number(3)))
    a = op("Add", one, op("Mod", raw, number(PRIME - 1)))
    index = op("Range", number(0), rows, one)
    key = modulo(op("Add", op("Mul", index, a), b))
    key = modulo(op("Add", op("Mul", key, key), c))
    key = modulo(op("Add", op("Mul", key, key), a))
    unique = op("Add", op("Mul", key, rows), index)
    return e.ops("TopK", unique, op("Unsqueeze", rows, e.vector(0)), outputs=2, largest=0)[1]
