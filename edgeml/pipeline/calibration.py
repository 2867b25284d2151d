"""Calibrations on disk: made by `edgeml devices calibrate`, found again by the name of their board.

They lie in EDGEML_DEVICES, or where the user's configuration lies; an unfinished one is a journal that goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeml import bench
from edgeml.artifacts import Rows
from edgeml.devices import devices_folder, find_board
from edgeml.errors import NotFound
from edgeml.files import write_atomic
from edgeml_runtime.session import allowed_threads
from edgeml_runtime.wire.manifest import Settings

THIS_MACHINE = "this-machine"


def calibration_path(board: str, threads: int = 1) -> Path:
    """Return where the calibration of `board` for sessions of so many threads lies."""
    return devices_folder() / f"{board}{f'.{threads}-threads' if threads > 1 else ''}.calibration.json"


def find_calibration(board: str, threads: int = 1) -> bench.Calibration | None:
    """Return the calibration of `board` for so many threads, or None; raise DataError when its file is corrupt."""
    path = calibration_path(board, threads)
    return bench.read_calibration(path) if path.exists() else None


def known_of(board: str, *, rows: Rows, threads: int = 1) -> bench.Known:
    """Return all that is known of `board`; raise NotFound when that is nothing. `rows` hold one query of the model."""
    calibration = find_calibration(board, threads)
    if board == THIS_MACHINE:
        if calibration is None:
            raise NotFound(
                f"this machine is not calibrated for {threads} thread{'s' * (threads > 1)} yet: run "
                f"`edgeml devices calibrate --local --threads {threads}`, it takes some minutes"
            )
        return bench.Known(calibration=calibration, rows=rows, threads=threads)
    return bench.Known(profile=find_board(board), calibration=calibration, rows=rows, threads=threads)


def keep_calibration(found: bench.Calibration) -> Path:
    """Write `found` where `find_calibration` looks, and return that."""
    path = calibration_path(found.device, found.session_settings().threads)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, found.to_json().encode())
    return path


def calibrate_here(
    *,
    board: str = THIS_MACHINE,
    threads: Sequence[int] = (),
    force: bool = False,
    progress: Callable[[int, int, str], None],
    scope: bench.Scope = bench.WHOLE,
) -> list[dict[str, Any]]:
    """Calibrate this machine, or go on where that was interrupted; return what each number of threads gave.

    None given: one thread, and one per core that this process may use.
    """
    wanted = tuple(threads) or tuple(sorted({1, allowed_threads(1024)}))
    settings = [Settings(threads=one) for one in wanted]
    return [
        calibrate_device(bench.Here(one), one, board=board, force=force, progress=progress, scope=scope)
        for one in settings
    ]


def calibrate_device(
    device: bench.Device,
    settings: Settings,
    *,
    board: str,
    label: str = "",
    force: bool,
    progress: Callable[[int, int, str], None],
    scope: bench.Scope = bench.WHOLE,
) -> dict[str, Any]:
    """Calibrate `device` as `board`, or go on where that was interrupted, and return what it gave.

    `label` tells the journals of several devices of one board apart.
    """
    path = calibration_path(board, settings.threads)
    journal = path.with_suffix(f".{label}.journal" if label else ".journal")
    journal.parent.mkdir(parents=True, exist_ok=True)
    if force:
        journal.unlink(missing_ok=True)
    began = time.monotonic()
    found = bench.calibrate(device, name=board, settings=settings, journal=journal, progress=progress, scope=scope)
    keep_calibration(found)
    journal.unlink(missing_ok=True)
    return {"calibration": str(path), "seconds": time.monotonic() - began, **summary(found)}


def summary(found: bench.Calibration) -> dict[str, Any]:
    """Return what a calibration is worth: every reference net predicted by what the others say."""
    kernels = bench.Kernels(found)
    ratios = kernels.left_out()
    return {
        "board": found.device,
        "threads": found.session_settings().threads,
        "samples": len(found.samples),
        "classes": len(kernels.models),
        "references": ratios,
        "median_error": float(np.median([abs(ratio - 1) for ratio in ratios.values()])) if ratios else None,
        "doubts": list(found.doubts),
        "environment": dict(found.environment),
    }
