"""Blocks to a file: which to ask for, which to accept, and what of it survives a power cut.

`Receiver` keeps `<digest>.part` (preallocated, so a full disk is found before the first block) and
`<digest>.bitmap`. The bitmap is written only after the data it speaks of is on the disk, and is
believed only after hashing: whatever a crash left behind, the finished file is right. `Window` is
pure: what to ask for at a given time. Neither relies on acknowledgements or order.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from edgeml_runtime.errors import BadDigest, MalformedMessage, StorageFull
from edgeml_runtime.wire import blocks
from edgeml_runtime.wire.blocks import Block

SYNC_EVERY = 16  # blocks: 768 KiB are asked for twice at worst, and an SD card is not synced to death
ASK_AGAIN_S, BACK_OFF, LONGEST_S = 2.0, 1.5, 30.0
JITTER = 0.2  # of every wait, either way: devices that lost one server must not come back in step

_DIGEST = re.compile(r"[0-9a-f]{64}")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Receiver:
    """One blob on its way into `folder`; opening it takes up what an earlier process left."""

    def __init__(self, folder: Path, *, digest: str, size: int, hashes: Sequence[str] = ()) -> None:
        """Open the blob with this `digest` and `size`; `hashes` are the sha256 of its blocks, if known.

        Without them nothing partial can be believed, so only a complete file is taken up again.
        Raises StorageFull when it does not fit, MalformedMessage when there is no such blob.
        """
        count = blocks.count(size)
        if not _DIGEST.fullmatch(digest) or not 0 < size <= blocks.MAX_BLOB_BYTES or len(hashes) not in (0, count):
            raise MalformedMessage(f"blob {digest[:12]!r}: {size} bytes cannot have {len(hashes)} blocks")
        self.digest, self.size, self.count = digest, size, count
        self._hashes = tuple(hashes) or ((digest,) if count == 1 else ())
        self._folder = folder
        self._path, self._part, self._bitmap = (folder / (digest + end) for end in ("", ".part", ".bitmap"))
        self.missing: set[int] = set(range(count))
        self._unsynced = 0
        self._file = -1
        folder.mkdir(parents=True, exist_ok=True)
        if not self._already_here():
            self._open()
            self.missing -= self._believed()

    @property
    def progress(self) -> float:
        """The share of the blocks that is here, 0 to 1."""
        return 1 - len(self.missing) / self.count

    def accept(self, block: Block) -> bool:
        """Write `block`; return False for one of another blob, one already here, or one that is damaged."""
        index, data = block.index, block.data
        if block.prefix != bytes.fromhex(self.digest[:16]) or index not in self.missing:
            return False
        if len(data) != self._length(index) or (self._hashes and blocks.digest_of(data) != self._hashes[index]):
            return False
        with self._room():
            _write_all(self._file, data, index * blocks.BLOCK_BYTES)
            self.missing.discard(index)
            self._unsynced += 1
            if self._unsynced >= SYNC_EVERY:
                self._sync()
        return True

    def finish(self) -> Path:
        """Return the path of the whole blob, proven by its sha256 and safe on the disk.

        Raises BadDigest when blocks are missing, or when all are here and the sum is wrong; then
        the part is dropped, and a new Receiver starts over.
        """
        if self.missing:
            raise BadDigest(f"blob {self.digest[:12]}: {len(self.missing)} of its {self.count} blocks are missing")
        if self._file < 0:
            return self._path
        if (found := _digest_of_file(self._file)) != self.digest:
            self.drop()
            raise BadDigest(f"blob {self.digest[:12]}: {self.size:,} bytes arrived with sha256 {found[:12]}; dropped")
        os.fdatasync(self._file)
        self._close_file()
        self._part.replace(self._path)
        self._bitmap.unlink(missing_ok=True)
        sync_folder(self._folder)
        return self._path

    def close(self) -> None:
        """Put what is here on the disk, for a later Receiver to take up."""
        if self._file >= 0:
            try:
                self._sync()
            finally:
                self._close_file()

    def drop(self) -> None:
        """Forget what arrived and free its space; a finished blob stays."""
        self._close_file()
        self._part.unlink(missing_ok=True)
        self._bitmap.unlink(missing_ok=True)

    def __enter__(self) -> Receiver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _already_here(self) -> bool:
        if not self._path.exists():
            return False
        file = os.open(self._path, os.O_RDONLY)
        try:
            right = os.fstat(file).st_size == self.size and _digest_of_file(file) == self.digest
        finally:
            os.close(file)
        if right:
            self.missing = set()
            self.drop()
        else:
            self._path.unlink()
        return right

    def _open(self) -> None:
        fresh = not self._part.exists()
        if fresh:
            self._bitmap.unlink(missing_ok=True)
        try:
            with self._room():
                self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.ftruncate(self._file, self.size)
                os.posix_fallocate(self._file, 0, self.size)
                if fresh:
                    self._write_bitmap()
        except StorageFull:
            self.drop()
            raise

    def _believed(self) -> set[int]:
        """Return the blocks that the bitmap claims and whose hashes are right."""
        claims = self._bitmap.read_bytes() if self._bitmap.exists() else b""
        claimed = {i for i in range(min(self.count, 8 * len(claims))) if claims[i // 8] >> (i % 8) & 1}
        if self._hashes:
            return {i for i in claimed if blocks.digest_of(self._read(i)) == self._hashes[i]}
        whole = len(claimed) == self.count and _digest_of_file(self._file) == self.digest
        return claimed if whole else set()

    def _read(self, index: int) -> bytes:
        return os.pread(self._file, self._length(index), index * blocks.BLOCK_BYTES)

    def _length(self, index: int) -> int:
        return min(blocks.BLOCK_BYTES, self.size - index * blocks.BLOCK_BYTES)

    def _sync(self) -> None:
        os.fdatasync(self._file)
        self._write_bitmap()
        self._unsynced = 0

    def _write_bitmap(self) -> None:
        bits = bytearray(-(-self.count // 8))
        for index in set(range(self.count)) - self.missing:
            bits[index // 8] |= 1 << (index % 8)
        file = os.open(self._bitmap, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _write_all(file, bytes(bits), 0)
        finally:
            os.close(file)

    def _close_file(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    @contextmanager
    def _room(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL:
                raise
            free = free_bytes(self._folder)
            raise StorageFull(
                f"blob {self.digest[:12]} needs {self.size:,} bytes and {self._folder} has {free:,} free; "
                f"nothing was changed: free some space and deploy again"
            ) from error


class Window:
    """Which blocks to ask for now: a few at a time, and again when they stay away. Time is an argument."""

    def __init__(self, count: int, *, rng: random.Random | None = None) -> None:
        """Ask for blocks of a blob that has `count` of them; `rng` gives the jitter."""
        self._count, self._rng = count, rng or random.Random()
        self._asked: dict[int, tuple[float, float]] = {}  # index -> when to ask again, how long to wait after that

    def ask(self, missing: Collection[int], now: float) -> tuple[tuple[int, int], ...]:
        """Return half-open ranges to ask for now, so that at most WINDOW_BLOCKS are outstanding."""
        wanted = sorted(index for index in missing if 0 <= index < self._count)
        self._asked = {index: wait for index, wait in self._asked.items() if index in missing}
        outstanding = sum(due > now for due, _ in self._asked.values())
        free = max(0, blocks.WINDOW_BLOCKS - outstanding)
        chosen = [index for index in wanted if index not in self._asked or self._asked[index][0] <= now][:free]
        for index in chosen:
            wait = self._asked[index][1] if index in self._asked else ASK_AGAIN_S
            due = now + wait * self._rng.uniform(1 - JITTER, 1 + JITTER)
            self._asked[index] = due, min(wait * BACK_OFF, LONGEST_S)
        return blocks.to_ranges(chosen)

    def arrived(self, index: int) -> None:
        """Take block `index` off the outstanding ones."""
        self._asked.pop(index, None)

    def restart(self) -> None:
        """Forget what was asked: after a reconnect, whoever was asked will not answer."""
        self._asked.clear()

    @property
    def due(self) -> float | None:
        """When `ask` will want something again if nothing arrives; None when nothing is outstanding."""
        return min((due for due, _ in self._asked.values()), default=None)


def sweep(folder: Path, keep: Collection[str]) -> int:
    """Delete every blob and part in `folder` whose digest is not in `keep`; return the bytes freed."""
    freed = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        digest = path.name.removesuffix(".part").removesuffix(".bitmap")
        if _DIGEST.fullmatch(digest) and digest not in keep:
            freed += path.stat().st_size
            path.unlink()
    return freed


def free_bytes(folder: Path) -> int:
    """Return the bytes that an ordinary user may still write in `folder`."""
    disk = os.statvfs(folder)
    return disk.f_bavail * disk.f_frsize


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _digest_of_file(file: int) -> str:
    with os.fdopen(os.dup(file), "rb") as stream:
        stream.seek(0)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_all(file: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written
