"""Blobs cut into blocks: the 20-byte header, the ranges a device asks for, the digests.

    magic "EMLB" | version u8 | flags u8 | reserved u16 | digest prefix 8 bytes | index u32   then the raw block

48 KiB blocks stay under the 64 KiB payload that the strictest brokers allow (ThingsBoard, Alibaba).
The length of a block is the payload's own; all blocks but the last are full.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import NamedTuple

from edgeml_runtime.errors import MalformedMessage

BLOCK_BYTES = 48 * 1024
MAX_BLOB_BYTES = 2 << 30
WINDOW_BLOCKS = 8  # 384 KiB outstanding: line rate needs >= 256 KiB at 80 ms round trip

_HEADER = struct.Struct(">4sBBH8sI")
_MAGIC, _VERSION = b"EMLB", 1


class Block(NamedTuple):
    """One block of a blob; `prefix` is the first 8 bytes of the blob's sha256."""

    prefix: bytes
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls
    data: bytes


def digest_of(data: bytes) -> str:
    """Return the sha256 of `data` as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def count(size: int) -> int:
    """Return how many blocks a blob of `size` bytes has (an empty blob has none)."""
    return -(-size // BLOCK_BYTES)


def split(data: bytes) -> list[bytes]:
    """Return the blocks of `data`, in order."""
    return [data[i : i + BLOCK_BYTES] for i in range(0, len(data), BLOCK_BYTES)]


def encode(digest: str, index: int, data: bytes) -> bytes:
    """Return the payload that carries block `index` of the blob with this `digest`."""
    return _HEADER.pack(_MAGIC, _VERSION, 0, 0, bytes.fromhex(digest[:16]), index) + data


def decode(payload: bytes) -> Block:
    """Return the block in `payload`; raise MalformedMessage when it is none."""
    if len(payload) < _HEADER.size or len(payload) > _HEADER.size + BLOCK_BYTES:
        most = _HEADER.size + BLOCK_BYTES
        raise MalformedMessage(f"a block of {len(payload)} bytes: expected {_HEADER.size} to {most}")
    magic, version, _, _, prefix, index = _HEADER.unpack_from(payload)
    if (magic, version) != (_MAGIC, _VERSION):
        raise MalformedMessage(f"a block of magic {magic!r}, version {version}: expected {_MAGIC!r}, {_VERSION}")
    return Block(prefix, index, payload[_HEADER.size :])


def is_block(payload: bytes) -> bool:
    return payload[:4] == _MAGIC


def to_ranges(indices: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Return sorted `indices` as half-open ranges.

    >>> to_ranges([0, 1, 2, 7])
    ((0, 3), (7, 8))
    """
    ranges: list[tuple[int, int]] = []
    for index in sorted(set(indices)):
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)
