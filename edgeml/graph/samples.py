"""Rows made up for a graph that came without any: seeded, so that two runs see the same."""

from __future__ import annotations

import numpy as np

from edgeml.artifacts import OnnxModel
from edgeml.graph.tensors import inputs
from edgeml_runtime.wire.manifest import TensorSpec


def random_rows(model: OnnxModel, rows: int, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Return `rows` rows for every input of `model`: standard normal floats, small integers, words.

    A fixed first axis wins over `rows`; another unknown axis has length 1.
    """
    rng = np.random.default_rng(seed)
    return {spec.name: _array(spec, rows, rng) for spec in inputs(model)}


def _array(spec: TensorSpec, rows: int, rng: np.random.Generator) -> np.ndarray:
    tail = [max(1, size) for size in spec.shape[1:]]
    shape = (spec.shape[0] if spec.shape and spec.shape[0] > 0 else rows, *tail) if spec.shape else ()
    if spec.dtype.startswith("float"):
        return rng.standard_normal(shape).astype(spec.dtype)
    if spec.dtype == "string":
        return rng.choice(np.array(["a", "b", "c"], dtype=object), shape)
    return rng.integers(0, 2 if spec.dtype == "bool" else 10, shape).astype(spec.dtype)
