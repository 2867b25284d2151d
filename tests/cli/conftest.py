"""The command line as a user meets it: a real process, its output, its errors, its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import warm


@dataclass(frozen=True)
class Said:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> str:
        """The one line an error is; anything more on stderr after progress fails the test."""
        lines = [line for line in self.err.splitlines() if line.startswith(("error:", "Error:"))]
        assert len(lines) == 1, f"expected one line of error, got: {self.err!r}"
        assert "Traceback" not in self.err
        return lines[0]


Command = Callable[..., Said]
Run = Callable[..., warm.Ending]


@pytest.fixture
def edgeml(tmp_path: Path) -> Command:
    """Return a function that runs `edgeml` with a registry of its own."""
    return command_in(tmp_path)


def command_in(folder: Path, *, run: Run = warm.run, **others: Path) -> Command:
    """Return a function that runs `edgeml` with everything it keeps in `folder`, but for what `others` name."""
    own = {"EDGEML_REGISTRY": "registry", "EDGEML_DEVICES": "own-devices", "HOME": "home"}
    places = {name: str(folder / place) for name, place in own.items()} | {n: str(path) for n, path in others.items()}

    def command(*words: object, cwd: Path | None = None) -> Said:
        return Said(*run(list(map(str, words)), env={**os.environ, **places}, cwd=cwd or folder))

    return command


def anew(words: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> warm.Ending:
    """Run `edgeml` as a user does: in a Python that is started for it, on every core."""
    command = [sys.executable, "-m", "edgeml", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, cwd=cwd, check=False)
    return done.returncode, done.stdout, done.stderr
