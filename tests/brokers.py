"""The brokers that stories are told on."""

import pytest

from edgeml.transport.broker import find_mosquitto

# with mosquitto here, the embedded one carries the same stories among the slow tests; tests/transport asks both alike
KINDS = ["mosquitto", pytest.param("embedded", marks=pytest.mark.slow)] if find_mosquitto() else ["embedded"]
