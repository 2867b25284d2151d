"""Both brokers, each a real process on a free port of the loopback interface."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgeml.transport import Broker, start_broker
from edgeml.transport.broker import COMMANDS, find_mosquitto


@pytest.fixture(params=sorted(COMMANDS))
def broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """Return a running broker of each kind; mosquitto is skipped, by name, where it is not installed."""
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    with start_broker(kind=request.param) as running:
        yield running
