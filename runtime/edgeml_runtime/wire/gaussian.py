"""Clipping and noise of differential privacy, on the device or on the server (arXiv 1710.06963).

Noise comes from a stream cipher under a key of the operating system, never from a seed that a task names. Clipped
values and noise are whole multiples of one grid, so that the low bits of a float say nothing of what was added to what
(the hole of Mironov, CCS 2012).
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

GRID_BITS = 16  # a clip norm is at least so many halvings of the grid
_UNIT = 2.0**-53

Arrays = dict[str, np.ndarray]


def norm(update: Mapping[str, np.ndarray]) -> float:
    """Return the 2-norm of `update`, all its parameters taken together."""
    return math.sqrt(sum(float(np.sum(np.square(value, dtype=np.float64))) for value in update.values()))


def clip(update: Mapping[str, np.ndarray], most: float) -> Arrays:
    """Return `update` shortened to a 2-norm of at most `most`, float64 on the grid of `most`, rounded towards 0."""
    share, step = min(1.0, most / max(norm(update), 1e-300)), grid(most)
    return {name: np.trunc(value.astype(np.float64) * share / step) * step for name, value in update.items()}


def blur(update: Mapping[str, np.ndarray], *, std: float, step: float) -> Arrays:
    """Return `update`, of multiples of `step`, plus Gaussian noise of standard deviation `std` in such multiples."""
    return {
        name: (np.rint(value / step) + np.rint(noise(np.shape(value), std) / step)) * step
        for name, value in update.items()
    }


def grid(most: float) -> float:
    """Return the power of two that values clipped to `most` are multiples of."""
    return math.ldexp(1.0, math.frexp(most)[1] - 1 - GRID_BITS)


def noise(shape: tuple[int, ...], std: float) -> np.ndarray:
    """Return normal noise of `shape`, float64 (Box and Muller 1958), from ChaCha20 under a fresh key of the system."""
    count = math.prod(shape)
    half = (count + 1) // 2
    stream = Cipher(algorithms.ChaCha20(os.urandom(32), bytes(16)), None).encryptor().update(bytes(16 * half))
    uniform = ((np.frombuffer(stream, "<u8") >> np.uint64(11)).astype(np.float64) + 0.5) * _UNIT  # inside (0, 1)
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * math.pi * uniform[half:]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
    return np.asarray(std * both).reshape(shape)
