"""The hands of both sides joined without a broker: topics, signatures, blocks and bytes of a masked round."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.federated import SecureRound, State
from edgeml.server.arrivals import Unproven
from edgeml.server.open_round import OpenRound
from edgeml_runtime.answered import Trained
from edgeml_runtime.masker import Masker
from edgeml_runtime.secagg import Member
from edgeml_runtime.wire import (
    BadSignature,
    MalformedMessage,
    WireError,
    blocks,
    messages,
    secure,
    signed,
    tensors,
    topics,
)
from edgeml_runtime.wire.messages import TaskOffer, UpdateHeader
from edgeml_runtime.wire.updates import sign_update
from tests.federated.masked_fleet import ROUND, SERVER, SHAPES, TRUSTED, Fleet, an_offer

Sent = tuple[str, str, bytes]  # device, topic, payload


class Wire:
    """Maskers around an open round; what devices publish lies in `up` until `flow` carries it."""

    def __init__(self, count: int, *, shapes: dict[str, tuple[int, ...]] = SHAPES) -> None:
        self.fleet = Fleet(count, shapes=shapes)
        self.keys = self.fleet.asked.keys
        self.offer: TaskOffer = an_offer(self.fleet.asked)
        self.up: deque[Sent] = deque()
        self.machine: SecureRound = self.fleet.round
        self.open = OpenRound(self.machine, self.offer, envelope=b"x" * 100, key_of=lambda d: self.keys.get(d, ""))
        self.maskers = {name: self.masker(name) for name in self.fleet.names}
        self.down: list[tuple[str, bytes]] = []

    def masker(self, name: str) -> Masker:
        key = self.fleet.identities[name]
        send = self._sender(name)

        def upload(offer: TaskOffer, masked: Trained) -> None:
            digest, body = blocks.digest_of(masked.body), masked.body
            header = UpdateHeader(
                round=ROUND, device=name, boot_id="b", rows=masked.rows, digest=digest, size=len(body)
            )
            send(topics.update(name, ROUND), messages.encode(sign_update(header, key)), qos=1)
            for index, part in enumerate(blocks.split(body)):
                send(topics.update(name, ROUND), blocks.encode(digest, index, part), qos=1)

        return Masker(name, key, TRUSTED, send=send, upload=upload)

    def _sender(self, name: str) -> Callable[..., object]:
        return lambda topic, payload, **_: self.up.append((name, topic, payload))

    def ready(self, name: str) -> None:
        trained = Trained(tensors.pack(self.fleet.updates[name]), self.fleet.rows[name], {})
        self.maskers[name].ready(self.offer, trained, now=0.0)

    def flow(self) -> None:
        """Carry messages both ways until nobody has anything to say."""
        while self.up:
            device, topic, payload = self.up.popleft()
            self.take(device, topic, payload)
            for to, asked in self.open.asks(SERVER):
                self.down.append((to, asked))
                parsed = topics.parse(to)
                assert (parsed.kind, parsed.detail) == ("ask", ROUND)
                if parsed.device in self.maskers:
                    self.maskers[parsed.device].asked(asked, ROUND, 0.0)

    def closed_over(self) -> list[str]:
        """Return whose updates are in the sum of the round, which must have closed."""
        outcome = self.machine.outcome
        assert outcome is not None and outcome.state is State.CLOSED
        return [update.device for update in outcome.updates]

    def take(self, device: str, topic: str, payload: bytes) -> None:
        parsed = topics.parse(topic)
        assert parsed.device == device and parsed.detail == ROUND
        if parsed.kind == "say":
            self.open.said(device, payload, now=0.0)
        else:
            self.open.take(device, payload, now=0.0)


def test_a_masked_round_runs_over_the_topics_of_the_wire() -> None:
    wire = Wire(5, shapes={"w": (200, 100), "b": (7,)})  # two blocks
    for name in wire.fleet.names:
        wire.ready(name)
    wire.flow()
    outcome = wire.machine.outcome
    assert outcome is not None and outcome.state is State.CLOSED and outcome.change is not None
    stacked = np.stack([wire.fleet.updates[name]["w"] for name in wire.fleet.names])
    weights = [min(wire.fleet.rows[name], wire.fleet.asked.rows) for name in wire.fleet.names]
    np.testing.assert_allclose(outcome.change["w"], np.average(stacked, axis=0, weights=weights), atol=1e-7)
    assert all(update.size > 4 * 20_007 for update in outcome.updates), "shares and keys are counted, too"
    assert wire.open.bytes_down == 100 * 5 + sum(len(payload) for _, payload in wire.down)
    assert len(wire.open.kept()) == 5 * 5, "keys, shares, updates, signatures and unmasking answers of five"


def test_an_agent_that_was_started_again_before_the_shares_takes_part_with_new_keys() -> None:
    wire = Wire(4)
    for name in wire.fleet.names[:3]:
        wire.ready(name)
    wire.flow()
    wire.maskers["d01"] = wire.masker("d01")
    wire.ready("d01")
    wire.ready("d03")
    wire.flow()
    assert wire.closed_over() == wire.fleet.names


def test_one_that_was_started_again_later_is_a_dropout() -> None:
    wire = Wire(4)
    for name in wire.fleet.names:
        wire.ready(name)
    while wire.machine.phase.value == "keys":
        device, topic, payload = wire.up.popleft()
        wire.take(device, topic, payload)
    wire.maskers["d01"] = wire.masker("d01")
    wire.ready("d01")
    for to, asked in wire.open.asks(SERVER):
        wire.maskers[topics.parse(to).device].asked(asked, ROUND, 0.0)
    wire.flow()
    outcome = wire.machine.outcome
    assert outcome is not None and outcome.state is State.CLOSED
    assert [update.device for update in outcome.updates] == ["d00", "d02", "d03"]
    assert "d01" in outcome.refused and "not this device's" in outcome.refused["d01"]


def test_a_lost_ask_is_sent_again_to_a_device_that_is_back() -> None:
    wire = Wire(3)
    for name in wire.fleet.names:
        wire.ready(name)
    gone = wire.maskers.pop("d02")
    wire.flow()
    assert wire.machine.outcome is None
    wire.maskers["d02"] = gone
    wire.open.remind("d02")
    (again,) = wire.open.asks(SERVER)
    gone.asked(again[1], ROUND, 0.0)
    gone.reconnected()  # and says it twice, which is counted
    wire.flow()
    assert wire.machine.outcome is not None and wire.machine.outcome.state is State.CLOSED
    assert wire.machine.rejected["d02"] == {"duplicate": 1}


def unsigned(wire: Wire, payload: bytes) -> bytes:
    return bytes(64) + payload[64:]


def of_another(wire: Wire, payload: bytes) -> bytes:
    body = payload[64:]
    return wire.fleet.identities["d01"].sign(b"edgeml secure aggregation v1 say\0" + body) + body


@pytest.mark.parametrize("forge", [unsigned, of_another])
def test_what_a_device_has_not_signed_is_counted_and_nothing_else(forge: Callable[[Wire, bytes], bytes]) -> None:
    wire = Wire(3)
    wire.ready("d00")
    device, topic, payload = wire.up.popleft()
    with pytest.raises(BadSignature):
        wire.take(device, topic, forge(wire, payload))
    assert wire.machine.rejected == {"d00": {"unsigned": 1}} and not wire.machine.refused
    wire.take(device, topic, payload)
    assert wire.machine.rejected == {"d00": {"unsigned": 1}}


def test_a_stranger_is_counted() -> None:
    wire = Wire(3)
    wire.open.said("zz", b"", now=0.0)
    assert wire.machine.rejected == {"*": {"stranger": 1}}


def test_a_device_answers_only_its_server_and_its_round() -> None:
    wire = Wire(3)
    for name in wire.fleet.names:
        wire.ready(name)
    while wire.up:
        wire.take(*wire.up.popleft())
    ((_, payload), *_) = wire.open.asks(SERVER)
    masker = wire.maskers["d00"]
    with pytest.raises(MalformedMessage, match="arrived on the topic of run-2"):
        masker.asked(payload, "run-2", 0.0)
    other = Masker("d00", wire.fleet.identities["d00"], (signed.public_hex(Ed25519PrivateKey.generate()),), **NOTHING)
    with pytest.raises(BadSignature):
        other.asked(payload, ROUND, 0.0)
    assert not wire.up


NOTHING: dict[str, Any] = {"send": lambda *_, **__: None, "upload": lambda offer, masked: None}


def test_a_new_round_begins_anew() -> None:
    wire = Wire(3)
    wire.ready("d00")
    first = wire.maskers["d00"].member
    wire.ready("d00")
    assert wire.maskers["d00"].member is first and len({payload for _, _, payload in wire.up}) == 1
    wire.offer = dataclasses.replace(wire.offer, round="run-2")
    wire.ready("d00")
    assert wire.maskers["d00"].member is not first


def test_what_anybody_may_have_sent_is_held_against_no_device() -> None:
    """False blocks, an old header, an old refusal and an old answer, all in the name of d00: counted, and d00 is in."""
    wire = Wire(3)
    old = sign_update(
        UpdateHeader(round="run-0", device="d00", boot_id="b", rows=0, refused="busy"), wire.fleet.identities["d00"]
    )
    earlier = Member(dataclasses.replace(wire.offer, round="run-0"), "d00", wire.fleet.identities["d00"])
    said = secure.encode_say(earlier.begin({}, rows=1, now=0.0), wire.fleet.identities["d00"])
    forged = [
        blocks.encode("ab" * 32, 1 << 20, bytes(blocks.BLOCK_BYTES)),
        messages.encode(old),
        messages.encode(dataclasses.replace(old, round=ROUND)),
        b"\x00 no header",
        *(blocks.encode("ab" * 32, i, bytes(blocks.BLOCK_BYTES)) for i in range(100)),
    ]
    for payload in forged:
        with contextlib.suppress(WireError):
            wire.open.take("d00", payload, now=0.0)
    wire.open.said("d00", said, now=0.0)
    assert wire.machine.rejected["d00"].keys() == {"replayed", "unsigned", "unreadable", "oversized"}
    assert not wire.machine.refused
    for name in wire.fleet.names:
        wire.ready(name)
    wire.flow()
    assert wire.closed_over() == wire.fleet.names


def test_a_false_block_between_a_header_and_its_blocks_costs_one_upload_and_no_device() -> None:
    wire = Wire(3)
    for name in wire.fleet.names:
        wire.ready(name)
    spoilt = False
    while wire.up:
        device, topic, payload = wire.up.popleft()
        if device == "d01" and blocks.is_block(payload) and not spoilt:
            spoilt, true = True, blocks.decode(payload)
            false = true.data[:-1] + bytes([true.data[-1] ^ 1])
            digest = true.prefix.hex() + "0" * 48
            with pytest.raises(Unproven):
                wire.open.take(device, blocks.encode(digest, true.index, false), now=0.0)
            assert wire.machine.rejected["d01"] == {"digest": 1} and not wire.machine.refused
        wire.take(device, topic, payload)
        for to, asked in wire.open.asks(SERVER):
            wire.maskers[topics.parse(to).device].asked(asked, ROUND, 0.0)
    outcome = wire.machine.outcome
    assert spoilt and outcome is not None and len(outcome.updates) == 3, "the true block came after, and was taken"
