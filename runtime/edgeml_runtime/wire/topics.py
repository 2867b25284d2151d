"""Topic names of the wire, both ways: built for a device, parsed from what arrived.

A device id is 1 to 64 characters of `[A-Za-z0-9_-]`; it is also the client id and, with
certificates, the common name. No topic has more than seven slashes (AWS IoT Core's limit).
"""

from __future__ import annotations

import re
from typing import NamedTuple

from edgeml_runtime.errors import MalformedMessage

PREFIX = "edgeml/v1"
DEVICE_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Topic(NamedTuple):
    """What a topic name says: `kind` as in the functions below, then the device and one detail."""

    kind: str
    device: str = ""
    detail: str = ""  # telemetry kind, round id or blob digest


def check_device_id(device: str) -> str:
    """Return `device`, or raise MalformedMessage when it cannot be a device id."""
    if not DEVICE_ID.fullmatch(device):
        raise MalformedMessage(f"device id {device!r}: use 1 to 64 characters of A-Z a-z 0-9 _ -")
    return device


def desired(device: str) -> str:
    return f"{PREFIX}/d/{device}/desired"


def reported(device: str) -> str:
    return f"{PREFIX}/d/{device}/reported"


def online(device: str) -> str:
    return f"{PREFIX}/d/{device}/online"


def request(device: str) -> str:
    return f"{PREFIX}/d/{device}/req"


def block(device: str) -> str:
    return f"{PREFIX}/d/{device}/blk"


def bench(device: str) -> str:
    return f"{PREFIX}/d/{device}/bench"


def shared_block(digest: str) -> str:
    return f"{PREFIX}/blk/{digest}"


def telemetry(device: str, kind: str) -> str:
    return f"{PREFIX}/d/{device}/tel/{kind}"


def update(device: str, round_id: str) -> str:
    return f"{PREFIX}/d/{device}/fl/{round_id}/up"


def say(device: str, round_id: str) -> str:
    """What a device says in secure aggregation, beside its update."""
    return f"{PREFIX}/d/{device}/fl/{round_id}/say"


def ask(device: str, round_id: str) -> str:
    """What the server asks one device in secure aggregation."""
    return f"{PREFIX}/d/{device}/fl/{round_id}/ask"


def task(round_id: str) -> str:
    return f"{PREFIX}/fl/{round_id}/task"


def for_device(device: str) -> tuple[str, ...]:
    """Filters that the agent `device` subscribes to."""
    return desired(device), block(device), online(device), bench(device), task("+"), ask(device, "+")


def for_server() -> tuple[str, ...]:
    """Filters that the coordinator subscribes to: never what it publishes itself."""
    return reported("+"), online("+"), request("+"), telemetry("+", "+"), update("+", "+"), say("+", "+")


_PATTERNS = (
    (re.compile(rf"{PREFIX}/d/([A-Za-z0-9_-]{{1,64}})/(desired|reported|online|req|blk|bench)"), "device"),
    (re.compile(rf"{PREFIX}/d/([A-Za-z0-9_-]{{1,64}})/tel/([a-z_]{{1,32}})"), "tel"),
    (re.compile(rf"{PREFIX}/d/([A-Za-z0-9_-]{{1,64}})/fl/([A-Za-z0-9_-]{{1,64}})/up"), "up"),
    (re.compile(rf"{PREFIX}/d/([A-Za-z0-9_-]{{1,64}})/fl/([A-Za-z0-9_-]{{1,64}})/say"), "say"),
    (re.compile(rf"{PREFIX}/d/([A-Za-z0-9_-]{{1,64}})/fl/([A-Za-z0-9_-]{{1,64}})/ask"), "ask"),
    (re.compile(rf"{PREFIX}/fl/([A-Za-z0-9_-]{{1,64}})/task"), "task"),
    (re.compile(rf"{PREFIX}/blk/([0-9a-f]{{64}})"), "blk"),
)


def parse(topic: str) -> Topic:
    """Return what `topic` says; raise MalformedMessage when it is not of this wire.

    >>> parse("edgeml/v1/d/pi-7/fl/round-3/up")
    Topic(kind='up', device='pi-7', detail='round-3')
    """
    for pattern, kind in _PATTERNS:
        if found := pattern.fullmatch(topic):
            if kind == "device":
                return Topic(found[2], found[1])
            return Topic(kind, detail=found[1]) if kind in ("task", "blk") else Topic(kind, found[1], found[2])
    raise MalformedMessage(f"topic {topic[:80]!r} is not of {PREFIX}")
