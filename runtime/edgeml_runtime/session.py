"""One loaded model: a file in, checked arrays through, named arrays out; on onnxruntime, or on numpy where that is all.

Importing this opens neither: a file that holds a numpy program needs no onnxruntime, and a board that has none can
still import, serve such programs, and say in one sentence why it cannot serve others.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.errors import ModelRefused
from edgeml_runtime.plain_operators import OPERATORS
from edgeml_runtime.plain_program import PlainEngine, Program, Step, is_program, write_program
from edgeml_runtime.wire.manifest import Settings, TensorSpec

__all__ = [
    "DEFAULTS",
    "LIKE",
    "OPERATORS",
    "THREAD_RULE",
    "VERSION",
    "Program",
    "Session",
    "Settings",
    "Step",
    "allowed_threads",
    "is_program",
    "write_program",
]
THREAD_RULE = "one thread, unless a release's benchmark chose more; never more than the affinity mask allows"
# machine -> passes that it has not, session entries that are its defaults: how onnxruntime 1.32 on aarch64 makes
# another graph than on x86-64, which blocks the layout of float convolutions and keeps signed QDQ pairs as they are
LIKE: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "aarch64": (("NchwcTransformer",), {"session.qdqisint8allowed": "1"})
}
DEFAULTS = Settings()
Arrays = dict[str, np.ndarray]


def installed() -> str:
    """Return the version of onnxruntime that is installed here, "" where there is none."""
    try:
        return metadata.version("onnxruntime")
    except metadata.PackageNotFoundError:
        return ""


VERSION = installed()


def allowed_threads(threads: int) -> int:
    """Return `threads` within 1 and the cores this process may use (onnxruntime itself ignores cpusets)."""
    return max(1, min(threads, len(os.sched_getaffinity(0))))


class Session:
    """A loaded model. `run` may be called by several threads at once, `predict` by one at a time.

    `run` takes arrays by name and returns every output by name; `predict` takes one row of a model with one input, and
    is the hot path of small models: on onnxruntime the arrays returned are the session's own buffers, so copy what you
    keep. Both raise ShapeMismatch for what does not fit, and are the engine's own methods, so that nothing is between.
    """

    run: Callable[[Mapping[str, np.ndarray]], Arrays]
    predict: Callable[[np.ndarray], Arrays]

    def __init__(
        self,
        path: str | Path | bytes,
        settings: Settings = DEFAULTS,
        *,
        profile: str = "",
        optimized: str = "",
        like: str = "",
    ) -> None:
        """Load the model at `path` (or in these bytes); raise ModelRefused when this device cannot.

        `profile` and `optimized` are written to: onnxruntime's own profile (a prefix), and the graph as it runs.
        With `like` "aarch64" the graph is the one that such a machine runs, on whatever machine this is.
        """
        self.plain = is_program(path)
        self._engine: Any = (
            PlainEngine(path)
            if self.plain
            else _onnxruntime(path, settings, profile=profile, optimized=optimized, like=like)
        )
        self.run, self.predict = self._engine.run, self._engine.predict
        self.threads: int = self._engine.threads
        self.inputs: tuple[TensorSpec, ...] = self._engine.inputs
        self.outputs: tuple[TensorSpec, ...] = self._engine.outputs

    def end_profile(self) -> Path:
        """Return the file of the profile that was asked for; nothing more is recorded."""
        found: Path = self._engine.end_profile()
        return found


def _onnxruntime(path: str | Path | bytes, settings: Settings, **more: str) -> Any:
    try:
        module = importlib.import_module("edgeml_runtime.ort_session")
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ModelRefused(
            "onnxruntime is not installed here, so only numpy programs run: add `numpy` to the release's precisions, "
            "or install a 64-bit system"
        ) from error
    return module.OrtEngine(path, settings, **more)
