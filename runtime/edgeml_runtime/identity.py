"""The key by which a server knows this device: made once, never sent; its public half is in every report.

Who signs with it is the device that the server has met first under this name, whatever the broker lets through.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml_runtime.config import write_atomic
from edgeml_runtime.errors import AgentRefused

KEY, KEY_BYTES = "device.key", 32


def device_key(state: Path) -> Ed25519PrivateKey:
    """Return the key in `state`, made at first use; raise AgentRefused when the file holds something else."""
    path = state / KEY
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raw = Ed25519PrivateKey.generate().private_bytes_raw()
        before = os.umask(0o077)
        try:
            write_atomic(path, raw)
        finally:
            os.umask(before)
    if len(raw) != KEY_BYTES:
        raise AgentRefused(
            f"{path} holds {len(raw)} bytes and no key: put the right one back, or remove it and let the server forget "
            f"the old one"
        )
    return Ed25519PrivateKey.from_private_bytes(raw)
