"""The server as a process: connect, say so, run until a signal, leave in order."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from types import FrameType

from edgeml.errors import UserError
from edgeml.registry import Registry
from edgeml.server.coordinator import Coordinator
from edgeml.server.learner import Retrain
from edgeml.transport import ServerTransport

DEFAULT_PORT = 1883


class _Lines(logging.Handler):
    """Every log record of edgeml as one line to `write`; a trace only where there is one."""

    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        self._write(self.format(record))


def serve(registry: Registry, address: str, *, retrain: Retrain, log: Callable[[str], None]) -> None:
    """Serve `registry` on the broker at `address` (HOST or HOST:PORT) until SIGINT or SIGTERM.

    Raises BrokerUnavailable when there is no broker, ServerUnavailable when another server runs.
    """
    host, port = parse_address(address)
    stop = threading.Event()
    with ServerTransport(host, port) as transport:
        coordinator = Coordinator(registry, transport, retrain=retrain)

        def end(_number: int, _frame: FrameType | None) -> None:
            stop.set()
            transport.wake()

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        lines, root = _Lines(log), logging.getLogger("edgeml")
        root.addHandler(lines)
        root.setLevel(logging.INFO)
        log(f"serving {registry.root} on the broker at {host}:{port}")
        try:
            coordinator.run(stop)
        finally:
            root.removeHandler(lines)
            for number, handler in before.items():
                signal.signal(number, handler)


def parse_address(address: str) -> tuple[str, int]:
    """Return host and port of `address`; raise UserError when it is none.

    >>> parse_address("broker.local:8883"), parse_address("broker.local")
    (('broker.local', 8883), ('broker.local', 1883))
    """
    host, _, port = address.rpartition(":") if ":" in address else (address, "", str(DEFAULT_PORT))
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"{address!r} is no broker address: write HOST:PORT, for example 127.0.0.1:{DEFAULT_PORT}")
    return host, int(port)
