"""The device's side of secure aggregation as a pure state machine (Bonawitz and others, CCS 2017, figure 4).

    KEYS > SHARES > MASKED > AGREED > DONE        any of them > REFUSED, for good

The server learns the sum of the updates of at least `threshold` devices, or nothing. Each phase is answered once: the
same ask gets the same answer, another one of the same phase ends this device's part. So no device ever gives away
both the share of a device's mask key and that of its seed, which together would open its update.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from edgeml_runtime.errors import MalformedMessage, TaskRefused, WireError
from edgeml_runtime.wire import masked_sums, masking, shamir
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.secure import MAX_DEVICES, SIGNATURE_BYTES, Ask, Say, signed_by

KEYS_BYTES = 2 * masking.KEY_BYTES
NONCE = bytes(12)  # every key of a share is used once: it is of one sender, one receiver and one round
PHASES_AFTER = (
    4  # of phase_s each, when all have trained; and as long again for a slow broker, then secrets are forgotten
)
LEAST_STEPS = 64  # of a value's bound: fewer say nothing


class Phase(StrEnum):
    KEYS = "KEYS"
    SHARES = "SHARES"
    MASKED = "MASKED"
    AGREED = "AGREED"
    DONE = "DONE"
    REFUSED = "REFUSED"


TRANSITIONS: Mapping[tuple[Phase, str], Phase] = {
    (Phase.KEYS, "shares"): Phase.SHARES,
    (Phase.SHARES, "mask"): Phase.MASKED,
    (Phase.MASKED, "agree"): Phase.AGREED,
    (Phase.AGREED, "unmask"): Phase.DONE,
}


@dataclass(frozen=True)
class Masked:
    """Upload this as the update of the round."""

    array: np.ndarray


Effect = Say | Masked


def objection(offer: TaskOffer, device: str, public: str, *, peers: Collection[str] = ()) -> str:
    """Return why `device`, whose key is `public` (hex), takes no part in the secure aggregation of `offer`, or "".

    With `peers`, keys that the owner knows, it takes part only among those: a server could invent the others.
    """
    asked = offer.secure
    if asked is None:
        return ""
    count = len(asked.keys)
    if set(asked.keys) != set(offer.cohort) or len(set(asked.keys.values())) != count:
        return "secure aggregation wants one key of each device of the cohort, no two alike"
    if asked.keys.get(device) != public:
        return "the key that the server has of this device is another: report anew, or enroll again"
    strangers = sorted(name for name, key in asked.keys.items() if key not in {*peers, public})
    if peers and strangers:
        return f"the owner's policy names {len(peers)} peers, and {strangers[0]} is none of them"
    if not 2 * asked.threshold > count or not 2 <= asked.threshold <= count <= MAX_DEVICES:
        return f"secure aggregation of {count} devices with a threshold of {asked.threshold}: more than half must stay"
    numbers = asked.bound, asked.phase_s
    if not all(math.isfinite(number) and number > 0 for number in numbers) or asked.rows < 0:
        return f"secure aggregation with bound {asked.bound:g}, phase_s {asked.phase_s:g} and rows {asked.rows}"
    if masking.whole(asked) < LEAST_STEPS:
        return f"{asked.bits} bits leave {masking.whole(asked)} steps for {count} devices: use more bits"
    if bool(asked.ranges) == (offer.kind == "training") or (asked.ranges and asked.bits != 64):
        return f"masks of {asked.bits} bits and {len(asked.ranges)} ranges: {offer.kind} cannot be summed so"
    if wrong := [name for name, most in asked.ranges.items() if not 0 < most <= masked_sums.LARGEST_RANGE]:
        return f"a range of {asked.ranges[wrong[0]]:g} for {wrong[0]!r}: from above 0 to 2^100"
    return ""


class Member:
    """One device in one round, once its update is there."""

    def __init__(self, offer: TaskOffer, device: str, identity: Ed25519PrivateKey) -> None:
        assert offer.secure is not None
        self.phase, self.reason = Phase.KEYS, ""
        self._round, self._me, self._asked, self._identity = offer.round, device, offer.secure, identity
        self._share_key, self._mask_key = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._gone = X25519PrivateKey.generate()  # takes the place of both in the end
        self._seed = os.urandom(masking.KEY_BYTES)
        self._vector = np.zeros(0, masking.ring(self._asked.bits))
        self._public: Mapping[str, bytes] = {}  # two keys of every member
        self._shared: dict[str, bytes] = {}  # with each member, of the keys for shares
        self._own = b""  # the shares for itself
        self._received: dict[str, bytes] = {}
        self._survivors: tuple[str, ...] = ()
        self._answers: dict[str, tuple[Ask, Effect]] = {}
        self._last: Effect | None = None
        self._patience = offer.deadline_s + 2 * PHASES_AFTER * offer.secure.phase_s  # the others may train for longer
        self._expires = math.inf
        self._steps: Mapping[str, Callable[[Ask], Effect]] = {
            "shares": self._share,
            "mask": self._mask,
            "agree": self._agree,
            "unmask": self._unmask,
        }

    @property
    def active(self) -> bool:
        return self.phase not in (Phase.DONE, Phase.REFUSED)

    def begin(self, update: Mapping[str, np.ndarray], *, rows: int, now: float) -> Say:
        """Return this device's keys, signed: its `update` of so many `rows` is ready to be masked; or why it is not."""
        asked = self._asked
        try:
            sums = bool(asked.ranges)
            self._vector = masked_sums.fixed(update, asked.ranges) if sums else masking.fixed(update, asked, rows=rows)
        except TaskRefused as error:
            return self._refuse(str(error))
        self._expires = now + self._patience
        keys = self._keys()
        signature = self._identity.sign(masking.keys_document(self._round, self._me, keys))
        self._last = self._say("keys", keys=keys, signature=signature)
        return self._last

    def again(self) -> list[Effect]:
        """Return the last answer once more: the broker was away."""
        return [] if self._last is None else [self._last]

    def asked(self, ask: Ask, now: float) -> list[Effect]:
        """Take a verified ask of the server; what does not belong here and now changes nothing."""
        self.tick(now)
        if (ask.round, ask.device) != (self._round, self._me):
            return []
        if self.phase is Phase.REFUSED:
            return self.again()
        if ask.phase in self._answers:
            known, answer = self._answers[ask.phase]
            return (
                [answer] if known == ask else [self._refuse(f"the server asked twice, and differently, to {ask.phase}")]
            )
        after = TRANSITIONS.get((self.phase, ask.phase))
        if after is None:
            return []
        try:
            answer = self._steps[ask.phase](ask)
        except (WireError, TaskRefused) as error:
            return [self._refuse(str(error))]
        self.phase, self._last, self._answers[ask.phase] = after, answer, (ask, answer)
        if after is Phase.DONE:
            self._forget()
        return [answer]

    def tick(self, now: float) -> None:
        """Forget everything when the server has been silent for too long."""
        if self.active and now >= self._expires:
            self._refuse("the server was silent for too long")

    # --- one answer each

    def _share(self, ask: Ask) -> Say:
        self._public = {name: self._keys_of(name, keys) for name, keys in sorted(ask.keys.items())}
        count, threshold = len(self._public), self._asked.threshold
        single = {half for keys in self._public.values() for half in masking.halves(keys)}
        if self._public.get(self._me) != self._keys() or len(single) != 2 * count:
            raise TaskRefused("the keys of the round are not this device's, or two devices have the same")
        self._enough(count, "devices gave their keys")
        seeds = shamir.split(self._seed, count=count, threshold=threshold)
        masks = shamir.split(self._mask_key.private_bytes_raw(), count=count, threshold=threshold)
        both = dict(zip(self._public, map(bytes.__add__, masks, seeds), strict=True))
        self._own = both.pop(self._me)
        shares = {name: self._cipher(self._me, name).encrypt(NONCE, plain, self._aad) for name, plain in both.items()}
        return self._say("shares", shares=shares, commitment=masking.commitment(self._seed))

    def _mask(self, ask: Ask) -> Masked:
        if strangers := sorted(ask.shares.keys() - self._public.keys()):
            raise TaskRefused(f"shares of {strangers[0]}, which gave no keys")
        self._received = {name: shares for name, shares in ask.shares.items() if name != self._me}
        self._enough(len(self._received) + 1, "devices gave their shares")
        dtype, size = self._vector.dtype, self._vector.size
        total = self._vector + masking.stream(self._seed, size, dtype)
        for name in self._received:
            mask = masking.pair_mask(self._mask_key, self._public[name][masking.KEY_BYTES :], size, dtype=dtype)
            total = total + mask if self._me < name else total - mask
        return Masked(total)

    def _agree(self, ask: Ask) -> Say:
        devices = tuple(sorted(set(ask.devices)))
        if self._me not in devices or not set(devices) <= {self._me, *self._received}:
            raise TaskRefused("updates of devices that gave no shares, or not this device's, would be in the sum")
        self._enough(len(devices), "devices sent their updates")
        self._survivors = devices
        return self._say("agreed", signature=self._identity.sign(self._document()))

    def _unmask(self, ask: Ask) -> Say:
        document = self._document()
        good = {
            name
            for name, signature in ask.signatures.items()
            if name in self._survivors and signed_by(self._asked.keys[name], signature, document)
        }
        self._enough(len(good), "devices agreed to the same sum")
        opened = {name: self._open(name) for name in (self._me, *self._received)}
        size = shamir.SHARE_BYTES
        there, gone = set(self._survivors), opened.keys() - set(self._survivors)
        return self._say(
            "unmask",
            seeds={name: opened[name][size:] for name in sorted(there) if opened[name]},
            masks={name: opened[name][:size] for name in sorted(gone) if opened[name]},
        )

    # --- small parts

    def _keys(self) -> bytes:
        return self._share_key.public_key().public_bytes_raw() + self._mask_key.public_key().public_bytes_raw()

    def _document(self) -> bytes:
        return masking.survivors_document(self._round, self._survivors, self._public)

    def _keys_of(self, name: str, signed: bytes) -> bytes:
        """Return the two keys of a member; raise TaskRefused when its identity did not sign them."""
        keys, signature = signed[:KEYS_BYTES], signed[KEYS_BYTES:]
        document = masking.keys_document(self._round, name, keys)
        known = self._asked.keys.get(name, "")
        if len(signed) != KEYS_BYTES + SIGNATURE_BYTES or not signed_by(known, signature, document):
            raise TaskRefused(f"the keys of {name} are not signed by {name}")
        return keys

    def _cipher(self, sender: str, receiver: str) -> ChaCha20Poly1305:
        other = receiver if sender == self._me else sender
        if other not in self._shared:
            self._shared[other] = masking.exchange(self._share_key, self._public[other][: masking.KEY_BYTES])
        return ChaCha20Poly1305(masking.derive(self._shared[other], purpose=f"share of {sender} for {receiver}"))

    def _open(self, name: str) -> bytes:
        """Return the two shares that `name` made for this device; b"" when it sent something else."""
        if name == self._me:
            return self._own
        try:
            plain = self._cipher(name, self._me).decrypt(NONCE, self._received[name], self._aad)
        except (InvalidTag, MalformedMessage):
            return b""
        return plain if len(plain) == 2 * shamir.SHARE_BYTES else b""

    @property
    def _aad(self) -> bytes:
        return self._round.encode()

    def _enough(self, count: int, what: str) -> None:
        if count < self._asked.threshold:
            raise TaskRefused(f"only {count} {what}; {self._asked.threshold} must, or the sum would say too much")

    def _say(self, phase: str, **parts: object) -> Say:
        return Say(round=self._round, device=self._me, phase=phase, **parts)  # type: ignore[arg-type]

    def _refuse(self, reason: str) -> Say:
        self.phase, self.reason = Phase.REFUSED, reason
        self._last = self._say("refused", reason=reason[:300])
        self._forget()
        return self._last

    def _forget(self) -> None:
        """Drop what could open this device's update, or another's."""
        self._vector, self._seed, self._own, self._received = self._vector[:0], b"", b"", {}
        self._shared, self._share_key, self._mask_key = {}, self._gone, self._gone
