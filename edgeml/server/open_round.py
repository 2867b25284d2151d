"""A round under way: its machine, its signed offer, and what each device of the cohort has sent so far."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edgeml.federated import Assembly, Round, Update
from edgeml_runtime.wire import WireError, blocks, messages
from edgeml_runtime.wire.messages import TaskOffer, UpdateHeader


class OpenRound:
    """Between the offer and the end of one round; `bytes_down` counts what it made the server send."""

    def __init__(
        self, machine: Round, offer: TaskOffer, *, envelope: bytes, parameters: Mapping[str, np.ndarray]
    ) -> None:
        self.machine, self.envelope = machine, envelope
        self.bytes_down = len(envelope) * len(machine.cohort)
        self._parameters = parameters
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
        except WireError as error:
            self.machine.invalid(device, error, now)
            raise

    def served(self, digest: str, count: int) -> None:
        """Count bytes sent to a device, if they were for this round."""
        if digest in self._blobs:
            self.bytes_down += count

    def _take(self, device: str, payload: bytes, now: float) -> None:
        assembly = self._assemblies.get(device)
        if assembly is None:
            self.machine.count(device, "stranger")
            return
        if blocks.is_block(payload):
            assembly.add(blocks.decode(payload))
        else:
            header = messages.decode(UpdateHeader, payload)
            if header.refused:
                self.machine.refuse(device, header.refused, now)
                return
            assembly.open(header)
        if assembly.complete and assembly.header is not None:
            header, arrays = assembly.header, assembly.arrays()
            update = Update(device, header.rows, arrays, metrics=header.metrics, size=header.size)
            self.machine.receive(device, update, now)
