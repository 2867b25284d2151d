"""A question of calibration: what the nodes of a model take, or a call of it. A far device gets many at once."""

from __future__ import annotations

import functools
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from edgeml_runtime.measure import Plan


@dataclass(frozen=True)
class Ask:
    """The nodes of `model` over `runs` runs; with a plan, the time of a call instead."""

    model: bytes
    inputs: Mapping[str, np.ndarray]
    runs: int = 1
    plan: Plan | None = None

    @functools.cached_property
    def packed(self) -> bytes:
        """The model as it travels; most weights of micro-models repeat."""
        return zlib.compress(self.model, 1)

    @functools.cached_property
    def key(self) -> tuple[str, str]:
        """What tells it from other questions of one calibration."""
        return hashlib.sha256(self.model).hexdigest(), str(self.plan or self.runs)
