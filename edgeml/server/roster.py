"""Every device the server has heard of, in memory; what changed goes to the registry in batches."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from edgeml import telemetry
from edgeml.registry import DeviceRecord, Fleet
from edgeml_runtime.wire import MalformedMessage
from edgeml_runtime.wire.messages import Metrics, Online, Reported

BOOTS = 8  # boot ids remembered per device, to tell two agents with one id from a reboot
NOTES = 5
log = logging.getLogger(__name__)


class Roster:
    """The fleet's last known state. A device is listed from its first message on."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        # who is online is what the broker says now, not what the last server knew
        self._records = {record.id: dataclasses.replace(record, online=False) for record in fleet.devices()}
        self._keys = fleet.keys()
        self._boots: dict[str, list[str]] = {}
        self._dirty: set[str] = set(self._records)

    def __getitem__(self, device: str) -> DeviceRecord:
        return self._records.get(device) or DeviceRecord(id=device)

    def key(self, device: str) -> str:
        """Return the public key (hex) by which `device` is known, "" when it never reported one."""
        return self._keys.get(device, "")

    def online(self) -> list[DeviceRecord]:
        """Return the devices that are online, by id."""
        return sorted((record for record in self._records.values() if record.online), key=lambda record: record.id)

    def connected(self, device: str, message: Online, now: float, *, live: bool) -> None:
        """Take an online message or a will; `live` is False for one that the broker had retained.

        A late will of an older boot says nothing about the present one.
        """
        if not message.online and message.boot_id != self[device].boot_id:
            return
        if message.online and live:
            self._boot(device, message.boot_id)
        self._save(device, now, online=message.online, boot_id=message.boot_id)

    def reported(self, device: str, message: Reported, now: float, *, live: bool) -> bool:
        """Take a device's state; return False for one that is older than what is known."""
        known = self[device].reported
        if live:
            self._boot(device, message.boot_id)
        if message.key and message.key != self.key(device):
            self._meet(device, message.key)
        if known is not None and known.boot_id == message.boot_id and message.seq < known.seq:
            return False
        self._save(device, now, reported=message, board=message.board)
        return True

    def measured(self, device: str, message: Metrics, now: float) -> None:
        """Take a telemetry snapshot."""
        if message.latency is not None and not telemetry.well_formed(message.latency):
            raise MalformedMessage(f"a latency histogram of {len(message.latency.counts)} counts that is none")
        self._save(device, now, telemetry=telemetry.merge(self[device].telemetry, message))

    def malformed(self, device: str, why: str, now: float) -> None:
        """Count a message that could not be read; the first one of a device and every hundredth are logged."""
        count = self[device].malformed + 1
        if count % 100 == 1:
            log.warning("%s sent message no. %d that cannot be read: %s", device, count, why)
        self._save(device, now, malformed=count)

    def flush(self) -> None:
        """Write what changed, in one transaction."""
        if self._dirty:
            self._fleet.save_devices(self._records[device] for device in sorted(self._dirty))
            self._dirty.clear()

    def _boot(self, device: str, boot_id: str) -> None:
        """Note a boot; one that comes back after another had taken its place cannot be a reboot."""
        seen = self._boots.setdefault(device, [])
        if boot_id in seen[:-1]:
            note = f"boots {seen[-1]} and {boot_id} take turns: two agents run as {device!r}; enroll one anew"
            self._note(device, note)
            seen.remove(boot_id)
        if seen[-1:] != [boot_id]:
            seen.append(boot_id)
        del seen[:-BOOTS]

    def _meet(self, device: str, key: str) -> None:
        """Know `device` by `key`, if it is the first; note another one."""
        self._keys[device] = self._fleet.pin_key(device, key)
        if self._keys[device] != key:
            note = (
                f"reports another key than the one it is known by: its updates are not taken; if it was set up anew: "
                f"edgeml fleet forget-key {device}"
            )
            self._note(device, note)

    def _note(self, device: str, note: str) -> None:
        if note not in self[device].notes:
            log.warning("%s: %s", device, note)
            self._records[device] = dataclasses.replace(self[device], notes=(*self[device].notes, note)[-NOTES:])

    def _save(self, device: str, now: float, **changes: Any) -> None:
        self._records[device] = dataclasses.replace(self[device], last_seen=now, **changes)
        self._dirty.add(device)
