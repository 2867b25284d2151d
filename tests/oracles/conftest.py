"""A throwaway Python with torch and onnx-ad, whose gradients are another opinion; asked for with `-m oracles` alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.oracles.compare import NEEDS

# what runs in that Python, and not in this one
collect_ignore = ["onnx_ad_side.py", "torch_exports.py", "torch_layers.py", "torch_operators.py", "torch_side.py"]


@pytest.fixture(scope="session")
def oracle_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python that has the oracles: EDGEML_ORACLES_PYTHON, or one made here with pip."""
    if given := os.environ.get("EDGEML_ORACLES_PYTHON"):
        return Path(given)
    folder = tmp_path_factory.mktemp("oracles")
    python = folder / "bin" / "python"
    for command in ([sys.executable, "-m", "venv", folder], [python, "-m", "pip", "install", "--quiet", *NEEDS]):
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.fail(f"cannot make a Python with {' and '.join(NEEDS)}: {done.stderr.strip()[-400:]}")
    return python
