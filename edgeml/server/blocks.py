"""Answers to block requests, straight from the registry's files: mapped, never read into memory."""

from __future__ import annotations

import mmap
import re
from collections import OrderedDict
from collections.abc import Iterator

from edgeml.registry import Registry
from edgeml_runtime.wire import MalformedMessage, blocks
from edgeml_runtime.wire.messages import BlockRequest

OPEN_BLOBS = 16
MAX_BLOCKS = 4 * blocks.WINDOW_BLOCKS  # of one request; a device asks again for more
_DIGEST = re.compile(r"[0-9a-f]{64}")


class BlockServer:
    """Blocks by digest and range, with the last few blobs kept open."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._open: OrderedDict[str, mmap.mmap] = OrderedDict()

    def answer(self, request: BlockRequest) -> Iterator[bytes]:
        """Return the payloads that answer `request`, at most MAX_BLOCKS.

        Raises MalformedMessage for a digest that is none or unknown, and for a range outside the blob.
        """
        blob = self._blob(request.digest)
        wanted: list[int] = []
        for pair in request.ranges:
            if len(pair) != 2 or not 0 <= pair[0] < pair[1] <= blocks.count(len(blob)):
                raise MalformedMessage(f"blocks {pair} of blob {request.digest[:12]}: it has {blocks.count(len(blob))}")
            wanted += range(pair[0], min(pair[1], pair[0] + MAX_BLOCKS - len(wanted)))
        return (blocks.encode(request.digest, index, _block(blob, index)) for index in wanted)

    def close(self) -> None:
        for blob in self._open.values():
            blob.close()
        self._open.clear()

    def _blob(self, digest: str) -> mmap.mmap:
        if digest in self._open:
            self._open.move_to_end(digest)
            return self._open[digest]
        if not _DIGEST.fullmatch(digest):
            raise MalformedMessage(f"{digest[:20]!r} is no sha256 digest")
        try:
            with self._registry.blob_path(digest).open("rb") as file:
                blob = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (FileNotFoundError, ValueError) as error:  # mmap refuses an empty file with a ValueError
            raise MalformedMessage(f"no blob {digest[:12]} in the registry") from error
        self._open[digest] = blob
        if len(self._open) > OPEN_BLOBS:
            self._open.popitem(last=False)[1].close()
        return blob


def _block(blob: mmap.mmap, index: int) -> bytes:
    return blob[index * blocks.BLOCK_BYTES : (index + 1) * blocks.BLOCK_BYTES]
