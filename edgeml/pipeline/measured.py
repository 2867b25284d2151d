"""What devices of the fleet have measured, as the rest of the product sees it: board -> variant -> Measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgeml.artifacts import Measurement
from edgeml.registry import DeviceMeasurement, Registry


def measurements_for(
    registry: Registry, digests: Mapping[str, str] | Iterable[str], *, board: str = "", threads: int = 0
) -> Mapping[str, Mapping[str, Measurement]]:
    """Return board -> variant -> the newest measurement on a real device of graphs with these digests.

    One that is valid goes before a newer one that is not. A variant is named as `digests` names it, where that is a
    mapping from digest to name, else as it was when it was measured. `board` and `threads`, where given, are asked
    for; with `threads` only what was asked one row at a time, as predictions are.
    """
    names = digests if isinstance(digests, Mapping) else {}
    found: dict[str, dict[str, Measurement]] = {}
    for one in registry.benches.measurements(list(digests), board=board):
        if threads and (one.document["settings"].get("threads", 1), *_asked(one)) != (threads, "single-stream", 1):
            continue
        here, name = found.setdefault(one.board, {}), names.get(one.digest, one.variant)
        if name not in here or (one.document["valid"] and not here[name].valid):
            here[name] = measurement_of(one, name)
    return found


def _asked(one: DeviceMeasurement) -> tuple[str, int]:
    return one.document.get("scenario", "single-stream"), one.document.get("rows", 1)


def measurement_of(one: DeviceMeasurement, variant: str = "") -> Measurement:
    """Return a stored measurement as the artifact; its environment says which device it was."""
    where = {"device": one.device, "board": one.board, "hardware": dict(one.hardware)}
    return measurement(variant or one.variant, one.document, where)


def measurement(variant: str, told: Mapping[str, Any], where: Mapping[str, Any] | None = None) -> Measurement:
    """Return the artifact of `told`, a document of `edgeml_runtime.measure.Benchmark.plain()`."""
    low, high = told["ci95_ms"]
    return Measurement(
        variant,
        told["p50_ms"],
        told["p90_ms"],
        told["p99_ms"],
        told["n"],
        (low, high),
        told["valid"],
        told["why"],
        tuple(told.get("samples_ms", ())),
        {**told.get("environment", {}), **(where or {})},
        told,
    )
