"""A throwaway Python with the oldest onnxruntime that edgeml writes for; asked for with `-m runtimes` alone."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edgeml.graph.opsets import OLDEST
from edgeml_runtime.session import VERSION
from tests.conftest import throwaway

VERSIONS = (f"{OLDEST}.2", "1.20.1", "1.22.1", "1.24.1", VERSION)  # the oldest, some between, and ours


@pytest.fixture(scope="session")
def old_python(python_with: Callable[[str], Path]) -> Path:
    """Return a Python that has the oldest onnxruntime: EDGEML_RUNTIME_PYTHON, or one made here with pip."""
    if given := os.environ.get("EDGEML_RUNTIME_PYTHON"):
        return Path(given)
    return python_with(VERSIONS[0])


@pytest.fixture(scope="session")
def python_with(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a version of onnxruntime to a Python that has it, made here with pip."""

    @functools.cache
    def make(version: str) -> Path:
        if version == VERSION:
            return Path(sys.executable)
        needs = (f"onnxruntime=={version}", "numpy<2.1" if version == VERSIONS[0] else "numpy")
        return throwaway(tmp_path_factory.mktemp("runtime"), needs)

    return make
