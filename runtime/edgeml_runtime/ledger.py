"""What tasks ran over this device's rows: one line each, for the owner to read, and for the limit per day.

A line is on the disk before a row is read, so that neither kill -9 nor a power cut makes a run uncounted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEEP_LINES, DAY_S = 5000, 86_400.0


class Ledger:
    """The file at `path`: JSON lines, at most KEEP_LINES and a half more of them."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def note(self, entry: Mapping[str, Any]) -> None:
        """Add a line; `at` is in seconds since 1970."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            if file.tell() and not self._ends_whole():
                file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self._trim()

    def entries(self, last: int = KEEP_LINES) -> list[dict[str, Any]]:
        """Return the newest lines, oldest first; damaged ones do not count."""
        found = []
        for line in self._lines()[-last:]:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found

    def today(self, now: float) -> int:
        """Return how many runs the last 24 hours had; after the clock was set back, later ones count, too."""
        return sum(1 for entry in self.entries() if _number(entry.get("at")) > now - DAY_S)

    def _lines(self) -> list[bytes]:
        return self._path.read_bytes().splitlines() if self._path.exists() else []

    def _ends_whole(self) -> bool:
        with self._path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"

    def _trim(self) -> None:
        lines = self._lines()
        if len(lines) > KEEP_LINES * 3 // 2:
            fresh = self._path.with_name(self._path.name + ".new")
            fresh.write_bytes(b"\n".join(lines[-KEEP_LINES:]) + b"\n")
            fresh.replace(self._path)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
