"""Secrets of devices, put together again from the shares that others hold, for masks to be taken off a sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from edgeml_runtime.wire import MalformedMessage, masking, shamir
from edgeml_runtime.wire.secure import Say


class Unopened(MalformedMessage):
    """Shares that give no secret which fits: `device` is whose."""

    def __init__(self, device: str, what: str) -> None:
        super().__init__(f"the shares of {device}'s {what} do not fit: it, or too many others, sent false ones")
        self.device = device


class Opener:
    """Secrets back from shares. A share that does not fit is left out, as long as `threshold` others remain."""

    def __init__(self, members: Sequence[str], said: Mapping[str, Say], threshold: int) -> None:
        self._numbers = {name: number for number, name in enumerate(members)}
        self._said, self._threshold = said, threshold
        self._weights: dict[tuple[int, ...], dict[int, int]] = {}

    def seed(self, name: str, commitment: bytes) -> bytes:
        """Return the seed of a device's own mask, which fits its commitment."""
        for secret in self._secrets(name, {u: say.seeds for u, say in self._said.items()}):
            if masking.commitment(secret) == commitment:
                return secret
        raise Unopened(name, "own mask")

    def mask_key(self, name: str, public: bytes) -> X25519PrivateKey:
        """Return the mask key of a device that is gone, which fits its public key."""
        for secret in self._secrets(name, {u: say.masks for u, say in self._said.items()}):
            private = X25519PrivateKey.from_private_bytes(secret)
            if private.public_key().public_bytes_raw() == public:
                return private
        raise Unopened(name, "mask key")

    def _secrets(self, name: str, told: Mapping[str, Mapping[str, bytes]]) -> Iterator[bytes]:
        shares = {self._numbers[u]: given[name] for u, given in sorted(told.items()) if name in given}
        for chosen in _choices(tuple(shares), self._threshold):
            if chosen not in self._weights:
                self._weights[chosen] = shamir.weights(chosen)
            try:
                yield shamir.combine(shares, self._weights[chosen])
            except MalformedMessage:
                continue


def _choices(numbers: tuple[int, ...], threshold: int) -> Iterator[tuple[int, ...]]:
    """Yield the first `threshold` of `numbers`, then the same with each of them left out in turn."""
    if len(numbers) < threshold:
        return
    yield numbers[:threshold]
    if len(numbers) > threshold:
        for left_out in numbers[:threshold]:
            yield tuple(number for number in numbers if number != left_out)[:threshold]
