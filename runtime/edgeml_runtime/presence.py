"""Two agents with one id, noticed from the id's own `online` topic. Pure: messages in, a verdict out.

A broker keeps one connection per client id, so two agents would throw each other out for ever. What an
agent finds on the topic before its own first word there is its own past (a reboot leaves such a
message behind). A boot it has never seen, after its own word, is another agent: the older one yields.
"""

from __future__ import annotations

from enum import StrEnum

from edgeml_runtime.wire.messages import Online


class Verdict(StrEnum):
    FINE = "fine"
    SPEAK_UP = "speak up"  # a late will of an older boot says this device is off: say again that it is on
    CONFLICT = "conflict"


class Presence:
    """What one agent, of boot `boot_id`, concludes from what it sees on its own topic."""

    def __init__(self, boot_id: str) -> None:
        self.boot_id = boot_id
        self._announced = False
        self._past: set[str] = set()

    def seen(self, message: Online) -> Verdict:
        """Take a message on the own topic, one's own included."""
        if message.boot_id == self.boot_id:
            self._announced = True
            return Verdict.FINE
        if not self._announced:
            self._past.add(message.boot_id)
            return Verdict.FINE
        if message.boot_id not in self._past:
            return Verdict.CONFLICT
        return Verdict.FINE if message.online else Verdict.SPEAK_UP
