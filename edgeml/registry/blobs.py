"""Bytes by their sha256, in `blobs/<first two digits>/<digest>`: written once, checked at every read."""

from __future__ import annotations

from pathlib import Path

from edgeml.errors import NotFound, VerificationError
from edgeml.files import write_atomic
from edgeml_runtime.wire import blocks


class Blobs:
    """A folder of blobs. Two processes may put the same one at once: both write the same bytes."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, data: bytes) -> str:
        """Keep `data` and return its digest; on return it is on disk."""
        digest = blocks.digest_of(data)
        path = self.path(digest)
        if path.is_file() and path.stat().st_size == len(data):
            return digest
        write_atomic(path, data)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of `digest`.

        Raises NotFound when there are none, VerificationError when they are not what their name says.
        """
        path = self.path(digest)
        if not path.is_file():
            raise NotFound(f"no blob {digest[:12]} in {self._root}")
        data = path.read_bytes()
        found = blocks.digest_of(data)
        if found != digest:
            raise VerificationError(
                f"blob {digest[:12]} in {self._root} has digest {found[:12]} ({len(data):,} bytes): it was truncated "
                f"or changed on disk; remove the file and build the release again"
            )
        return data

    def path(self, digest: str) -> Path:
        """Return where the bytes of `digest` are or would be."""
        return self._root / digest[:2] / digest
