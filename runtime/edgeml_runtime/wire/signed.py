"""Signed documents: canonical JSON under Ed25519, in the envelope that TUF metadata has.

    {"signatures": [{"keyid": ..., "sig": ...}], "signed": {...}}

The device trusts these signatures, never the broker. Key ids are the sha256 of the raw public key.
TUF roles (root, targets, snapshot, timestamp) will take the place of the single list of trusted
keys; the envelope stays.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from edgeml_runtime.errors import BadSignature, MalformedMessage

MAX_SIGNED_BYTES = 4 << 20  # a manifest with the block hashes of 2 GiB of blobs


def canonical(document: Any) -> bytes:
    """Return `document` as JSON bytes that are the same for equal documents.

    >>> canonical({"b": 1, "a": [True]})
    b'{"a":[true],"b":1}'
    """
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def public_hex(key: Ed25519PrivateKey) -> str:
    """Return the raw public half of `key` as 64 hexadecimal digits: what a device is told to trust."""
    return key.public_key().public_bytes_raw().hex()


def key_id(public: str) -> str:
    return hashlib.sha256(bytes.fromhex(public)).hexdigest()


def sign(document: dict[str, Any], key: Ed25519PrivateKey) -> bytes:
    """Return the envelope of `document` signed by `key`, as canonical JSON."""
    signature = {"keyid": key_id(public_hex(key)), "sig": key.sign(canonical(document)).hex()}
    return canonical({"signatures": [signature], "signed": document})


def unverified(envelope: bytes) -> dict[str, Any]:
    """Return the document inside `envelope` without looking at its signature: for display only."""
    return _open(envelope)[0]


def verify(envelope: bytes, trusted: Iterable[str]) -> dict[str, Any]:
    """Return the document inside `envelope` if one of the `trusted` public keys (hex) signed it.

    Raises BadSignature otherwise, MalformedMessage when it is no envelope.
    """
    document, signatures = _open(envelope)
    keys = {key_id(public): public for public in trusted}
    for entry in signatures:
        public = keys.get(entry["keyid"])
        if public and _good(public, entry["sig"], canonical(document)):
            return document
    signers = ", ".join(entry["keyid"][:12] for entry in signatures) or "nobody"
    known = ", ".join(sorted(name[:12] for name in keys)) or "no key"
    raise BadSignature(f"signed by {signers}, but this side trusts {known}: enroll with the server's public key")


def _good(public: str, signature: str, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _open(envelope: bytes) -> tuple[dict[str, Any], list[dict[str, str]]]:
    if len(envelope) > MAX_SIGNED_BYTES:
        raise MalformedMessage(f"a signed document of {len(envelope):,} bytes; the limit is {MAX_SIGNED_BYTES:,}")
    try:
        content = json.loads(envelope)
        document, signatures = content["signed"], content["signatures"]
        entries = [{"keyid": str(entry["keyid"]), "sig": str(entry["sig"])} for entry in signatures]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise MalformedMessage(f"not a signed document: {type(error).__name__}") from error
    if not isinstance(document, dict):
        raise MalformedMessage("not a signed document: 'signed' is not an object")
    return document, entries
