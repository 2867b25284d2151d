"""What every compile script shares: the folder of the model, its rows, and the answer to the benchmark.

    PYTHON -m benchmarks.peers.SCRIPT FOLDER -> a last line of {"files": [{"peer", "path", "engine", ..}]}

`seconds` counts from the start of the process, imports included, as a user waits for it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
STOCK = "stock.onnx"
LONGEST = 140  # characters of an error


def age() -> float:
    """Return the seconds since this process was started."""
    started = int(Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19])
    now = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
    return now - started / os.sysconf("SC_CLK_TCK")


def rows(part: str) -> dict[str, np.ndarray]:
    """Return the arrays of `part`: calibration or test."""
    with np.load(FOLDER / f"{part}.npz") as file:
        return {name: file[name] for name in file.files}


def info() -> dict[str, Any]:
    """Return what is known of the model."""
    facts: dict[str, Any] = json.loads((FOLDER / "info.json").read_text(encoding="utf-8"))
    return facts


class Result:
    """The files that a script makes, or why it made none."""

    def __init__(self) -> None:
        self.files: list[dict[str, Any]] = []
        self._imports = age()

    def make(self, peer: str, engine: str, *, to: str, by: Callable[[Path], Any]) -> None:
        """Let `by` write the file `to`; an error of any kind is the peer's result."""
        path, start = FOLDER / to, time.perf_counter()
        why = ""
        try:
            by(path)
        except Exception as error:  # whatever the peer raises
            said = " ".join(str(error).split())
            why = f"{type(error).__name__}: {said if len(said) < LONGEST else '.. ' + said[-LONGEST:]}"  # the end tells
        self.add(peer, engine, path=path, seconds=self._imports + time.perf_counter() - start, why=why)

    def add(self, peer: str, engine: str, *, path: Path, seconds: float, why: str = "") -> None:
        """Note one file."""
        found = {"peer": peer, "engine": engine, "path": str(path), "seconds": round(seconds, 3), "why": why}
        self.files.append(found)

    def tell(self) -> None:
        """Print the answer."""
        print(json.dumps({"files": self.files}), flush=True)
