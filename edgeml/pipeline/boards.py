"""New boards, made of what a device says of itself: in a file, on this machine, or to its server."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from time import gmtime, strftime
from typing import Any

from edgeml.devices import DeviceProfile, add_board, profile_of
from edgeml.errors import NotFound, ProjectError
from edgeml.registry import DeviceRecord, Registry
from edgeml_runtime.measure import describe

MAX_REPORT_BYTES = 1 << 20


def add_from_file(name: str, path: Path, *, force: bool = False) -> tuple[DeviceProfile, Path]:
    """Add the board that the report of `edgeml-agent hardware` at `path` describes; return it and its file."""
    try:
        if path.stat().st_size > MAX_REPORT_BYTES:
            raise ProjectError(
                f"{path}: {path.stat().st_size:,} bytes are no report: it has {MAX_REPORT_BYTES:,} at most"
            )
        report = json.loads(path.read_bytes())
    except OSError as error:
        raise ProjectError(f"{path}: {error.strerror}; write it with `edgeml-agent hardware > {path.name}`") from error
    except (ValueError, RecursionError) as error:
        raise ProjectError(
            f"{path}: not JSON ({error}); write it with `edgeml-agent hardware > {path.name}`"
        ) from error
    if not isinstance(report, dict):
        raise ProjectError(f"{path}: no JSON object; write it with `edgeml-agent hardware > {path.name}`")
    return _add(profile_of(report, name=name), force)


def add_local(name: str, *, force: bool = False) -> tuple[DeviceProfile, Path]:
    """Add this machine as a board; return it and its file."""
    return _add(profile_of(describe(), name=name, by=os.uname().nodename), force)


def add_from_fleet(name: str, device: str, registry: Path, *, force: bool = False) -> tuple[DeviceProfile, Path]:
    """Add the board of a device that has reported to the server of `registry`; return it and its file."""
    records = {record.id: record for record in Registry.open(registry).devices()}
    if device not in records:
        raise NotFound(f"no device {device!r} has reported to {registry}; it knows {', '.join(records) or 'none'}")
    return _add(profile_of(_report_of(records[device]), name=name, by=device), force)


def _add(board: DeviceProfile, force: bool) -> tuple[DeviceProfile, Path]:
    return board, add_board(board, force=force)


def _report_of(record: DeviceRecord) -> dict[str, Any]:
    """Return the hardware that a device told its server, in the form that the device itself would print."""
    told: Mapping[str, str] = record.reported.hardware if record.reported else {}
    kinds = told.get("cpu_parts", "").split()
    implementer, _, part = (kinds[0] if len(kinds) == 1 else "").partition("/")
    cluster = {
        "cores": _whole(told.get("cores")) if len(kinds) < 2 else None,
        "implementer": implementer or None,
        "part": part or None,
        "name": told.get("cpu_model") or ("several kinds of core" if len(kinds) > 1 else None),
        "max_frequency_khz": _whole(told.get("max_frequency_khz")),
    }
    return {
        "at": strftime("%Y-%m-%d", gmtime(record.last_seen)),
        "arch": told.get("machine"),
        "model": told.get("board"),
        "clusters": [{key: value for key, value in cluster.items() if value is not None}],
        "features": told["cpu_features"].split() if "cpu_features" in told else None,
        "memory_bytes": _whole(told.get("memory_bytes")),
        "onnxruntime": told.get("onnxruntime"),
    }


def _whole(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 20 else None
