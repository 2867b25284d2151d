"""What several tests of conversion share."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from edgeml import convert
from edgeml.errors import MissingExtra


@pytest.fixture(scope="session")
def keras() -> Any:
    """Return the module keras, imported by the door of its room; without the extra the test is skipped by name."""
    try:
        convert.open_room("keras")
    except MissingExtra as error:
        pytest.skip(str(error))
    return sys.modules["keras"]
