"""Fixed-point updates under masks that cancel in their sum (Bonawitz and others, CCS 2017).

A value v of at most `bound` becomes trunc(v / bound * S) modulo 2^bits, where S is such that the sum over all devices
of the cohort cannot wrap around. The last value of a masked vector is the device's weight, so that the server learns
the weighted mean and nothing else.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from edgeml_runtime.errors import MalformedMessage, TaskRefused
from edgeml_runtime.wire.messages import Secure
from edgeml_runtime.wire.signed import canonical

Arrays = dict[str, np.ndarray]
KEY_BYTES = 32
MASKED = "y"  # the one array of a masked upload


def ring(bits: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype(f"uint{bits}")


def whole(asked: Secure) -> int:
    """Return S, the whole number that stands for `bound`: the largest with which the sum cannot wrap around."""
    return min(int((2 ** (asked.bits - 1) - 1) // max(1, len(asked.keys))), 2**52)  # float64 has no finer steps


def weight(rows: int, asked: Secure) -> float:
    """Return what a device with so many rows counts: at most 1."""
    return min(rows, asked.rows) / asked.rows if asked.rows else 1.0


def fixed(update: Mapping[str, np.ndarray], asked: Secure, *, rows: int) -> np.ndarray:
    """Return weight x `update` by sorted names and the weight, in the ring; values beyond the bound are cut to it."""
    share, most = weight(rows, asked), whole(asked)
    flat = [np.asarray(update[name], np.float64).ravel() / asked.bound for name in sorted(update)]
    joined = np.concatenate(flat) if flat else np.zeros(0)
    if broken := int(np.count_nonzero(np.isnan(joined))):
        raise TaskRefused(f"{broken} of {joined.size} values of the update are no numbers: they have no sum")
    values = np.concatenate([np.clip(joined, -1, 1) * share, [share]])
    return np.asarray(np.trunc(values * most).astype(np.int64).astype(ring(asked.bits)))


def length(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how many values the masked vector of parameters of these `shapes` has."""
    return sum(math.prod(shape) for shape in shapes.values()) + 1


def mean_of(total: np.ndarray, asked: Secure, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Return the weighted mean that the unmasked sum `total` stands for, float64 by parameter.

    Raises MalformedMessage when no devices within the bound can have this sum: someone sent something else.
    """
    most = whole(asked)
    numbers = total.astype(ring(asked.bits)).view(f"int{asked.bits}").astype(np.int64)
    values, weights = numbers[:-1], int(numbers[-1])
    largest = int(np.abs(values).max(initial=0))
    if not 0 < weights <= most * len(asked.keys) or largest > weights + len(asked.keys):
        raise MalformedMessage(
            f"the sum of the masked updates has a value of {largest} for weights of {weights}, of at most "
            f"{most * len(asked.keys)}: a device sent something that is no masked update"
        )
    flat, found, at = values / weights * asked.bound, {}, 0
    for name in sorted(shapes):
        size = math.prod(shapes[name])
        found[name] = flat[at : at + size].reshape(shapes[name])
        at += size
    return found


def exchange(private: X25519PrivateKey, public: bytes) -> bytes:
    """Return what both sides of an X25519 key agreement have, to be given to `derive`.

    Raises MalformedMessage for a public key that is none, or of small order.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as error:
        raise MalformedMessage(f"a public key of {len(public)} bytes with which nothing can be agreed") from error


def halves(keys: bytes) -> tuple[bytes, bytes]:
    """Return a device's key for shares and its key for masks."""
    return keys[:KEY_BYTES], keys[KEY_BYTES:]


def usable(public: bytes) -> bool:
    """Return whether anything can be agreed with this X25519 key: it is none of small order."""
    try:
        exchange(X25519PrivateKey.generate(), public)
    except MalformedMessage:
        return False
    return True


def derive(shared: bytes, *, purpose: str) -> bytes:
    """Return the 32 bytes for `purpose` of a key agreement (HKDF-SHA256)."""
    return HKDF(hashes.SHA256(), KEY_BYTES, None, f"edgeml secure aggregation v1 {purpose}".encode()).derive(shared)


def stream(seed: bytes, size: int, dtype: np.dtype[np.unsignedinteger]) -> np.ndarray:
    """Return `size` numbers of `dtype` that only who has the 32 bytes `seed` can tell from random (ChaCha20)."""
    cipher = Cipher(algorithms.ChaCha20(seed, bytes(16)), None).encryptor()
    return np.frombuffer(cipher.update(bytes(size * dtype.itemsize)), dtype.newbyteorder("<")).astype(dtype)


def pair_mask(
    private: X25519PrivateKey, public: bytes, size: int, *, dtype: np.dtype[np.unsignedinteger]
) -> np.ndarray:
    """Return the mask of a pair of devices, which the one adds and the other subtracts."""
    return stream(derive(exchange(private, public), purpose="mask"), size, dtype)


def commitment(seed: bytes) -> bytes:
    """Return what binds a device to its own mask's seed, so that false shares of it are noticed."""
    return hashlib.sha256(b"edgeml secure aggregation v1 seed\0" + seed).digest()


def keys_document(round_id: str, device: str, keys: bytes) -> bytes:
    """Return what a device signs of its two public keys."""
    return canonical(["edgeml secure aggregation v1 keys", round_id, device, keys.hex()])


def survivors_document(round_id: str, devices: tuple[str, ...], keys: Mapping[str, bytes]) -> bytes:
    """Return what a device signs of whose updates are in the sum, under the `keys` of all members.

    These are new whenever a device takes part: a round that is offered once more cannot use its old signatures.
    """
    members = [[name, keys[name].hex()] for name in sorted(keys)]
    return canonical(["edgeml secure aggregation v1 survivors", round_id, sorted(devices), members])
