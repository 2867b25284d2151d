"""Run a graph once in a child process under limits, where only running it can tell what it asks for.

    bytes, rows -> refuse_unbounded      python -m edgeml.convert.trial MODEL ROWS MEMORY SECONDS

Loops until a condition and shapes that depend on data cannot be bounded by reading the graph: a child with its memory
and its time bounded loads it and answers one row, and whatever becomes of the child is an answer here.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from edgeml.errors import UnsupportedModel
from edgeml_runtime.session import Session
from edgeml_runtime.wire import DeviceError, tensors

SECONDS = 10  # of processor time for one row: no board waits that long
MEMORY = 4 << 30  # bytes, besides ten times the model's own: no board has more
REFUSED, STARVED = 3, 4  # exit codes of the child
SIGNS = ("bad_alloc", "allocate memory", "bfc_arena")  # onnxruntime, out of memory


def refuse_unbounded(
    data: bytes, row: Mapping[str, np.ndarray], name: str, *, seconds: int = SECONDS, memory: int = MEMORY
) -> None:
    """Raise UnsupportedModel when the graph in `data` cannot answer `row` within `seconds` and `memory`."""
    memory += 10 * len(data)
    with tempfile.TemporaryDirectory() as folder:
        model, rows = Path(folder, "model.onnx"), Path(folder, "rows")
        model.write_bytes(data)
        rows.write_bytes(tensors.pack(row))
        command = [sys.executable, "-m", "edgeml.convert.trial", str(model), str(rows), str(memory), str(seconds)]
        try:
            done = subprocess.run(
                command, capture_output=True, timeout=2 * seconds + 30, check=False, stdin=subprocess.DEVNULL
            )
            code, said = done.returncode, done.stderr.decode(errors="replace").strip().splitlines()
        except subprocess.TimeoutExpired:
            code, said = -1, []
    if code == 0:
        return
    if code == STARVED:
        raise UnsupportedModel(
            f"{name} asks for more than {memory / 1e9:.1f} GB of memory for one row: no board has that, "
            f"make its loops or shapes smaller"
        )
    if code == REFUSED:
        raise UnsupportedModel(f"{name} cannot run on a device: {said[-1] if said else 'no reason given'}")
    raise UnsupportedModel(
        f"{name} did not answer one row of made-up values within {seconds} s, or crashed: "
        f"make its loops shorter, or export it without them"
    )


def main(arguments: Sequence[str]) -> int:
    """Run the child's side: limit this process, load the model, answer the row."""
    model, rows, memory, seconds = arguments
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory), int(memory)))
    try:
        session = Session(Path(model))
    except (MemoryError, DeviceError) as error:
        print(" ".join(str(error).replace(model, "it").split())[:240], file=sys.stderr)
        return STARVED if _starved(error) else REFUSED
    try:
        session.run(tensors.unpack(Path(rows).read_bytes()))
    except (MemoryError, DeviceError) as error:
        return STARVED if _starved(error) else 0  # rows that do not suit it ask for nothing
    return 0


def _starved(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
