"""The signature of a device under what it sends in a round: over the header, which names the round and the digest."""

from __future__ import annotations

import dataclasses

import cbor2
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgeml_runtime.errors import BadSignature
from edgeml_runtime.wire.messages import UpdateHeader
from edgeml_runtime.wire.plain import to_plain

_PURPOSE = b"edgeml update v1\0"


def sign_update(header: UpdateHeader, key: Ed25519PrivateKey) -> UpdateHeader:
    """Return `header` signed by `key`."""
    return dataclasses.replace(header, signature=key.sign(_document(header)))


def check_signature(header: UpdateHeader, public: str) -> None:
    """Raise BadSignature unless the device whose `public` key (hex) is known signed `header`."""
    if not public:
        raise BadSignature(f"{header.device} has reported no key to know its updates by: update its agent")
    if not header.signature:
        raise BadSignature(f"the update of {header.device} to {header.round} is not signed")
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(header.signature, _document(header))
    except (InvalidSignature, ValueError) as error:
        raise BadSignature(
            f"the update of {header.device} to {header.round} is signed by another key than the one it is known by; "
            f"if it was set up anew: edgeml fleet forget-key {header.device}"
        ) from error


def _document(header: UpdateHeader) -> bytes:
    plain = to_plain(dataclasses.replace(header, signature=b""))
    return _PURPOSE + cbor2.dumps(plain, canonical=True)
