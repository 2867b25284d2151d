"""`edgeml` in processes that are born with the libraries imported: an import takes seconds, a fork none.

    words, environment, folder -> run -> exit code, output, errors

What forks has imported the libraries and nothing of edgeml: every command imports edgeml anew, in its own order, and
ends as Python ends.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Ending = tuple[int, str, str]  # exit code, output, errors
LIBRARIES = (
    "edgeml_runtime",  # first: it sets what onnxruntime and numpy read when they are imported
    *("numpy", "pandas", "scipy.stats", "onnx", "onnxruntime", "skl2onnx", "sqlalchemy.orm", "pydantic", "jinja2"),
    *("sklearn.datasets", "sklearn.ensemble", "sklearn.model_selection", "sklearn.neural_network", "sklearn.pipeline"),
    *("rich.console", "rich.table", "yaml", "cryptography.hazmat.primitives.asymmetric.ed25519"),
)
# on one core a search stays in its process: on tables of a test's size, two more take longer to start than they save
ONE_CORE = {"LOKY_MAX_CPU_COUNT": "1"}


def run(words: Sequence[str], *, env: Mapping[str, str], cwd: Path, timeout: float = 240) -> Ending:
    """Return how `edgeml` ended with these words, in a process of its own."""
    forge = the_forge()
    assert forge.stdin is not None and forge.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        said = [Path(folder) / "out", Path(folder) / "err"]
        order = {"words": list(words), "env": {**ONE_CORE, **env}, "cwd": str(cwd), "said": list(map(str, said))}
        forge.stdin.write(json.dumps(order).encode() + b"\n")
        forge.stdin.flush()
        if not select.select([forge.stdout], [], [], timeout)[0]:
            os.killpg(forge.pid, signal.SIGKILL)
            the_forge.cache_clear()
            raise TimeoutError(f"no end of edgeml {' '.join(words)} within {timeout} s: {said[1].read_text()}")
        code = int(forge.stdout.readline())
        out, err = (path.read_text(encoding="utf-8") for path in said)
        return code, out, err


@functools.cache
def the_forge() -> subprocess.Popen[bytes]:
    """Return the process that all others of this one are forked from, one at a time; it ends with its input."""
    own = [sys.executable, __file__]
    return subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def _orders() -> dict[str, Any] | None:
    """Fork for every order that is read: return it in the child, None in the parent once there are no more."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            order: dict[str, Any] = json.loads(line)
            return order
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def _become(order: dict[str, Any]) -> None:
    places = [os.open(os.devnull, os.O_RDONLY), *(os.open(path, os.O_WRONLY | os.O_CREAT) for path in order["said"])]
    for number, place in enumerate(places):
        os.dup2(place, number)
        os.close(place)
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"])
    sys.path.insert(0, order["cwd"])  # as `python -m` does
    sys.argv = ["edgeml", *order["words"]]
    runpy.run_module("edgeml", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file
    for library in LIBRARIES:
        importlib.import_module(library)
    if taken := _orders():
        _become(taken)
