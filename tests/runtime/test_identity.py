"""The key by which a server knows a device, and what is signed with it."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml_runtime.errors import AgentRefused
from edgeml_runtime.identity import KEY, device_key
from edgeml_runtime.wire import BadSignature, messages, signed
from edgeml_runtime.wire.messages import UpdateHeader
from edgeml_runtime.wire.updates import check_signature, sign_update

HEADER = UpdateHeader(round="fed-1", device="a", boot_id="b", rows=9, digest="00" * 32, size=5, metrics={"loss": 0.5})


def test_a_key_is_made_once_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    first = device_key(tmp_path)
    assert device_key(tmp_path).private_bytes_raw() == first.private_bytes_raw()
    assert stat.S_IMODE((tmp_path / KEY).stat().st_mode) == 0o600


def test_a_file_that_is_no_key_is_not_replaced_silently(tmp_path: Path) -> None:
    (tmp_path / KEY).write_bytes(b"short")
    with pytest.raises(AgentRefused, match="holds 5 bytes and no key"):
        device_key(tmp_path)


def test_a_signature_survives_the_wire() -> None:
    key = Ed25519PrivateKey.generate()
    again = messages.decode(UpdateHeader, messages.encode(sign_update(HEADER, key)))
    check_signature(again, signed.public_hex(key))


@pytest.mark.parametrize(
    "changes",
    [{"round": "fed-2"}, {"device": "b"}, {"rows": 10}, {"digest": "11" * 32}, {"metrics": {}}, {"refused": "no"}],
)
def test_nothing_of_a_header_can_be_changed_under_its_signature(changes: dict[str, Any]) -> None:
    key = Ed25519PrivateKey.generate()
    with pytest.raises(BadSignature, match="signed by another key"):
        check_signature(dataclasses.replace(sign_update(HEADER, key), **changes), signed.public_hex(key))


@pytest.mark.parametrize(
    ("header", "public", "says"),
    [(HEADER, "", "has reported no key"), (HEADER, "00" * 32, "is not signed")],
)
def test_what_is_not_signed_or_of_nobody_is_said_to_be(header: UpdateHeader, public: str, says: str) -> None:
    with pytest.raises(BadSignature, match=says):
        check_signature(header, public)
