"""The tensors of this device's own, by the model they are for: what FedPer and Ditto leave here, and nobody else sees.

A federation keeps them in `kept/` while its rounds last. The release that came of it names the federation in its signed
lineage; with that release they move into `personal/`, one file a model, which no task can read. There they stay for
every later release of the model, until those of a later federation take their place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgeml_runtime.config import Policy, read_json, write_atomic
from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.kept import KEEP_DAYS, SUFFIX, Held, Kept
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.manifest import Manifest
from edgeml_runtime.wire.tasks import OWN, SEEN, VARIATE

LINEAGE = "federation"  # in a manifest's lineage: "<run>: <rounds, devices and rows>"
RUN, TENSOR, TRYING = "run", "tensor.", ".trying"
TRIAL, UNFINISHED = "trial*.onnx", "*.new"  # left by a process that was killed: a graph with them in it, half a file
log = logging.getLogger(__name__)
_MODEL = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class Owned:
    """Parameters of a model by name, float32, and the federation in which they were learned here."""

    run: str
    arrays: dict[str, np.ndarray]


class OwnTensors:
    """One file a model in `folder`, each of at most `most` bytes.

    Without `kept` nothing is taken over. A process that does not hold the lock of the state folder `only_reads`: it
    counts no trials and notes no use.
    """

    def __init__(self, folder: Path, kept: Kept | None, *, most: int, only_reads: bool = False) -> None:
        self._folder, self._kept, self._most, self._only_reads = folder, kept, most, only_reads

    def has(self, manifest: Manifest) -> bool:
        """Return whether there is something for this release, whatever it is worth."""
        return self._path(manifest.model).is_file() or bool(self._waiting(manifest))

    def of(self, manifest: Manifest) -> Owned | None:
        """Return what there is for this release, None when there is nothing.

        Takes over what the release's own federation kept. Raises MalformedMessage when the disk has spoiled it.
        """
        if self._kept is not None and (waiting := self._waiting(manifest)):
            self._take_over(self._kept, waiting, manifest.model)
        path = self._path(manifest.model)
        if not path.is_file():
            return None
        if (size := path.stat().st_size) > self._most:
            raise MalformedMessage(f"{path.name} has {size:,} bytes; the owner's policy allows {self._most:,}")
        found = tensors.unpack(path.read_bytes())
        run = found.pop(RUN, None)
        if run is None or run.shape != (1,) or any(not name.startswith(TENSOR) for name in found):
            raise MalformedMessage(f"{path.name} is no file of this device's own tensors")
        return Owned(str(run[0]), {name.removeprefix(TENSOR): array for name, array in found.items()})

    def begun(self, model: str) -> int:
        """Return how many trials of these tensors began and did not end: the agent was killed in the middle."""
        count = read_json(self._trial(model)).get("begun", 0)
        return count if isinstance(count, int) else 0

    def begin(self, model: str) -> None:
        """Note, on the disk, that a trial begins."""
        if not self._only_reads:
            write_atomic(self._trial(model), json.dumps({"begun": self.begun(model) + 1}).encode())

    def end(self, model: str) -> None:
        """Note that the trial ended, whatever came of it."""
        if not self._only_reads:
            self._trial(model).unlink(missing_ok=True)

    def used(self, model: str) -> None:
        """Note that these tensors answer here: they stay KEEP_DAYS from now, or longer if they would have."""
        if self._only_reads:
            return
        path, now = self._path(model), time.time()
        with contextlib.suppress(OSError):  # forgotten meanwhile; a disk that cannot be written
            if path.stat().st_mtime < now:
                os.utime(path, (now, now))

    def held(self) -> list[Held]:
        """Return what is here, by model."""
        paths = sorted(self._folder.glob(f"*{SUFFIX}")) if self._folder.is_dir() else []
        found = [(path, path.stat()) for path in paths]
        return [Held(path.name.removesuffix(SUFFIX), stat.st_size, stat.st_mtime) for path, stat in found]

    def trial(self) -> Path:
        """Return where this process may write a graph with own tensors in it; `sweep` finds it if the process dies."""
        return self._folder / TRIAL.replace("*", f"-{os.getpid()}")

    def sweep(self) -> None:
        """Delete the copies of own tensors that processes left which were killed."""
        for pattern in (TRIAL, UNFINISHED):
            for path in self._folder.glob(pattern) if self._folder.is_dir() else ():
                path.unlink(missing_ok=True)

    def forget(self, model: str) -> None:
        """Delete what is here for `model`, and every copy that a killed process left."""
        self._path(model).unlink(missing_ok=True)
        self.end(model)
        self.sweep()

    def expire(self, now: float | None = None) -> None:
        """Delete what nobody learned or used for KEEP_DAYS."""
        limit = (time.time() if now is None else now) - KEEP_DAYS * 86_400
        for one in self.held():
            if one.changed < limit:
                log.warning("own tensors of %s: not used for %g days, deleted", one.run, KEEP_DAYS)
                self.forget(one.run)

    def _take_over(self, kept: Kept, run: str, model: str) -> None:
        arrays = parameters(kept.last(run))
        if arrays:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            named = {TENSOR + name: array for name, array in arrays.items()}
            write_atomic(self._path(model), tensors.pack({**named, RUN: np.array([run], dtype=object)}))
            self.end(model)
        kept.forget(run)

    def _waiting(self, manifest: Manifest) -> str:
        """Return the federation that `manifest` came of, if it has kept something here."""
        run = manifest.lineage.get(LINEAGE, "").partition(":")[0]
        return run if self._kept and any(one.run == run for one in self._kept.held()) else ""

    def _path(self, model: str) -> Path:
        if not _MODEL.fullmatch(model):
            raise MalformedMessage(f"a model called {model[:80]!r}: its name is no name for a file")
        return self._folder / (model + SUFFIX)

    def _trial(self, model: str) -> Path:
        return self._path(model).with_suffix(TRYING)


def tells_gain(policy: Policy) -> bool:
    """Return whether a server may know how much better own tensors are on the rows here.

    That is an evaluation, without noise: it leaves only where the owner lets evaluations be answered in the open.
    """
    return "evaluation" in policy.accept and not (policy.secure or policy.noise or policy.clip_norm)


def parameters(kept: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return which of the tensors that a federation kept are parameters, under their own names.

    >>> list(parameters({"w2": np.zeros(1), "seen": np.ones(()), "variate.w2": np.zeros(1)}))
    ['w2']
    """
    found = {name: array for name, array in kept.items() if name != SEEN and not name.startswith(VARIATE)}
    return {name.removeprefix(OWN): array for name, array in found.items()}
