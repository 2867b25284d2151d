"""What calibration found out about a device, as a document that is read again only whole and unchanged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from edgeml.bench.calibrate.work import Caches, Work
from edgeml.errors import DataError
from edgeml_runtime.wire import WireError
from edgeml_runtime.wire.manifest import Settings

SCHEMA = 2
FACTS = ("onnxruntime", "machine")  # of the environment, that predictions cannot do without
LARGEST = 1e15  # bytes, operations, milliseconds: anything more is damage
_FAULTS = (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError)


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
    near_bytes: int  # of the level before it
    call_ms: float  # of a call that runs nothing
    node_ms: float  # that the profiler adds to every node, and takes from it where it looks less far than a call does
    samples: tuple[tuple[Work, float], ...]
    references: tuple[Reference, ...]
    schema: int = SCHEMA
    doubts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raise DataError for what no device can have: it is checked here, once."""
        for name, value, least in (
            ("cache_bytes", self.cache_bytes, 1),
            ("near_bytes", self.near_bytes, 1),
            ("call_ms", self.call_ms, 0.0),
            ("node_ms", self.node_ms, -LARGEST),
            *((f"{work.family}: milliseconds", ms, 1e-12) for work, ms in self.samples),
            *((f"{one.name}: milliseconds", one.ms, 1e-12) for one in self.references),
            *((f"{work.family}: {key}", value, 0.0) for work in self._works() for key, value in work.amounts().items()),
        ):
            if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= LARGEST:
                raise DataError(
                    f"{name} is {value!r}, a number from {least:g} to {LARGEST:g} is needed: calibrate again"
                )
        texts = [self.device, *(self.environment[fact] for fact in FACTS), *self.doubts]
        texts += [text for work in self._works() for text in (work.family, work.kind)]
        if wrong := next((text for text in texts if not isinstance(text, str)), None):
            raise DataError(f"{wrong!r} stands where a text is needed: calibrate again")
        if not self.samples:
            raise DataError("a calibration without a single sample: calibrate again")
        self.session_settings()

    def session_settings(self) -> Settings:
        """Return the settings of its sessions; those that this edgeml does not know are left out."""
        known = {field.name for field in fields(Settings)}
        try:
            found = Settings(**{name: value for name, value in self.settings.items() if name in known})
        except WireError as error:
            raise DataError(f"{error}: calibrate again") from error
        if found.graph_level not in ("disabled", "basic", "extended", "all"):
            raise DataError(f"graph_level is {found.graph_level!r}: calibrate again")
        return found

    def caches(self) -> Caches:
        return Caches(self.cache_bytes, self.near_bytes)

    def to_json(self) -> str:
        """Return the document that `parse_calibration` reads, its digest included."""
        body = asdict(self)
        return json.dumps({**body, "digest": seal_of(body)})

    def _works(self) -> list[Work]:
        return [work for work, _ in self.samples] + [node for one in self.references for node in one.nodes]


def read_calibration(path: Path) -> Calibration:
    """Return the calibration in the file at `path`; raise DataError naming what is wrong with it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: no calibration can be read there ({error.strerror})") from error
    return parse_calibration(data, str(path))


def parse_calibration(data: bytes | str, where: str = "calibration") -> Calibration:
    """Return the calibration that `to_json` wrote; raise DataError naming `where` and what is wrong with it."""
    try:
        body = json.loads(data)
        digest, schema = body.pop("digest"), body["schema"]
        if schema != SCHEMA:
            raise DataError(f"its schema is {schema!r}, this edgeml reads {SCHEMA}: calibrate again")
        if digest != seal_of(body):
            raise DataError("it was changed or cut off since it was written: calibrate again")
        samples = tuple((Work(**work), ms) for work, ms in body.pop("samples"))
        references = tuple(
            Reference(name=str(one["name"]), ms=one["ms"], nodes=tuple(Work(**node) for node in one["nodes"]))
            for one in body.pop("references")
        )
        doubts = tuple(body.pop("doubts"))
        return Calibration(samples=samples, references=references, doubts=doubts, **body)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    except _FAULTS as error:
        what = f"{type(error).__name__}: {error}"[:200]
        raise DataError(f"{where}: not a calibration of edgeml ({what}): calibrate again") from error


def seal_of(body: Mapping[str, Any]) -> str:
    """Return the digest that a document of these values carries."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
