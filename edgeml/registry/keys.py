"""The signing key of a registry: raw Ed25519 in a file only its owner reads, made at first use."""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.errors import UserError

KEY_BYTES = 32


def signing_key(path: Path) -> Ed25519PrivateKey:
    """Return the key in `path`; make it when there is none.

    Two processes that make it at once end up with one key: the second finds the first one's file.
    """
    if not path.exists():
        _make(path)
    raw = path.read_bytes()
    if len(raw) != KEY_BYTES:
        raise UserError(f"{path}: {len(raw)} bytes are no Ed25519 key ({KEY_BYTES} bytes); restore it from a backup")
    return Ed25519PrivateKey.from_private_bytes(raw)


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        os.write(descriptor, Ed25519PrivateKey.generate().private_bytes_raw())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    try:
        os.link(temporary, path)  # fails where rename would replace: the first key wins
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
