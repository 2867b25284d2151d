"""systemd's readiness protocol in a few lines: one datagram to the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket


def notify(message: str) -> bool:
    """Send `message` (READY=1, WATCHDOG=1, STOPPING=1) to systemd; return False when it did not start us."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.sendto(message.encode(), "\0" + address[1:] if address[0] == "@" else address)
    return True


def watchdog_s() -> float:
    """Return how often systemd wants to hear from us, 0 when it does not care."""
    return int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
