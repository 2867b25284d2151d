"""Local samples: rows a device predicted on, labels that came later. They never leave the device.

One SQLite file (WAL): numbers as little-endian float32, strings as JSON. A row belongs to a layout,
the names and sizes of its inputs; when a new model takes other inputs, only rows of the newest
layout are learned from. Its `place` says whether it is held out, see `wire.holdout`. Every method may be
called by several threads at once.
"""

from __future__ import annotations

import json
import math
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.errors import AgentRefused, ShapeMismatch, StorageFull
from edgeml_runtime.wire.holdout import EVERY, Part, places

KEEP = 100_000  # rows; 64 float32 features make 30 MB of it

_SCHEMA = """
CREATE TABLE IF NOT EXISTS samples (
    id INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, layout TEXT NOT NULL,
    numbers BLOB NOT NULL, words TEXT NOT NULL, target, place REAL
);
CREATE INDEX IF NOT EXISTS labelled ON samples (layout, id) WHERE target IS NOT NULL;
CREATE INDEX IF NOT EXISTS layouts ON samples (layout, id);
"""
_INDICES = (  # on a column that older files get first
    "CREATE INDEX IF NOT EXISTS sides ON samples (layout, place) WHERE target IS NOT NULL",
    "CREATE INDEX IF NOT EXISTS unplaced ON samples (layout) WHERE place IS NULL",
)
_COUNTED = "layout = ? AND place >= ? AND place < ?"
_WITHIN = "layout = ? AND +place >= ? AND +place < ?"  # by id: sorting rows by place first takes four times as long


class Samples:
    """The rows in the file at `path`, at most `keep` of them: the oldest make room."""

    def __init__(self, path: str | Path, *, keep: int = KEEP) -> None:
        """Open or create the file; raise AgentRefused when it is something else than samples."""
        self._path, self._keep, self._lock = Path(path), keep, threading.Lock()
        self._db = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None, timeout=10)
        with self._refusals():
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        self._place_old_rows()

    def add(self, inputs: Mapping[str, np.ndarray], *, target: float | int | None = None, now: float) -> int:
        """Store one row, each input of shape (f,) or (1, f); return its id."""
        row = {name: array[np.newaxis] if array.ndim < 2 else array for name, array in inputs.items()}
        targets = None if target is None else [target]
        if any(len(array) != 1 for array in row.values()):
            shapes = ", ".join(f"{name} {array.shape}" for name, array in inputs.items())
            raise ShapeMismatch(f"add stores one row, got {shapes}: use add_many")
        return self.add_many(row, targets=targets, now=now)[0]

    def add_many(
        self, inputs: Mapping[str, np.ndarray], *, targets: Sequence[float | int] | None = None, now: float
    ) -> list[int]:
        """Store rows, each input of shape (n, f), all or none of them; return their ids in order."""
        counts = {len(array) for array in inputs.values()} | ({len(targets)} if targets is not None else set())
        if len(counts) != 1:
            raise ShapeMismatch(f"inputs and targets of {sorted(counts)} rows: give each row all of its inputs")
        labels = [None] * counts.pop() if targets is None else [_plain(target) for target in targets]
        layout, rows = _encode(inputs, len(labels))
        ids = []
        with self._transaction():
            for (numbers, words), target, place in zip(rows, labels, places(inputs).tolist(), strict=True):
                cursor = self._db.execute(
                    "INSERT INTO samples (at, layout, numbers, words, target, place) VALUES (?, ?, ?, ?, ?, ?)",
                    (now, layout, numbers, words, target, place),
                )
                ids.append(int(cursor.lastrowid or 0))
            if ids:
                self._db.execute("DELETE FROM samples WHERE id <= ?", (ids[-1] - self._keep,))
        return ids

    def label(self, sample: int, target: float | int) -> bool:
        """Give the row with this id its target; return False when there is no such row (any more)."""
        with self._transaction():
            cursor = self._db.execute("UPDATE samples SET target = ? WHERE id = ?", (_plain(target), sample))
            return cursor.rowcount == 1

    def rows(self, limit: int | None = None, *, part: Part = EVERY) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the inputs and targets of the labelled rows of the newest layout in `part`, oldest first.

        With `limit`, of the newest `limit` rows. Targets are int64 when all are integers, else float32.
        """
        layout, found = self._select("target IS NOT NULL AND", limit, part)
        targets = [target for _, _, target in found]
        integers = all(isinstance(target, int) for target in targets)
        return _decode(layout, found), np.array(targets, dtype=np.int64 if integers else np.float32)

    def inputs(self, limit: int | None = None, *, part: Part = EVERY) -> dict[str, np.ndarray]:
        """Return the inputs of all rows of the newest layout in `part`, labelled or not, oldest first; see `rows`."""
        return _decode(*self._select("", limit, part))

    def count(self) -> int:
        """Return how many rows are stored, labelled or not."""
        with self._lock, self._refusals():
            return int(self._db.execute("SELECT count(*) FROM samples").fetchone()[0])

    def labelled(self, part: Part = EVERY) -> int:
        """Return how many rows `rows` would return."""
        query = f"SELECT count(*) FROM samples WHERE target IS NOT NULL AND {_COUNTED}"
        with self._lock, self._refusals():
            return int(self._db.execute(query, (self._newest_layout(), part.low, part.high)).fetchone()[0])

    def layout(self) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Return, of the newest layout, the shape of one row of each input and whether it is text; no row is read."""
        with self._lock, self._refusals():
            found = json.loads(self._newest_layout() or "[]")
        return {name: (tuple(shape), kind == "string") for name, shape, kind in found}

    def usable(self) -> int:
        """Return how many rows `inputs` would return."""
        query = "SELECT count(*) FROM samples WHERE layout = ?"
        with self._lock, self._refusals():
            return int(self._db.execute(query, (self._newest_layout(),)).fetchone()[0])

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def _select(self, labelled: str, limit: int | None, part: Part) -> tuple[str, list[tuple[bytes, str, Any]]]:
        """Return the newest layout and its rows in `part`, the newest `limit` of them, oldest first."""
        query = (
            f"SELECT numbers, words, target FROM (SELECT * FROM samples WHERE {labelled} {_WITHIN} "
            "ORDER BY id DESC LIMIT ?) ORDER BY id"
        )
        with self._lock, self._refusals():
            layout, most = self._newest_layout(), -1 if limit is None else limit
            found = self._db.execute(query, (layout, part.low, part.high, most)).fetchall() if layout else []
        return layout, found

    def _place_old_rows(self) -> None:
        """Give their places to rows that an agent stored which knew of none."""
        with self._lock, self._refusals():
            known = self._db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'unplaced'").fetchone()[0]
            if known and self._db.execute("SELECT 1 FROM samples WHERE place IS NULL LIMIT 1").fetchone() is None:
                return
        with self._transaction():
            if "place" not in {column[1] for column in self._db.execute("PRAGMA table_info(samples)")}:
                self._db.execute("ALTER TABLE samples ADD COLUMN place REAL")
            for statement in _INDICES:
                self._db.execute(statement)
            unplaced = "SELECT id, numbers, words FROM samples WHERE place IS NULL AND layout = ?"
            for (layout,) in self._db.execute("SELECT DISTINCT layout FROM samples WHERE place IS NULL").fetchall():
                found = self._db.execute(unplaced, (layout,)).fetchall()
                inputs = _decode(layout, [(numbers, words, None) for _, numbers, words in found])
                placed = zip(places(inputs).tolist(), (row[0] for row in found), strict=True)
                self._db.executemany("UPDATE samples SET place = ? WHERE id = ?", placed)

    def _newest_layout(self) -> str:
        found = self._db.execute("SELECT layout FROM samples ORDER BY id DESC LIMIT 1").fetchone()
        return str(found[0]) if found else ""

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._refusals():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise StorageFull(f"{self._path}: the disk is full, the row was not stored: free some space") from error
            raise AgentRefused(f"{self._path}: {error}; check the file and its permissions") from error
        except sqlite3.DatabaseError as error:
            raise AgentRefused(f"{self._path}: not a sample store ({error}); move it away to start anew") from error


def _plain(target: Any) -> float | int:
    value = target.item() if isinstance(target, np.generic | np.ndarray) else target
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ShapeMismatch(f"target {value!r}: expected a class index or a finite number")
    return value


def _encode(inputs: Mapping[str, np.ndarray], count: int) -> tuple[str, list[tuple[bytes, str]]]:
    """Return the layout of `inputs` and, for each row, its numbers and words."""
    layout: list[Any] = []
    numbers: list[np.ndarray] = []
    words: list[np.ndarray] = []
    for name, array in sorted(inputs.items()):
        text = array.dtype.kind in "OU"
        layout.append([name, list(array.shape[1:]), "string" if text else "float32"])
        (words if text else numbers).append(array.reshape(count, -1))
    packed = [np.ascontiguousarray(block, dtype="<f4") for block in numbers]
    rows = [
        (b"".join(block[i].tobytes() for block in packed), json.dumps([word for block in words for word in block[i]]))
        for i in range(count)
    ]
    return json.dumps(layout), rows


def _decode(layout: str, found: Sequence[tuple[bytes, str, Any]]) -> dict[str, np.ndarray]:
    """Return the stacked inputs of rows that share `layout`."""
    count = len(found)
    numbers = np.frombuffer(b"".join(blob for blob, _, _ in found), dtype="<f4").astype(np.float32)
    words = np.array([json.loads(text) for _, text, _ in found], dtype=object)
    inputs, at = {}, {"float32": 0, "string": 0}
    tables = {"float32": numbers.reshape(count, -1) if count else numbers, "string": words}
    for name, shape, kind in json.loads(layout or "[]"):
        width = math.prod(shape)
        empty = np.zeros((0, width), np.float32 if kind == "float32" else object)
        table = tables[kind][:, at[kind] : at[kind] + width] if count else empty
        inputs[name] = np.ascontiguousarray(table).reshape(count, *shape)
        at[kind] += width
    return inputs
