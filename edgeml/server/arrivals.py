"""What comes from a device in a round, and what of it is the device's own doing.

A device signs the header of its upload, which names the round and the digest. Blocks carry no signature, and anybody on
the broker may send one, or an old message once more: such is `Unproven`, to be counted and held against nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgeml.federated import Assembly, BadUpdate, Update, fault_of
from edgeml_runtime.wire import BadSignature, WireError, blocks, messages, tensors
from edgeml_runtime.wire.messages import UpdateHeader
from edgeml_runtime.wire.updates import check_signature

KeyOf = Callable[[str], str]


class Unproven(BadUpdate):
    """Something that cannot be taken and that the device has not signed for this round."""


@dataclass(frozen=True)
class Arrived:
    """A whole upload, or, without a body, the refusal in its header."""

    header: UpdateHeader
    body: bytes = b""


def collect(assembly: Assembly, payload: bytes, key_of: KeyOf) -> Arrived | None:
    """Put a header or a block into `assembly`; return what is complete with it.

    Raises BadSignature or Unproven for what anybody may have sent, another WireError for what the device has signed.
    """
    try:
        header = _one(assembly, payload, key_of)
    except BadSignature:
        raise
    except WireError as error:
        raise Unproven(fault_of(error), str(error)) from error
    if header is not None and header.refused:
        return Arrived(header)
    if header is not None:
        assembly.open(header)
    if not assembly.complete or assembly.header is None:
        return None
    try:
        return Arrived(assembly.header, assembly.data())
    except WireError as error:
        raise Unproven(fault_of(error), str(error)) from error


def _one(assembly: Assembly, payload: bytes, key_of: KeyOf) -> UpdateHeader | None:
    """Keep a block, or return a header that was signed for this round."""
    if blocks.is_block(payload):
        assembly.add(blocks.decode(payload))
        return None
    header = read_header(payload, assembly.device, key_of)
    if header.round != assembly.round:
        raise BadUpdate("replayed", f"{assembly.device} sent to {header.round}, and this is {assembly.round}")
    return header


def read_header(payload: bytes, device: str, key_of: KeyOf) -> UpdateHeader:
    """Return the header that `device` sent and signed; raise WireError when it did not."""
    header = messages.decode(UpdateHeader, payload)
    if header.device != device:
        raise BadUpdate("stranger", f"an update of {header.device} on the topic of {device}")
    check_signature(header, key_of(device))
    return header


def read_update(header: UpdateHeader, body: bytes) -> Update:
    """Return the update that came as `header` and `body`, not yet checked; raise WireError when it is none."""
    return Update(header.device, header.rows, tensors.unpack(body), metrics=header.metrics, size=header.size)
