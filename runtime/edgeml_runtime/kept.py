"""What tasks keep on this device between the rounds of a federation: `keep.<name>` that comes back as `kept.<name>`.

One safetensors file per federation, replaced as a whole and put on the disk before the answer leaves, with the state
before the last round beside the one after it: a round that is run again (after kill -9, or because its answer was
lost) begins from where it began, and gives the same.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeml_runtime.config import write_atomic
from edgeml_runtime.download import sync_folder
from edgeml_runtime.errors import MalformedMessage, TaskRefused
from edgeml_runtime.wire import tensors

SUFFIX, ROUND, NOW, WAS = ".safetensors", "round", "now.", "was."
KEEP_DAYS = 90.0  # of a federation that never said it was over
_RUN = re.compile(r"[A-Za-z0-9_-]{1,64}")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Held:
    """What one federation keeps here, for the owner."""

    run: str
    size: int  # bytes
    changed: float  # seconds since 1970


class Kept:
    """The memory of all federations in one folder, at most `most` bytes: those used longest ago make room."""

    def __init__(self, folder: Path, *, most: int) -> None:
        self._folder, self._most = folder, most

    def before(self, run: str, round_id: str) -> dict[str, np.ndarray]:
        """Return what `round_id` begins from, {} in the first one; a damaged file is none."""
        found = self._read(run)
        prefix = WAS if _round_of(found) == round_id else NOW
        return {name.removeprefix(prefix): array for name, array in found.items() if name.startswith(prefix)}

    def last(self, run: str) -> dict[str, np.ndarray]:
        """Return what the last round of `run` left, {} when there is nothing; raise MalformedMessage if damaged."""
        path = self._path(run)
        if not path.is_file():
            return {}
        if (size := path.stat().st_size) > self._most:
            raise MalformedMessage(f"{size:,} bytes were kept of {run}; the owner's policy allows {self._most:,}")
        found = tensors.unpack(path.read_bytes())
        return {name.removeprefix(NOW): array for name, array in found.items() if name.startswith(NOW)}

    def after(self, run: str, round_id: str, *, was: Arrays, now: Arrays) -> None:
        """Keep that `round_id` of `run` went from `was` to `now`; raise TaskRefused when that is too much."""
        if not now:
            return
        arrays = {WAS + name: array for name, array in was.items()} | {NOW + name: a for name, a in now.items()}
        data = tensors.pack({**arrays, ROUND: np.array([round_id], dtype=object)})
        if len(data) > self._most:
            raise TaskRefused(f"{len(data):,} bytes to keep between rounds; the owner's policy allows {self._most:,}")
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._make_room(run, self._most - len(data))
        write_atomic(self._path(run), data)

    def held(self) -> list[Held]:
        """Return what is kept, the federation used last first."""
        found = [(path, path.stat()) for path in self._folder.glob(f"*{SUFFIX}")] if self._folder.is_dir() else []
        held = [Held(path.name.removesuffix(SUFFIX), stat.st_size, stat.st_mtime) for path, stat in found]
        return sorted(held, key=lambda one: -one.changed)

    def forget(self, run: str) -> bool:
        """Delete what `run` kept; return whether there was something."""
        path = self._path(run)
        there = path.exists()
        path.unlink(missing_ok=True)
        if there:
            sync_folder(self._folder)
        return there

    def expire(self, now: float | None = None) -> None:
        """Delete what nobody asked for in KEEP_DAYS, and what a power cut left half written."""
        limit = (time.time() if now is None else now) - KEEP_DAYS * 86_400
        for one in self.held():
            if one.changed < limit:
                self.forget(one.run)
        for path in self._folder.glob("*.new") if self._folder.is_dir() else ():
            path.unlink(missing_ok=True)

    def _make_room(self, run: str, room: int) -> None:
        others = [one for one in self.held() if one.run != run]
        total = sum(one.size for one in others)
        while others and total > room:
            total -= others[-1].size
            self.forget(others.pop().run)

    def _read(self, run: str) -> dict[str, np.ndarray]:
        path = self._path(run)
        try:
            found = tensors.unpack(path.read_bytes())
            os.utime(path)
        except (FileNotFoundError, MalformedMessage):
            return {}
        return found

    def _path(self, run: str) -> Path:
        if not _RUN.fullmatch(run):
            raise MalformedMessage(f"a federation called {run[:80]!r}: use 1 to 64 characters of A-Z a-z 0-9 _ -")
        return self._folder / (run + SUFFIX)


def _round_of(found: Arrays) -> str:
    name = found.get(ROUND)
    return str(name[0]) if name is not None and name.dtype == object and name.size else ""
