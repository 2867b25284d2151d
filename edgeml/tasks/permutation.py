"""The seeded order of rows in one epoch, the same in numpy and inside a task graph: rows are sorted by their keys."""

from __future__ import annotations

import numpy as np

from edgeml.autodiff.counter import emit_keys, keys
from edgeml.tasks.emitter import Emitter


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """Return the order in which `epoch` of a task with `seed` visits `n` rows: int64 (n,).

    >>> permutation(6, 1, 0).tolist() != permutation(6, 1, 1).tolist()
    True
    >>> sorted(permutation(6, 1, 0).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    return np.argsort(keys(n, seed, epoch) * n + np.arange(n)).astype(np.int64)  # the index makes equal keys different


def emit_permutation(e: Emitter, *, rows: str, seed: str, epoch: str) -> str:
    """Return the tensor that holds `permutation(rows, seed, epoch)`."""
    key, index = emit_keys(e, count=rows, seed=seed, turn=epoch)
    unique = e.op("Add", e.op("Mul", key, rows), index)
    return e.ops("TopK", unique, e.op("Unsqueeze", rows, e.vector(0)), outputs=2, largest=0)[1]
