"""What calibration found out about a device, as a document that is read again only whole and unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgeml.bench.calibrate.work import Work
from edgeml.errors import DataError

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A net that was timed end to end, and the work of its nodes as the device ran them."""

    name: str
    ms: float
    nodes: tuple[Work, ...]


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a device's kernels took. `samples` are (work, milliseconds) with the profiler's own share taken out."""

    device: str
    settings: Mapping[str, Any]
    environment: Mapping[str, Any]
    cache_bytes: int  # of the last level
    call_ms: float  # of a call that runs nothing
    node_ms: float  # that the profiler adds to every node
    samples: tuple[tuple[Work, float], ...]
    references: tuple[Reference, ...]
    schema: int = SCHEMA
    doubts: tuple[str, ...] = field(default_factory=tuple)

    def to_json(self) -> str:
        """Return the document that `read_calibration` reads, its digest included."""
        body = asdict(self)
        return json.dumps({**body, "digest": _digest(body)})


def read_calibration(path: Path) -> Calibration:
    """Return the calibration in the file at `path`; raise DataError naming what is wrong with it."""
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        digest = body.pop("digest")
        if body["schema"] != SCHEMA:
            raise DataError(f"{path}: calibration schema {body['schema']}, this edgeml reads {SCHEMA}: calibrate again")
        if digest != _digest(body):
            raise DataError(f"{path}: the calibration was changed or cut off since it was written: calibrate again")
        samples = tuple((Work(**work), float(ms)) for work, ms in body.pop("samples"))
        references = tuple(
            Reference(name=one["name"], ms=one["ms"], nodes=tuple(Work(**node) for node in one["nodes"]))
            for one in body.pop("references")
        )
        return Calibration(samples=samples, references=references, **body | {"doubts": tuple(body["doubts"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: not a calibration of edgeml ({error}): calibrate again") from error


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
