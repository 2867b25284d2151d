"""Messages of secure aggregation: what devices say and what the server asks, CBOR under their signatures.

    device: keys      server: "shares", everybody's keys
    device: shares    server: "mask", the shares for this device
    device: (masked update, as blocks)    server: "agree", whose updates are there
    device: agreed    server: "unmask", everybody's signatures
    device: unmask

At most MAX_DEVICES devices, so that every message fits the wire's 64 KB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgeml_runtime.errors import BadSignature, MalformedMessage
from edgeml_runtime.wire.plain import from_plain, to_plain

MAX_DEVICES = 256
MAX_BYTES = 64 << 10
SIGNATURE_BYTES = 64
_ASK, _SAY = b"edgeml secure aggregation v1 ask\0", b"edgeml secure aggregation v1 say\0"


@dataclass(frozen=True, kw_only=True)
class Say:
    """One answer of a device."""

    schema: int = 1
    round: str
    device: str
    phase: Literal["keys", "shares", "agreed", "unmask", "refused"]
    keys: bytes = b""  # two X25519 public keys: for shares, for masks
    signature: bytes = b""  # of the keys, or of the survivors
    commitment: bytes = b""  # to the seed of its own mask
    shares: Mapping[str, bytes] = field(default_factory=dict)  # receiver -> two shares, encrypted for it
    masks: Mapping[str, bytes] = field(default_factory=dict)  # device that is gone -> share of its mask key
    seeds: Mapping[str, bytes] = field(default_factory=dict)  # device that is there -> share of its seed
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one device is to do next, and what it needs for that."""

    schema: int = 1
    round: str
    device: str
    phase: Literal["shares", "mask", "agree", "unmask"]
    keys: Mapping[str, bytes] = field(default_factory=dict)  # device -> its two public keys and their signature
    shares: Mapping[str, bytes] = field(default_factory=dict)  # sender -> encrypted shares for this device
    devices: tuple[str, ...] = ()  # whose masked updates are there
    signatures: Mapping[str, bytes] = field(default_factory=dict)  # of the devices that agreed to that


def encode_say(say: Say, key: Ed25519PrivateKey) -> bytes:
    """Return `say` signed by the device's `key`."""
    body = bytes(cbor2.dumps(to_plain(say)))
    return key.sign(_SAY + body) + body


def decode_say(payload: bytes, public: str) -> Say:
    """Return the answer in `payload`; raise BadSignature when the key `public` (hex) did not sign it."""
    return from_plain(Say, _parsed(_signed(payload, (public,), _SAY)))


def encode_ask(ask: Ask, key: Ed25519PrivateKey) -> bytes:
    """Return `ask` signed by the server's `key`."""
    body = bytes(cbor2.dumps(to_plain(ask)))
    return key.sign(_ASK + body) + body


def decode_ask(payload: bytes, trusted: tuple[str, ...]) -> Ask:
    """Return the ask in `payload`; raise BadSignature when none of the `trusted` keys (hex) signed it."""
    return from_plain(Ask, _parsed(_signed(payload, trusted, _ASK)))


def signed_by(public: str, signature: bytes, message: bytes) -> bool:
    """Return whether the Ed25519 key `public` (hex) made `signature` over `message`."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _signed(payload: bytes, trusted: tuple[str, ...], purpose: bytes) -> bytes:
    signature, body = payload[:SIGNATURE_BYTES], payload[SIGNATURE_BYTES:]
    if not any(signed_by(key, signature, purpose + body) for key in trusted):
        raise BadSignature(
            "a message of secure aggregation that nobody trusted signed"
        )  # first: what anybody may have sent says nothing
    if len(payload) > MAX_BYTES:
        raise MalformedMessage(f"a message of {len(payload):,} bytes; the limit is {MAX_BYTES:,}")
    return body


def _parsed(payload: bytes) -> Any:
    try:
        plain = cbor2.loads(payload)
    except (ValueError, EOFError, RecursionError, cbor2.CBORError) as error:
        raise MalformedMessage(f"{len(payload)} bytes that are no CBOR: {error}") from error
    version = plain.get("schema", 1) if isinstance(plain, dict) else None
    if version != 1:
        raise MalformedMessage(f"secure aggregation of schema {version!r}: this side reads 1; update it")
    return plain
