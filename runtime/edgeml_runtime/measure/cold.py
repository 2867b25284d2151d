"""A process's first inference, from nothing: what a device pays after a restart, and what it then holds in memory.

Each start is a real new process. Its files come from the page cache: dropping that needs root and would
slow everybody else down, so a first start after boot takes longer than this says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgeml_runtime.children import ended_by
from edgeml_runtime.errors import ModelRefused
from edgeml_runtime.session import DEFAULTS
from edgeml_runtime.sidefile import placed
from edgeml_runtime.wire.manifest import Settings

TIMEOUT_S = 120.0
CHILD = "edgeml_runtime.first_answer"  # not in this package, whose import is a part of what is measured


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Medians over several starts; milliseconds and megabytes (10^6). Memory is of the whole process."""

    process_ms: float  # until the interpreter runs our first line
    import_ms: float  # onnxruntime and numpy
    session_ms: float  # the file, until it can answer
    first_ms: float  # the first answer
    peak_mb: float
    steady_mb: float  # resident after some answers
    anonymous_mb: float  # of it, what no file backs: the part that a full memory cannot drop
    bare_mb: float  # resident before the model was loaded: the runtime itself
    starts: int


def cold_start(
    model: str | Path | bytes, feeds: Mapping[str, np.ndarray], *, starts: int = 3, settings: Settings = DEFAULTS
) -> ColdStart:
    """Return what `starts` new processes needed to answer `feeds` with `model`; raise ModelRefused when one cannot."""
    with tempfile.TemporaryDirectory() as folder, placed(model, settings) as source:
        path = Path(folder) / "model.onnx" if isinstance(source, bytes) else Path(source)
        if isinstance(source, bytes):
            path.write_bytes(source)
        rows = Path(folder) / "rows.npz"
        np.savez(rows, **{name: _plain(array) for name, array in feeds.items()})  # type: ignore[arg-type]
        found = [_start(path, rows, settings) for _ in range(starts)]
    medians = {name: float(np.median([one[name] for one in found])) for name in found[0]}
    return ColdStart(**medians, starts=starts)


def _start(model: Path, rows: Path, settings: Settings) -> dict[str, float]:
    command = [sys.executable, "-m", CHILD, str(model), str(rows), json.dumps(asdict(settings))]
    before = time.monotonic()  # the one clock that two processes share and nobody can set
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False, env=_env())
    except subprocess.TimeoutExpired as error:
        raise ModelRefused(f"the first answer takes more than {TIMEOUT_S:.0f} s in a new process") from error
    if done.returncode < 0:
        raise ModelRefused(f"the model ended a new process by {ended_by(-done.returncode)[1]}")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        if "bad_alloc" in last or "MemoryError" in last or "allocate memory" in last:
            last = f"{model.stat().st_size:,} bytes of model need more memory than is free here: {last}"
        raise ModelRefused(f"a new process cannot answer: {last[:300]}")
    told: dict[str, float] = json.loads(done.stdout)
    return told | {"process_ms": max(0.0, (told["process_ms"] - before) * 1e3)}


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _plain(array: np.ndarray) -> np.ndarray:
    """Return strings in a type that is saved without pickle."""
    return array.astype(str) if array.dtype == object else array
