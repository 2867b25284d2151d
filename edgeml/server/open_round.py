"""A round under way: its machine, its signed offer, what devices have sent so far, and what of it is not yet kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgeml.federated import Assembly, Round, SecureRound, fault_of
from edgeml.federated.secagg import Phase
from edgeml.registry import Upload
from edgeml.server.arrivals import Unproven, collect, read_update
from edgeml_runtime.wire import BadSignature, WireError, messages, secure, topics
from edgeml_runtime.wire.messages import TaskOffer, UpdateHeader


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
        """Take a header or a block of an update; raise WireError for one that cannot be accepted.

        The round knows of what a device has signed, and does not wait for it; what anybody may have sent is counted.
        """
        assembly = self._assemblies.get(device)
        if assembly is None:
            self.machine.count(device, "stranger")
            return
        try:
            self._take(assembly, payload, now)
        except (BadSignature, Unproven) as error:
            self.machine.count(device, fault_of(error))
            raise
        except WireError as error:
            self.machine.invalid(device, error, now)
            raise

    def replay(self, uploads: Iterable[Upload], now: float) -> None:
        """Take what an earlier server had kept of this round."""
        machine = self.machine
        for upload in uploads:
            round_id, _, phase = upload.round.partition("/")
            if round_id != machine.id:
                continue
            if isinstance(machine, SecureRound):
                self._recall(machine, upload, said=bool(phase))
                continue
            self._accept(messages.decode(UpdateHeader, upload.header), upload.body, now)
            machine.took[upload.device] = upload.took
        if isinstance(machine, SecureRound):
            machine.go_on(now)

    def said(self, device: str, payload: bytes, *, now: float) -> None:
        """Take what a device says in secure aggregation; raise WireError for what cannot be accepted."""
        machine = self.machine
        if not isinstance(machine, SecureRound) or device not in machine.cohort:
            machine.count(device, "stranger")
            return
        try:
            say = secure.decode_say(payload, self._key_of(device))
            if not machine.said(device, say, now, size=len(payload)) and say.phase != "refused":
                self._keep(f"{machine.id}/{say.phase}", device, body=payload)
        except BadSignature:
            machine.count(device, "unsigned")
            raise
        except WireError as error:
            machine.invalid(device, error, now)
            raise

    @property
    def asking(self) -> bool:
        """Whether devices are to be asked something, as soon as what `kept` returns is written down."""
        return isinstance(self.machine, SecureRound) and self.machine.asking

    def asks(self, key: Ed25519PrivateKey) -> list[tuple[str, bytes]]:
        """Return what devices are to be asked now, signed by `key`: topics and payloads.

        The journal must have the round as it stands before any of these leaves: a server that comes back must not ask
        about other survivors.
        """
        asks = self.machine.asks() if isinstance(self.machine, SecureRound) else []
        return [self._signed(ask, key) for ask in asks]

    def remind(self, device: str) -> None:
        """Ask a device that is back what it has not answered."""
        if isinstance(self.machine, SecureRound):
            self.machine.remind(device)

    def remind_all(self) -> bool:
        """Ask everybody what they have not answered; return whether the offer has had its time."""
        if not isinstance(self.machine, SecureRound) or self.machine.phase is Phase.KEYS:
            return False
        for device in sorted(self.machine.cohort):
            self.machine.remind(device)
        return True

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

    def _take(self, assembly: Assembly, payload: bytes, now: float) -> None:
        arrived = collect(assembly, payload, self._key_of)
        if arrived is None:
            return
        if arrived.header.refused:
            self.machine.refuse(assembly.device, arrived.header.refused, now)
        elif not self._accept(arrived.header, arrived.body, now):
            self._keep(self.machine.id, assembly.device, header=messages.encode(arrived.header), body=arrived.body)

    def _accept(self, header: UpdateHeader, body: bytes, now: float) -> str:
        return self.machine.receive(header.device, read_update(header, body), now)

    def _keep(self, key: str, device: str, *, body: bytes, header: bytes = b"") -> None:
        took = self.machine.took.get(device, 0.0)
        self._fresh.append(Upload(round=key, device=device, header=header, body=body, took=took))

    def _recall(self, machine: SecureRound, upload: Upload, *, said: bool) -> None:
        device, body = upload.device, upload.body
        if said:
            say = secure.decode_say(body, machine.asked.keys[device])
            machine.recall(device, say, size=len(body), took=upload.took)
        else:
            machine.recall_update(device, read_update(messages.decode(UpdateHeader, upload.header), body))
