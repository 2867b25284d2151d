"""Blobs on their way to this device: what to ask the server for, and what to do with the blocks that come.

A `Pull` is the hand that downloads: it joins the receiver (disk) and the window (which blocks to ask
for, when) of each of its blobs, one blob after the other. Who is asked, and how, is the caller's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgeml_runtime.download import Receiver, Window
from edgeml_runtime.errors import BadDigest
from edgeml_runtime.wire import blocks
from edgeml_runtime.wire.blocks import Block
from edgeml_runtime.wire.manifest import Blob
from edgeml_runtime.wire.messages import BlockRequest

MAX_DAMAGED = 5  # blocks of one blob with a wrong hash: the link has checksums, so the source itself is wrong
REFILL = blocks.WINDOW_BLOCKS // 2  # ask again when this many have arrived, not for each


@dataclass(frozen=True, kw_only=True)
class Want:
    """A blob to have; without `hashes` of its blocks only the whole can be checked."""

    digest: str
    size: int
    hashes: tuple[str, ...] = ()


def want(blob: Blob) -> Want:
    return Want(digest=blob.digest, size=blob.size, hashes=blob.blocks)


class Pull:
    """A list of blobs that are wanted in `folder`; those already there cost nothing."""

    def __init__(self, folder: Path, wanted: Sequence[Want]) -> None:
        self._folder, self._wanted = folder, list(wanted)
        self._total = sum(one.size for one in wanted) or 1
        self._before = 0
        self.paths: dict[str, Path] = {}
        self._receiver: Receiver | None = None
        self._window = Window(0)
        self._fresh = self._damaged = 0

    @property
    def done(self) -> bool:
        return not self._wanted

    @property
    def progress(self) -> float:
        """The share of the bytes that is here, 0 to 1."""
        here = self._wanted[0].size * self._receiver.progress if self._wanted and self._receiver else 0
        return (self._before + here) / self._total

    @property
    def due(self) -> float:
        """When `request` may have something to say although nothing arrives."""
        return self._window.due or 0.0

    def request(self, now: float) -> BlockRequest | None:
        """Return what to ask for now, if anything. Opens, and finishes, the blobs that are here already.

        Raises StorageFull when a blob does not fit, BadDigest when it is not what was promised.
        """
        while self._wanted and not self._open().missing:
            self._finish()
        if not self._wanted or (self._fresh < REFILL and now < self.due and self._open().missing):
            return None
        self._fresh = 0
        ranges = self._window.ask(self._open().missing, now)
        return BlockRequest(digest=self._wanted[0].digest, ranges=ranges) if ranges else None

    def take(self, block: Block) -> bool:
        """Keep `block` if it is one of the blob under way; return whether it was. Raises like `request`."""
        if not self._wanted or block.prefix != bytes.fromhex(self._wanted[0].digest[:16]):
            return False
        receiver = self._open()
        wanted = block.index in receiver.missing
        if receiver.accept(block):
            self._window.arrived(block.index)
            self._fresh += 1
        elif wanted:
            self._reject(block)
        if not receiver.missing:
            self._finish()
        return True

    def restart(self) -> None:
        """Ask anew for all that is missing: whoever was asked is gone."""
        self._window.restart()

    def close(self) -> None:
        """Put what is here on the disk, for a later Pull of the same blobs."""
        if self._receiver is not None:
            self._receiver.close()
            self._receiver = None

    def _open(self) -> Receiver:
        if self._receiver is None:
            one = self._wanted[0]
            self._receiver = Receiver(self._folder, digest=one.digest, size=one.size, hashes=one.hashes)
            self._window = Window(blocks.count(one.size))
            self._fresh = self._damaged = 0
        return self._receiver

    def _finish(self) -> None:
        one = self._wanted[0]
        self.paths[one.digest] = self._open().finish()
        self._receiver = None
        self._before += one.size
        del self._wanted[0]
        self._window, self._fresh = Window(0), REFILL

    def _reject(self, block: Block) -> None:
        self._damaged += 1
        self._window.arrived(block.index)  # it came, only wrong: ask again without waiting
        self._fresh = REFILL
        if self._damaged >= MAX_DAMAGED:
            digest = self._wanted[0].digest[:12]
            raise BadDigest(
                f"blob {digest}: block {block.index} arrived damaged, {self._damaged} damaged blocks in all"
            )
