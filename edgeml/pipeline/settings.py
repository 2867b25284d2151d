"""Session settings that won a search, written into a bundle: another release of the same graphs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from edgeml import bundle
from edgeml.errors import DataError
from edgeml.files import MANIFEST, read_bundle, write_atomic, write_bundle
from edgeml.pipeline.plan import SUMMARY
from edgeml.registry import Registry
from edgeml_runtime.wire.manifest import Settings


def keep_settings(path: Path, settings: Mapping[str, Settings], *, registry: Path, board: str = "") -> str:
    """Write the bundle at `path` anew with `settings` by variant, for `board` or for all; return its release.

    It is signed and registered as a release of its own, so that it can be deployed and rolled back like any other.
    Raises DataError as `check_keepable` does.
    """
    check_keepable(path)
    summary = path.parent / SUMMARY
    changed = bundle.with_settings(read_bundle(path), settings, board=board)
    told = json.loads(summary.read_text(encoding="utf-8")) | {"release": changed.manifest.release}
    shelf = Registry.open(registry)
    try:
        write_bundle(path, changed, shelf.signing_key())
        release = shelf.add_release(changed, summary=told, run_dir=str(path.parent))
    finally:
        shelf.close()
    write_atomic(summary, json.dumps(told, indent=1).encode())
    return release.release


def check_keepable(path: Path) -> None:
    """Raise DataError where `path` is no bundle in the folder of a run: asked before the long work."""
    if not (path / MANIFEST).is_file() or not (path.parent / SUMMARY).is_file():
        raise DataError(f"{path} is not the bundle of a run: only what `build` or `compile` made keeps settings")
