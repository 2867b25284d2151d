"""The job on the disk: the signed assignment as it arrived and how far it came, replaced atomically.

It is written before every step, so that after a power cut the agent knows what it was doing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeml_runtime.config import JOB, read_json, write_atomic
from edgeml_runtime.errors import WireError
from edgeml_runtime.protocol import Phase, Record
from edgeml_runtime.wire import signed
from edgeml_runtime.wire.messages import Assignment, from_document
from edgeml_runtime.wire.plain import to_plain

MAX_STARTS = 3  # of the agent while one release is on trial; one more, and the release is blamed


@dataclass
class Journal:
    """What job.json holds. `received` is wall time and only used across restarts."""

    path: Path
    envelope: str = ""
    received: float = 0.0
    starts: int = 0

    @classmethod
    def open(cls, state: Path) -> Journal:
        found = read_json(state / JOB)
        return cls(
            state / JOB,
            envelope=_text(found.get("envelope")),
            received=_number(found.get("received")),
            starts=int(_number(found.get("starts"))),
        )

    def load(self, trusted: Iterable[str]) -> tuple[Assignment | None, Record]:
        """Return the job that was left, verified anew; no assignment when none of it can be believed.

        The highest sequence number is kept in any case.
        """
        record = _record(read_json(self.path).get("record"))
        if not self.envelope:
            return None, record
        try:
            return from_document(Assignment, signed.verify(self.envelope.encode(), trusted)), record
        except WireError:  # enrolled anew with another key: that job is nobody's any more
            return None, Record(seq=record.seq)

    def save(self, record: Record) -> None:
        """Write everything; raise StorageFull when it does not fit."""
        plain = {
            "envelope": self.envelope,
            "received": self.received,
            "starts": self.starts,
            "record": to_plain(record),
        }
        write_atomic(self.path, json.dumps(plain).encode())


def _record(plain: Any) -> Record:
    """Return the record in `plain`, the empty one when it is damaged: the worst of it is a job done twice."""
    try:
        phases = {name: Phase(plain[name]) for name in ("phase", "verdict")}
        return Record(**phases, seq=int(plain["seq"]), reason=_text(plain["reason"]), detail=_text(plain["detail"]))
    except (KeyError, TypeError, ValueError):
        return Record()


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
