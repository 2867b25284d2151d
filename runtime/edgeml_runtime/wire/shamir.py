"""A secret of 32 bytes in shares, any `threshold` of which give it back and fewer say nothing (Shamir, CACM 1979).

Share number k is the value of a random polynomial at k + 1, modulo the first prime above 2^256.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

from edgeml_runtime.errors import MalformedMessage

PRIME = 2**256 + 297
SECRET_BYTES, SHARE_BYTES = 32, 33


def split(secret: bytes, *, count: int, threshold: int) -> list[bytes]:
    """Return `count` shares of `secret`, any `threshold` of which give it back."""
    assert len(secret) == SECRET_BYTES and 1 <= threshold <= count
    coefficients = [secrets.randbelow(PRIME) for _ in range(threshold - 1)]
    return [_value(coefficients, secret, point).to_bytes(SHARE_BYTES, "big") for point in range(1, count + 1)]


def weights(numbers: tuple[int, ...]) -> dict[int, int]:
    """Return what each of the shares with these numbers counts in `combine`: the same for every secret."""
    points = [number + 1 for number in numbers]
    found = {}
    for number, point in zip(numbers, points, strict=True):
        above = below = 1
        for other in points:
            if other != point:
                above = above * other % PRIME
                below = below * (other - point) % PRIME
        found[number] = above * pow(below, -1, PRIME) % PRIME
    return found


def combine(shares: Mapping[int, bytes], counted: Mapping[int, int]) -> bytes:
    """Return the secret behind `shares`, by number; `counted` is `weights` of those to use.

    Raises MalformedMessage when they are no shares of 32 bytes; of one secret they may still not be.
    """
    total = 0
    for number, weight in counted.items():
        share = shares[number]
        if len(share) != SHARE_BYTES or (value := int.from_bytes(share, "big")) >= PRIME:
            raise MalformedMessage(f"share {number} has {len(share)} bytes or is too large: it is none")
        total = (total + value * weight) % PRIME
    if total >> (8 * SECRET_BYTES):
        raise MalformedMessage(f"{len(counted)} shares that are not of one secret")
    return total.to_bytes(SECRET_BYTES, "big")


def _value(coefficients: list[int], secret: bytes, point: int) -> int:
    total = 0
    for coefficient in coefficients:
        total = (total + coefficient) * point % PRIME
    return (total + int.from_bytes(secret, "big")) % PRIME
