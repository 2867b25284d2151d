"""One upload put together: a header and blocks, in any order, bounded before anything is believed."""

from __future__ import annotations

import re

import numpy as np

from edgeml.federated.updates import BadUpdate
from edgeml_runtime.wire import BadDigest, MalformedMessage, tensors
from edgeml_runtime.wire.blocks import BLOCK_BYTES, Block, count, digest_of
from edgeml_runtime.wire.messages import UpdateHeader

_DIGEST = re.compile(r"[0-9a-f]{64}")


class Assembly:
    """What one device has sent so far for one round: never more than `max_update_bytes` in memory."""

    def __init__(self, *, round: str, device: str, max_update_bytes: int) -> None:
        self.round, self.device, self.max_update_bytes = round, device, max_update_bytes
        self.header: UpdateHeader | None = None
        self._blocks: dict[tuple[bytes, int], bytes] = {}

    def open(self, header: UpdateHeader) -> None:
        """Take the header; blocks of anything else are dropped.

        Raises BadUpdate when it is of another round or device, promises nothing or too much.
        """
        if (header.round, header.device) != (self.round, self.device):
            raise BadUpdate(
                "replayed" if header.device == self.device else "stranger",
                f"an update of round {header.round} by {header.device}; expected {self.round} by {self.device}",
            )
        if header.refused or not 0 < header.size <= self.max_update_bytes:
            raise BadUpdate(
                "oversized",
                f"{self.device} announces {header.size:,} bytes {header.refused!r}; "
                f"round {self.round} takes 1 to {self.max_update_bytes:,}",
            )
        if not _DIGEST.fullmatch(header.digest):
            raise BadUpdate(
                "digest", f"{self.device} announces the digest {header.digest[:80]!r}; expected 64 hex digits"
            )
        self.header = header
        prefix = _prefix(header)
        kept = {key: data for key, data in self._blocks.items() if key[0] == prefix}
        self._blocks = {key: data for key, data in kept.items() if len(data) == self._expected(key[1])}

    def add(self, block: Block) -> bool:
        """Keep `block`; return False when it is a duplicate or of another upload.

        Raises MalformedMessage when it cannot be part of the upload or would go beyond the bound.
        """
        key = (block.prefix, block.index)
        if key in self._blocks or (self.header is not None and block.prefix != _prefix(self.header)):
            return False
        if self.header is not None and len(block.data) != self._expected(block.index):
            raise BadUpdate(
                "oversized",
                f"block {block.index} of {self.device} has {len(block.data):,} bytes; "
                f"expected {self._expected(block.index):,} of an upload of {self.header.size:,}",
            )
        held = sum(map(len, self._blocks.values())) + len(block.data)
        if held > self.max_update_bytes or len(self._blocks) > count(self.max_update_bytes):
            raise BadUpdate(
                "oversized", f"{self.device} sent {held:,} bytes; round {self.round} takes {self.max_update_bytes:,}"
            )
        self._blocks[key] = block.data
        return True

    @property
    def complete(self) -> bool:
        return self.header is not None and len(self._blocks) == count(self.header.size)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays of the complete upload, see `data`; raise MalformedMessage when it holds no tensors."""
        return tensors.unpack(self.data())

    def data(self) -> bytes:
        """Return the bytes of the complete upload; what was kept is forgotten, so that it can be sent again.

        Raises BadDigest when they are not the promised ones.
        """
        if self.header is None or not self.complete:
            raise MalformedMessage(f"the upload of {self.device} is not complete: {len(self._blocks)} blocks are here")
        data = b"".join(self._blocks[key] for key in sorted(self._blocks))
        self._blocks.clear()
        if digest_of(data) != self.header.digest:
            raise BadDigest(f"{len(data):,} bytes of {self.device} are not the promised {self.header.digest[:12]}")
        return data

    def _expected(self, index: int) -> int:
        """How many bytes block `index` of the announced upload has; -1 when there is no such block."""
        size = self.header.size if self.header else 0
        return min(BLOCK_BYTES, size - index * BLOCK_BYTES) if 0 <= index < count(size) else -1


def _prefix(header: UpdateHeader) -> bytes:
    return bytes.fromhex(header.digest[:16])
