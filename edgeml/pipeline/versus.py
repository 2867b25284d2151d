"""`edgeml bench compare`: two models measured here in turns, or two results that were measured before."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from edgeml import bench
from edgeml.artifacts import Variant
from edgeml.errors import DataError, NotFound, VerificationError
from edgeml.pipeline.benchmark import subject
from edgeml.report import CONDITIONS, ratio95
from edgeml_runtime.measure import Plan, Versus, versus
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import Settings

MOST_RESULT_BYTES = 64 << 20


def compare_paths(
    a: Path, b: Path, *, threads: int, seconds: float, progress: Callable[[str, str], None]
) -> dict[str, Any]:
    """Return times, ratio, interval and verdict of B against A; both are models or bundles, or both results.

    Raises VerificationError for results measured under other conditions, DataError for a mix of the two kinds.
    """
    kinds = [path.suffix == ".json" for path in (a, b)]
    if kinds[0] != kinds[1]:
        raise DataError(f"{a.name} and {b.name}: give two models, or two results of `bench -o`")
    if kinds[0]:
        return _stored(a, b)
    progress("compare", f"{a.name} and {b.name} in turns")
    sides = [_side(path, threads) for path in (a, b)]
    found = versus(sides[0], sides[1], Plan(min_s=seconds, max_s=10 * seconds))
    return _document(found, a, b)


def _side(path: Path, threads: int) -> tuple[Session, Mapping[str, Any]]:
    """Return a session and one query of the model at `path`, which may be BUNDLE:VARIANT."""
    folder, _, name = str(path).partition(":")
    models, rows = subject(Path(folder) if name and not path.exists() else path, (name,) if name else ())
    if len(models) > 1:
        raise NotFound(f"{path} has {len(models)} variants: name one, like {path}:{next(iter(models))}")
    recipe, model = next(iter(models.items()))
    variant = Variant(model, recipe, model.digest)
    return Session(model.data, Settings(threads=threads)), bench.one_query(variant, rows)


def _stored(a: Path, b: Path) -> dict[str, Any]:
    left, right = _result(a), _result(b)
    _refuse_unmatched(a, left, b=b, right=right)
    ratio, low, high = ratio95(left, right)  # wider than a comparison in turns
    found = Versus(
        a_ms=left["p50_ms"],
        b_ms=right["p50_ms"],
        ratio=ratio,
        ratio95=(low, high),
        pairs=0,
        valid=True,
        why="",
        environment=right["environment"],
    )
    return _document(found, a, b)


def _document(found: Versus, a: Path, b: Path) -> dict[str, Any]:
    apart = "" if found.pairs else "; measured apart: measure the models in turns for a narrower interval"
    return {
        "a": {"name": str(a), "p50_ms": found.a_ms},
        "b": {"name": str(b), "p50_ms": found.b_ms},
        "ratio": found.ratio,
        "ratio95": list(found.ratio95),
        "pairs": found.pairs,
        "valid": found.valid,
        "why": found.why,
        "verdict": found.verdict(*((a.name, b.name) if a.name != b.name else ("A", "B"))) + apart,
        "environment": dict(found.environment),
    }


def _refuse_unmatched(a: Path, left: Mapping[str, Any], *, b: Path, right: Mapping[str, Any]) -> None:
    """Raise VerificationError when two results cannot be held against each other."""
    for path, one in ((a, left), (b, right)):
        if not one["valid"]:
            raise VerificationError(f"{path} is INVALID ({one['why']}): measure it again")
    for name in ("scenario", "rows", "settings"):
        if left[name] != right[name]:
            raise VerificationError(f"{name}: {left[name]} in {a.name}, {right[name]} in {b.name}: measure both alike")
    for name in CONDITIONS:
        one, other = left["environment"].get(name), right["environment"].get(name)
        if one != other:
            raise VerificationError(f"{name}: {one} in {a.name}, {other} in {b.name}: measure both on one machine")


def _result(path: Path) -> Mapping[str, Any]:
    """Return what was measured in the document at `path`; raise DataError when it is none."""
    try:
        if path.stat().st_size > MOST_RESULT_BYTES:
            raise ValueError(f"{path.stat().st_size:,} bytes")
        document = json.loads(path.read_bytes())
        measured = document["measured"]
        needed = {"p50_ms", "ci95_ms", "valid", "why", "scenario", "rows", "settings", "environment"}
        if missing := needed - measured.keys():
            raise ValueError(f"no {', '.join(sorted(missing))}")
    except OSError as error:
        raise NotFound(f"{path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no result of `edgeml bench -o` that was measured: {error}") from error
    found: Mapping[str, Any] = measured
    return found
