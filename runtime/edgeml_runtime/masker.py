"""The hands of secure aggregation: carries the answers of one `Member` at a time, and uploads what it has masked.

Secrets are in memory only. An agent that dies in the middle is a dropout, whose part the others' shares undo; it comes
back with new keys, which the server takes as long as it has not handed out the old ones.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml_runtime.answered import Trained
from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.secagg import Effect, Masked, Member
from edgeml_runtime.wire import secure, signed, tensors, topics
from edgeml_runtime.wire.masking import MASKED
from edgeml_runtime.wire.messages import TaskOffer

log = logging.getLogger(__name__)


class Masker:
    """`send(topic, payload, qos=...)` publishes; `upload(offer, masked)` sends a masked update as any other."""

    def __init__(
        self,
        device: str,
        key: Ed25519PrivateKey,
        trusted: tuple[str, ...],
        *,
        send: Callable[..., object],
        upload: Callable[[TaskOffer, Trained], None],
    ) -> None:
        self.public = signed.public_hex(key)
        self._device, self._key, self._trusted = device, key, trusted
        self._send, self._upload = send, upload
        self.member: Member | None = None
        self._offer: TaskOffer | None = None
        self._trained: Trained | None = None  # of this offer, whatever the agent has trained since

    def ready(self, offer: TaskOffer, trained: Trained, *, now: float) -> None:
        """Say that an update is there, or the last answer again in a round that is under way."""
        if self.member is not None and self._offer is not None and self._offer.round == offer.round:
            self._carry(self.member.again())
            return
        self.member, self._offer, self._trained = Member(offer, self._device, self._key), offer, trained
        self._carry([self.member.begin(tensors.unpack(trained.body), rows=trained.rows, now=now)])

    def asked(self, payload: bytes, round_id: str, now: float) -> None:
        """Answer an ask of the server; raise WireError for one that nobody trusted signed."""
        ask = secure.decode_ask(payload, self._trusted)
        if ask.round != round_id:
            raise MalformedMessage(f"an ask of round {ask.round} arrived on the topic of {round_id}")
        if self.member is not None:
            self._carry(self.member.asked(ask, now))

    def reconnected(self) -> None:
        """Say again what the broker may have lost."""
        if self.member is not None and self.member.active:
            self._carry(self.member.again())

    def tick(self, now: float) -> None:
        """Let the server's silence have its end."""
        if self.member is not None:
            self.member.tick(now)

    def _carry(self, effects: list[Effect]) -> None:
        assert self._offer is not None and self._trained is not None
        for effect in effects:
            if isinstance(effect, Masked):
                body = tensors.pack({MASKED: effect.array})
                self._upload(self._offer, dataclasses.replace(self._trained, body=body))
                continue
            if effect.reason:
                log.info("round %s: no further part: %s", effect.round, effect.reason)
            self._send(topics.say(self._device, effect.round), secure.encode_say(effect, self._key), qos=1)
