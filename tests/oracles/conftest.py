"""A throwaway Python with torch and onnx-ad, whose gradients are another opinion; asked for with `-m oracles` alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.conftest import throwaway
from tests.oracles.compare import NEEDS

# what runs in that Python, and not in this one
collect_ignore = ["onnx_ad_side.py", "torch_exports.py", "torch_layers.py", "torch_operators.py", "torch_side.py"]


@pytest.fixture(scope="session")
def oracle_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Python that has the oracles: EDGEML_ORACLES_PYTHON, or one made here with pip."""
    if given := os.environ.get("EDGEML_ORACLES_PYTHON"):
        return Path(given)
    return throwaway(tmp_path_factory.mktemp("oracles"), NEEDS)
