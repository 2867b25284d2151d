"""A throwaway Python with the oldest onnxruntime that edgeml writes for; asked for with `-m runtimes` alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgeml.graph.opsets import OLDEST

NEEDS = (f"onnxruntime=={OLDEST}.2", "numpy<2.1")


@pytest.fixture(scope="session")
def old_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python that has the oldest onnxruntime: EDGEML_RUNTIME_PYTHON, or one made here with pip."""
    if given := os.environ.get("EDGEML_RUNTIME_PYTHON"):
        return Path(given)
    folder = tmp_path_factory.mktemp("oldest")
    python = folder / "bin" / "python"
    for command in ([sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install", "--quiet", *NEEDS]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"cannot make a Python with {' and '.join(NEEDS)}: {done.stderr.strip()[-400:]}")
    return python
