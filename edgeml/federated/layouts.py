"""What the words of a masked vector stand for: a weighted mean of updates, or the sums of a study's outputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgeml_runtime.wire import masked_sums, masking
from edgeml_runtime.wire.masked_sums import Outputs
from edgeml_runtime.wire.messages import Secure


class Layout(Protocol):
    """How a round reads the sum of the masked vectors."""

    @property
    def length(self) -> int:
        """How many words a vector has."""

    def last(self, asked: Secure, rows: int) -> int:
        """Return the last word of a device with so many `rows`: theirs must add up, or the masks do not cancel."""

    def read(self, total: np.ndarray, asked: Secure, *, devices: int) -> dict[str, np.ndarray]:
        """Return what the unmasked `total` stands for; raise MalformedMessage when no such devices can have it."""


@dataclass(frozen=True)
class Mean:
    """The mean of updates of parameters of these `shapes`, weighted by rows."""

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def length(self) -> int:
        return masking.length(self.shapes)

    def last(self, asked: Secure, rows: int) -> int:
        return int(masking.fixed({}, asked, rows=rows)[0])

    def read(self, total: np.ndarray, asked: Secure, *, devices: int) -> dict[str, np.ndarray]:
        return masking.mean_of(total, asked, self.shapes)


@dataclass(frozen=True)
class Sum:
    """The sums of a task's `outputs`."""

    outputs: Outputs

    @property
    def length(self) -> int:
        return masked_sums.length(self.outputs)

    def last(self, asked: Secure, rows: int) -> int:
        return 1

    def read(self, total: np.ndarray, asked: Secure, *, devices: int) -> dict[str, np.ndarray]:
        return masked_sums.sums_of(total, self.outputs, asked.ranges, devices=devices)
