"""What compression lost in the last round, kept on this device's disk until the next one.

One safetensors file per round, named by its id (`<federation>-<number>`). A round that is trained again, after a power
cut or a lost upload, starts from what the round *before* it left: nothing is added twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from edgeml_runtime.config import write_atomic
from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.wire import tensors

SUFFIX = ".safetensors"


class Feedback:
    """The residuals in `folder`: at most two rounds of one federation."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, round_id: str) -> dict[str, np.ndarray]:
        """Return what the newest round before `round_id` left; {} when there is none, or its file is damaged."""
        run, number = _named(round_id)
        earlier = [path for path in self._files() if _named(path.stem)[0] == run and _named(path.stem)[1] < number]
        if not earlier:
            return {}
        try:
            return tensors.unpack(max(earlier, key=lambda path: _named(path.stem)[1]).read_bytes())
        except (MalformedMessage, OSError):
            return {}  # an update without its feedback is right, a little later

    def after(self, round_id: str, residual: Mapping[str, np.ndarray]) -> None:
        """Keep what `round_id` left, and of the others only the round before it; raise StorageFull."""
        run, number = _named(round_id)
        self._folder.mkdir(parents=True, exist_ok=True)
        write_atomic(self._folder / (round_id + SUFFIX), tensors.pack(residual))
        ours = sorted(n for r, n in map(_named, (path.stem for path in self._files())) if r == run and n < number)
        for path in self._files():
            if path.stem != round_id and _named(path.stem) != (run, ours[-1] if ours else -1):
                path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return list(self._folder.glob("*" + SUFFIX)) if self._folder.is_dir() else []


def _named(round_id: str) -> tuple[str, int]:
    run, _, number = round_id.rpartition("-")
    return (run, int(number)) if number.isdecimal() else (round_id, 0)
