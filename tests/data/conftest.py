"""Builders for the tests of the data room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from edgeml.project import Project, parse_project


def a_project(train: object, target: str | None = None, **data: Any) -> Project:
    """Return a project over `train`; further keywords go to its data section, `top` to the project itself."""
    top = data.pop("top", {})
    section = {"train": str(train), **({"target": target} if target else {}), **data}
    return parse_project(yaml.safe_dump({"name": "p", "data": section, **top}), folder=Path("/"))


@pytest.fixture
def project() -> Callable[..., Project]:
    return a_project


@pytest.fixture
def csv(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes text to a file and returns its path."""

    def write(text: str, name: str = "rows.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write
