"""A round under way: its machine, its signed offer, what devices have sent so far, and what of it is not yet kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.federated import Assembly, BadUpdate, Round, SecureRound, Update
from edgeml.registry import Upload
from edgeml_runtime.wire import BadSignature, WireError, blocks, messages, secure, tensors, topics
from edgeml_runtime.wire.messages import TaskOffer, UpdateHeader
from edgeml_runtime.wire.updates import check_signature


class OpenRound:
    """Between the offer and the end of one round; `bytes_down` counts what it made the server send."""

    def __init__(
        self, machine: Round | SecureRound, offer: TaskOffer, *, envelope: bytes, key_of: Callable[[str], str]
    ) -> None:
        """Open it; `key_of` a device is its public key, and what it does not sign is not taken."""
        self.machine, self.envelope, self._key_of = machine, envelope, key_of
        self.bytes_down = len(envelope) * len(machine.cohort)
        self._fresh: list[Upload] = []
        self._blobs = {offer.graph, offer.parameters}
        limit = offer.max_update_bytes
        self._assemblies = {
            name: Assembly(round=machine.id, device=name, max_update_bytes=limit) for name in machine.cohort
        }

    def take(self, device: str, payload: bytes, *, now: float) -> None:
        """Take a header or a block of an update.

        Raises WireError for one that cannot be accepted; the round knows of it and does not wait for that device.
        """
        try:
            self._take(device, payload, now)
        except BadSignature:
            self.machine.count(device, "unsigned")  # says nothing of the device: anybody may have sent it
            raise
        except WireError as error:
            self.machine.invalid(device, error, now)
            raise

    def replay(self, uploads: Iterable[Upload], now: float) -> None:
        """Take what an earlier server had kept of this round."""
        for upload in uploads:
            if upload.round == self.machine.id:
                header = messages.decode(UpdateHeader, upload.header)
                self._accept(header, upload.body, now)
                self.machine.took[upload.device] = upload.took

    def said(self, device: str, payload: bytes, *, now: float) -> None:
        """Take what a device says in secure aggregation; raise WireError for what cannot be accepted."""
        if not isinstance(self.machine, SecureRound) or device not in self.machine.cohort:
            self.machine.count(device, "stranger")
            return
        try:
            self.machine.said(device, secure.decode_say(payload, self._key_of(device)), now, size=len(payload))
        except BadSignature:
            self.machine.count(device, "unsigned")
            raise
        except WireError as error:
            self.machine.invalid(device, error, now)
            raise

    def asks(self, key: Ed25519PrivateKey) -> list[tuple[str, bytes]]:
        """Return what devices are to be asked now, signed by `key`: topics and payloads."""
        asks = self.machine.asks() if isinstance(self.machine, SecureRound) else []
        return [self._signed(ask, key) for ask in asks]

    def ask_again(self, device: str, key: Ed25519PrivateKey) -> list[tuple[str, bytes]]:
        """Return the last ask of a device that is back, see `asks`."""
        ask = self.machine.ask_of(device) if isinstance(self.machine, SecureRound) else None
        return [] if ask is None else [self._signed(ask, key)]

    def _signed(self, ask: secure.Ask, key: Ed25519PrivateKey) -> tuple[str, bytes]:
        payload = secure.encode_ask(ask, key)
        self.bytes_down += len(payload)
        return topics.ask(ask.device, ask.round), payload

    def served(self, digest: str, count: int) -> None:
        """Count bytes sent to a device, if they were for this round."""
        if digest in self._blobs:
            self.bytes_down += count

    def kept(self) -> list[Upload]:
        """Return the updates taken since the last call: the caller writes them down."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def _take(self, device: str, payload: bytes, now: float) -> None:
        assembly = self._assemblies.get(device)
        if assembly is None:
            self.machine.count(device, "stranger")
            return
        if blocks.is_block(payload):
            assembly.add(blocks.decode(payload))
        else:
            header = read_header(payload, device, self._key_of)
            if header.refused:
                self.machine.refuse(device, header.refused, now)
                return
            assembly.open(header)
        if assembly.complete and assembly.header is not None:
            header, body = assembly.header, assembly.data()
            if not self._accept(header, body, now) and isinstance(self.machine, Round):
                took = self.machine.took[device]
                encoded = messages.encode(header)
                self._fresh.append(Upload(round=header.round, device=device, header=encoded, body=body, took=took))

    def _accept(self, header: UpdateHeader, body: bytes, now: float) -> str:
        return self.machine.receive(header.device, read_update(header, body), now)


def read_header(payload: bytes, device: str, key_of: Callable[[str], str]) -> UpdateHeader:
    """Return the header that `device` sent and signed; raise WireError when it did not."""
    header = messages.decode(UpdateHeader, payload)
    if header.device != device:
        raise BadUpdate("stranger", f"an update of {header.device} on the topic of {device}")
    check_signature(header, key_of(device))
    return header


def read_update(header: UpdateHeader, body: bytes) -> Update:
    """Return the update that came as `header` and `body`, not yet checked; raise WireError when it is none."""
    return Update(header.device, header.rows, tensors.unpack(body), metrics=header.metrics, size=header.size)
