"""Real devices of secure aggregation around a real round, in one process, that can die or lie in every phase."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Literal

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.federated import Update
from edgeml.federated.layouts import Mean
from edgeml.federated.masks import Masks, terms
from edgeml.federated.secagg import Phase, SecureRound
from edgeml_runtime.secagg import Masked, Member
from edgeml_runtime.wire import signed, tensors
from edgeml_runtime.wire.masking import MASKED
from edgeml_runtime.wire.messages import Secure, TaskOffer
from edgeml_runtime.wire.secure import Ask, Say, decode_ask, decode_say, encode_ask, encode_say

SERVER = Ed25519PrivateKey.from_private_bytes(bytes(32))
TRUSTED = (signed.public_hex(SERVER),)
SHAPES = {"w": (3, 2), "b": ()}
ROUND = "run-1"


def an_offer(asked: Secure) -> TaskOffer:
    return TaskOffer(
        round=ROUND,
        kind="training",
        model="m",
        cohort=tuple(sorted(asked.keys)),
        graph="0" * 64,
        graph_bytes=1,
        parameters="0" * 64,
        parameters_bytes=1,
        scalars={},
        min_rows=1,
        max_update_bytes=1 << 20,
        deadline_s=10.0,
        secure=asked,
    )


class Fleet:
    """`count` devices; `dies[device]` is the phase before whose answer it goes away."""

    def __init__(
        self,
        count: int,
        *,
        dies: dict[str, Phase] | None = None,
        rows: int = 100,
        bits: Literal[16, 32, 64] = 32,
        share: float = 0.67,
        shapes: dict[str, tuple[int, ...]] = SHAPES,
        bound: float = 2.0,
    ) -> None:
        self.names = [f"d{number:02}" for number in range(count)]
        self.dies = dies or {}
        self.identities = {name: Ed25519PrivateKey.generate() for name in self.names}
        keys = {name: signed.public_hex(key) for name, key in self.identities.items()}
        self.asked = terms(Masks(bits=bits, share=share, bound=bound), keys, least=2, rows=rows)
        self.round = SecureRound(ROUND, self.asked, opened=0.0, deadline=60.0, layout=Mean(shapes))
        rng = np.random.default_rng(count)
        self.updates = {
            name: {k: rng.uniform(-1, 1, shape).astype(np.float32) for k, shape in shapes.items()}
            for name in self.names
        }
        self.rows = {name: 10 + 7 * number for number, name in enumerate(self.names)}
        self.members = {name: Member(an_offer(self.asked), name, self.identities[name]) for name in self.names}
        self.forge: Callable[[Say], Say] = lambda say: say
        self.now = 0.0

    def run(self) -> None:
        """Let everybody answer as long as there is something to answer; then let the deadlines pass."""
        for name in self.names:
            self.send(name, self.members[name].begin(self.updates[name], rows=self.rows[name], now=0.0))
        for _ in range(len(Phase)):
            while asks := self.round.asks():
                for ask in asks:
                    self.ask(ask)
            self.now += 100.0
            self.round.tick(self.now)

    def ask(self, ask: Ask) -> None:
        """Carry `ask` over the wire and the answer back."""
        arrived = decode_ask(encode_ask(ask, SERVER), TRUSTED)
        for effect in self.members[ask.device].asked(arrived, self.now):
            self.send(ask.device, effect)

    def send(self, name: str, effect: Say | Masked) -> None:
        phase = Phase.MASKED if isinstance(effect, Masked) else Phase(effect.phase)
        if self.dies.get(name) == phase:
            del self.members[name]
            self.round.lost(name, self.now)
            return
        if name not in self.members:
            return
        if isinstance(effect, Masked):
            arrays = tensors.unpack(tensors.pack({MASKED: effect.array}))
            self.round.receive(name, Update(name, self.rows[name], arrays, size=100), self.now)
        else:
            payload = encode_say(self.forge(effect), self.identities[name])
            self.round.said(name, decode_say(payload, self.asked.keys[name]), self.now, size=len(payload))

    def mean(self, names: Collection[str]) -> dict[str, np.ndarray]:
        """What the server must have learned of the updates of `names`."""
        most = self.asked.rows
        weights = [min(self.rows[name], most) if most else 1 for name in names]
        stacked = {k: np.stack([self.updates[name][k].astype(np.float64) for name in names]) for k in SHAPES}
        return {k: np.average(values, axis=0, weights=weights) for k, values in stacked.items()}


def changed(say: Say, **parts: Any) -> Say:
    return dataclasses.replace(say, **parts)
