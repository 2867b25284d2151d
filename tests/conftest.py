"""Fixtures that every room's tests share: real data, brokers on free ports."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

DATA = Path(os.environ.get("EDGEML_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """Return a function from a data set's name to its path; a set that is not there skips the test."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"{name} is not in {DATA}: set EDGEML_DATA to the folder that holds it")
        return path

    return find
