"""Olive by its command line: `quantize` to int8 and `auto-opt` for the CPU, as its documentation says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.peers.job import FOLDER, STOCK, Result

os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
COMMANDS = {
    "Olive quantize": ["quantize", "--implementation", "ort", "--precision", "int8"],
    "Olive auto-opt": ["auto-opt", "--device", "cpu", "--provider", "CPUExecutionProvider", "--precision", "int8"],
}


def run(command: list[str], path: Path) -> None:
    """Run one command of Olive and keep the graph that it wrote."""
    folder = path.with_suffix("")
    shutil.rmtree(folder, ignore_errors=True)
    program = [sys.executable, "-m", "olive", *command, "-m", str(FOLDER / STOCK), "-o", str(folder)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False, cwd=FOLDER)
    written = sorted(folder.rglob("*.onnx"))
    if not written:
        raise RuntimeError((done.stderr or done.stdout).strip()[-300:] or "no graph was written")
    shutil.copy(written[0], path)
    for data in folder.rglob("*.onnx.data"):
        shutil.copy(data, path.parent / data.name)


if __name__ == "__main__":
    result = Result()
    for peer, command in COMMANDS.items():
        name = peer.lower().replace(" ", "-") + ".onnx"
        result.make(peer, "onnxruntime", to=name, by=lambda path, command=command: run(command, path))  # type: ignore[misc]
    result.tell()
