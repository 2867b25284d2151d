"""Tables into data sets that a model may be judged on.

    project -> load -> Dataset        new file + manifest -> read_rows -> Rows

The one rule: no row, group or statistic of the test set is ever seen by fitting or selection. The doors open on
demand, so that asking for a digest costs no pandas.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgeml.data.fingerprint import source_digest

if TYPE_CHECKING:
    from edgeml.data.dataset import load
    from edgeml.data.first_project import guess
    from edgeml.data.new_rows import read_arrays, read_rows

__all__ = ["guess", "load", "read_arrays", "read_rows", "source_digest"]

DOORS = {
    "load": "edgeml.data.dataset",
    "guess": "edgeml.data.first_project",
    "read_rows": "edgeml.data.new_rows",
    "read_arrays": "edgeml.data.new_rows",
}


def __getattr__(name: str) -> Any:
    """Open the door `name`, importing the module behind it."""
    if name not in DOORS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(DOORS[name]), name)
