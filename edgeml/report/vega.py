"""Vega, Vega-Lite and Vega-Embed as one script, out of the package vl-convert.

Bundling takes some seconds, so what it gives is kept in the user's cache, by the package's version.
"""

from __future__ import annotations

import contextlib
import functools
import os
from importlib.metadata import version
from pathlib import Path

import vl_convert

from edgeml.files import write_atomic

DOOR = "window.vegaEmbed = vegaEmbed;"


@functools.cache
def vega() -> str:
    """Return a classic script that sets `window.vegaEmbed`."""
    path = _cache() / f"vega-{version('vl-convert-python')}.js"
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    made = f"(() => {{\n{vl_convert.javascript_bundle(DOOR)}\n}})();"
    with contextlib.suppress(OSError):  # a home that cannot be written: it is made anew the next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, made.encode())
    return made


def _cache() -> Path:
    """Return EDGEML_CACHE, else edgeml's folder among the user's caches."""
    if own := os.environ.get("EDGEML_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edgeml"
