"""Calibrations on disk: made by `edgeml devices calibrate`, found again by the name of their board.

They lie in EDGEML_DEVICES, or where the user's configuration lies; an unfinished one is a journal that goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeml import bench
from edgeml.artifacts import Rows
from edgeml.devices import devices_folder, find_board
from edgeml.errors import NotFound
from edgeml.files import write_atomic
from edgeml_runtime.wire.manifest import Settings

THIS_MACHINE = "this-machine"


def find_calibration(board: str) -> bench.Calibration | None:
    """Return the calibration of `board` if there is one; raise DataError when its file is corrupt."""
    path = devices_folder() / f"{board}.calibration.json"
    return bench.read_calibration(path) if path.exists() else None


def known_of(board: str, *, rows: Rows, threads: int = 1) -> bench.Known:
    """Return all that is known of `board`; raise NotFound when that is nothing. `rows` hold one query of the model."""
    calibration = find_calibration(board)
    if board == THIS_MACHINE:
        if calibration is None:
            raise NotFound(
                "this machine is not calibrated yet: run `edgeml devices calibrate --local`, it takes a minute"
            )
        return bench.Known(calibration=calibration, rows=rows, threads=threads)
    return bench.Known(profile=find_board(board), calibration=calibration, rows=rows, threads=threads)


def calibrate_here(
    *, board: str = THIS_MACHINE, threads: int = 1, force: bool = False, progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Calibrate this machine, or go on where that was interrupted, and return what it gave."""
    folder = devices_folder()
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / f"{board}.calibrating.jsonl"
    if force:
        journal.unlink(missing_ok=True)
    began, settings = time.monotonic(), Settings(threads=threads)
    found = bench.calibrate(bench.Here(settings), name=board, settings=settings, journal=journal, progress=progress)
    path = folder / f"{board}.calibration.json"
    write_atomic(path, found.to_json().encode())
    journal.unlink(missing_ok=True)
    kernels = bench.Kernels(found)
    ratios = {one.name: kernels.forecast(one.nodes).ms / one.ms for one in found.references}
    return {
        "board": board,
        "calibration": str(path),
        "seconds": time.monotonic() - began,
        "samples": len(found.samples),
        "classes": len(kernels.models),
        "references": ratios,
        "median_error": float(np.median([abs(ratio - 1) for ratio in ratios.values()])),
        "doubts": list(found.doubts),
        "environment": dict(found.environment),
    }
