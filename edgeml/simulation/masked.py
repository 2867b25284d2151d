"""The masked part of a simulated round: `SecureRound` and a `Member` per device, as in a fleet, messages in memory.

Every message is signed, written and read as on the wire, so that its bytes count; only the broker and time are missing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.federated import SecureRound, State, Update
from edgeml.federated.secagg import Phase
from edgeml.simulation.device import Reply
from edgeml_runtime.secagg import Masked, Member
from edgeml_runtime.wire import signed, tensors
from edgeml_runtime.wire.masking import MASKED
from edgeml_runtime.wire.messages import TaskOffer, encode
from edgeml_runtime.wire.secure import Say, decode_ask, decode_say, encode_ask, encode_say


@dataclass(frozen=True)
class Spent:
    """What an exchange took: where the clock of the machines stands, and what masks cost beyond a round in the open."""

    now: float
    bytes_down: int = 0  # of the server's asks
    bytes_masks: int = 0  # up and down, of asks, answers, wider updates, and keys in the offer


class Identities:
    """The keys by which the server and the devices of a simulation know each other."""

    def __init__(self, devices: Iterable[str]) -> None:
        self.server = Ed25519PrivateKey.generate()
        self.of = {name: Ed25519PrivateKey.generate() for name in sorted(devices)}
        self.public = {name: signed.public_hex(key) for name, key in self.of.items()}
        self.trusted = (signed.public_hex(self.server),)


class Exchange:
    """One round: `falls` names the phase before whose answer a device dies."""

    def __init__(
        self, machine: SecureRound, offer: TaskOffer, known: Identities, *, falls: Mapping[str, Phase], now: float
    ) -> None:
        self._machine, self._offer, self._known, self._falls = machine, offer, known, falls
        self._members: dict[str, Member] = {}
        self._rows: dict[str, int] = {}
        self._now, self._down, self._up, self._plain = now, 0, 0, 0

    def run(self, replies: Iterable[Reply]) -> Spent:
        """Let everybody answer until the round is over; who is silent is waited for as long as its phase lasts."""
        machine = self._machine
        for reply in replies:
            if reply.refused:
                machine.refuse(reply.device, reply.refused, self._now)
                continue
            member = Member(self._offer, reply.device, self._known.of[reply.device])
            self._members[reply.device], self._rows[reply.device] = member, reply.rows
            self._plain += len(reply.body)
            self._send(reply.device, member.begin(tensors.unpack(reply.body), rows=reply.rows, now=self._now))
        while machine.state is State.OPEN:
            while asks := machine.asks():
                for ask in asks:
                    payload = encode_ask(ask, self._known.server)
                    self._down += len(payload)
                    self._ask(ask.device, payload)
            if machine.state is State.OPEN:
                self._now = machine.standing[1]
                machine.tick(self._now)
        offer = self._offer
        keys = len(encode(offer)) - len(encode(dataclasses.replace(offer, secure=None)))
        up = self._up - self._plain
        return Spent(self._now, self._down, up + self._down + keys * len(machine.cohort))

    def _ask(self, device: str, payload: bytes) -> None:
        member = self._members.get(device)
        if member is not None:
            for effect in member.asked(decode_ask(payload, self._known.trusted), self._now):
                self._send(device, effect)

    def _send(self, device: str, effect: Say | Masked) -> None:
        machine, now = self._machine, self._now
        if self._falls.get(device) == (Phase.MASKED if isinstance(effect, Masked) else effect.phase):
            del self._members[device]
            machine.lost(device, now)
        elif isinstance(effect, Masked):
            body = tensors.pack({MASKED: effect.array})
            self._up += len(body)
            machine.receive(device, Update(device, self._rows[device], tensors.unpack(body), size=len(body)), now)
        else:
            payload = encode_say(effect, self._known.of[device])
            self._up += len(payload)
            machine.said(device, decode_say(payload, self._known.public[device]), now, size=len(payload))
