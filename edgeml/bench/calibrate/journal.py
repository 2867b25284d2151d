"""What a calibration has finished, line by line in a file, so that a power cut costs one micro-model.

A journal of other conditions (runtime, processor, settings) is begun anew, and so is a row of another model.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgeml_runtime.measure import OperatorTime

SCHEMA = 2


@dataclass(frozen=True)
class Row:
    """What one model took in one round: by node, and as a whole where that was timed (milliseconds)."""

    nodes: tuple[OperatorTime, ...]
    ms: float | None = None
    why: str = ""  # what spoiled the timing


class Journal:
    """Rows by key, in memory and appended to a file."""

    def __init__(self, path: Path | None, conditions: Mapping[str, Any]) -> None:
        """Read what `path` holds if it was written under the same `conditions`, else begin it anew."""
        self._rows: dict[str, Row] = {}
        self._path = path
        if path is None:
            return
        head = json.dumps({"schema": SCHEMA, **conditions}, sort_keys=True)
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        if lines[:1] == [head.encode()]:
            for line in lines[1:-1]:  # behind the last line's end is nothing, or what the power cut off
                key, row = _read(line)
                if row is not None:
                    self._rows[key] = row
        whole = [head, *(_line(key, row) for key, row in self._rows.items())]
        path.with_suffix(".new").write_text("\n".join(whole) + "\n", encoding="utf-8")
        path.with_suffix(".new").replace(path)

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Row | None:
        return self._rows.get(key)

    def add(self, key: str, row: Row) -> None:
        """Keep `row`; it is on the disk when this returns."""
        self._rows[key] = row
        if self._path:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(_line(key, row) + "\n")
                file.flush()
                os.fsync(file.fileno())


def digest_of(model: bytes) -> str:
    """Return a short name of `model`, so that a row of another edgeml's micro-model is not taken for this one's."""
    return hashlib.sha256(model).hexdigest()[:12]


def operator_time(values: Mapping[str, Any]) -> OperatorTime:
    """Return an OperatorTime from the plain values that `asdict` made of it."""
    shapes: Sequence[Any] = values["shapes"]
    return OperatorTime(**{**values, "shapes": tuple((str(kind), tuple(shape)) for kind, shape in shapes)})


def _line(key: str, row: Row) -> str:
    body = json.dumps([key, [asdict(node) for node in row.nodes], row.ms, row.why])
    return f"{digest_of(body.encode())} {body}"


def _read(line: bytes) -> tuple[str, Row | None]:
    """Return what a line holds, no row if it was damaged."""
    digest, _, body = line.partition(b" ")
    if digest.decode("ascii", "replace") != digest_of(body):
        return "", None
    key, nodes, ms, why = json.loads(body)
    return key, Row(tuple(operator_time(node) for node in nodes), ms, why)
