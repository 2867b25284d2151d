"""One benchmark on one device, as the server sees it: a pure state machine, messages and time in, effects out.

    WAITING (until the device is online) > ASKED (until it answers) > THERE (it works) > DONE (its blocks come) > end

Every state has a deadline. A device that says nothing is asked again with the same task, which it knows by its
id: one that is at it answers how it stands, one that is done sends its result again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from edgeml.federated import Assembly
from edgeml_runtime.wire import MalformedMessage, WireError
from edgeml_runtime.wire.bench import BenchResult, decode_result
from edgeml_runtime.wire.blocks import Block
from edgeml_runtime.wire.messages import BenchStatus, BenchTask, UpdateHeader

ANSWER_S, MOST_ASKED = 5.0, 6  # an agent answers at once; six times that and it has no benchmarks, or no such key
SILENT_S = 30.0  # while it works, it says so every ten seconds
BLOCKS_S, MOST_UPLOADS = 10.0, 5
MARGIN_S = 60.0  # beyond the task's own deadline, which the device keeps


class Phase(StrEnum):
    WAITING = "WAITING"
    ASKED = "ASKED"
    THERE = "THERE"
    DONE = "DONE"
    OVER = "OVER"


@dataclass(frozen=True)
class Ask:
    """Publish the task (again)."""


@dataclass(frozen=True)
class TakeBack:
    """Tell the device that the task is not wanted any more."""


@dataclass(frozen=True)
class Note:
    """Write what the device says."""

    status: BenchStatus


@dataclass(frozen=True)
class End:
    """It is over: with a result, or with the reason why there is none."""

    reason: str = ""
    detail: str = ""
    result: BenchResult | None = None
    data: bytes = b""


Effect = Ask | TakeBack | Note | End


class Errand:
    """From the moment its turn has come to its end."""

    def __init__(self, task: BenchTask, now: float, *, gone_s: float) -> None:
        self.task, self.phase = task, Phase.WAITING
        self._gone_s, self._gone_since = gone_s, now
        self._deadline = now + task.deadline_s + MARGIN_S
        self._due, self._asked, self._uploads = now, 0, 0
        self._last = "it was never online"
        self._assembly: Assembly | None = None

    def tick(self, now: float, *, online: bool) -> list[Effect]:
        """Let time pass: deadlines, and what must be asked again."""
        if self.phase is Phase.OVER:
            return []
        if now >= self._deadline:
            detail = f"{self.task.device} did not end it within {self.task.deadline_s:g} s; {self._last}"
            return [TakeBack(), *self._end("Timeout", detail)]
        if not online:
            return self._gone(now)
        self._gone_since = now
        if now < self._due:
            return []
        if self.phase is Phase.DONE:
            self._uploads += 1
        if self._asked >= MOST_ASKED:
            detail = f"{self.task.device} does not answer: update its agent, or enroll it with this server's key"
            return self._end("NoAnswer", f"{detail}; {self._last}")
        if self._uploads > MOST_UPLOADS:
            return self._end("NoResult", f"{self.task.device} is done, but its result never arrived whole")
        self._asked, self._due = self._asked + 1, now + ANSWER_S
        self.phase = Phase.ASKED if self.phase is Phase.WAITING else self.phase
        return [Ask()]

    def came(self, now: float) -> None:
        """The device is online (again): ask at once."""
        self._due, self._gone_since = now, now

    def heard(self, status: BenchStatus, now: float) -> list[Effect]:
        """Take what the device says of this task. Raises MalformedMessage for a result that cannot be."""
        if self.phase is Phase.OVER:
            return []
        self._asked, self._due = 0, now + SILENT_S
        said = ": ".join(filter(None, (status.state, status.reason, status.detail)))
        self._last = f"it said last: {said}"
        match status.state:
            case "QUEUED" | "RUNNING":
                self.phase = Phase.THERE
                return [Note(status)]
            case "DONE":
                return self._announced(status, now)
            case _:
                return [Note(status), *self._end(status.reason or status.state, status.detail or status.state)]

    def took(self, block: Block, now: float) -> list[Effect]:
        """Take a block of the result. Raises WireError for one that cannot be; a result that cannot be ends it."""
        if self._assembly is None or self.phase is not Phase.DONE:
            return []
        self._due = now + BLOCKS_S
        self._assembly.add(block)
        if not self._assembly.complete:
            return []
        data = self._assembly.data()
        self.phase = Phase.OVER
        return [End(result=decode_result(data, self.task), data=data)]

    def refused(self, error: WireError) -> list[Effect]:
        """Its result was not accepted: no second one is asked for."""
        self.phase = Phase.OVER
        return [End("BadResult", f"the result of {self.task.device} is not accepted: {error}")]

    def cancel(self) -> list[Effect]:
        """Whoever asked for it does not want it any more."""
        if self.phase is Phase.OVER:
            return []
        return [TakeBack(), *self._end("Canceled", "taken back by whoever asked for it")]

    def _announced(self, status: BenchStatus, now: float) -> list[Effect]:
        self._due = now + BLOCKS_S
        if self._assembly is None or self._assembly.header is None or self._assembly.header.digest != status.digest:
            limit = self.task.max_result_bytes
            assembly = Assembly(round=self.task.task, device=self.task.device, max_update_bytes=limit)
            assembly.open(
                UpdateHeader(
                    round=status.task,
                    device=status.device,
                    boot_id=status.boot_id,
                    rows=0,
                    digest=status.digest,
                    size=status.size,
                )
            )
            self._assembly = assembly
        self.phase = Phase.DONE
        return [Note(status)]

    def _gone(self, now: float) -> list[Effect]:
        if now - self._gone_since < self._gone_s:
            return []
        return self._end("DeviceGone", f"{self.task.device} is offline for {self._gone_s:g} s; {self._last}")

    def _end(self, reason: str, detail: str) -> list[Effect]:
        self.phase = Phase.OVER
        return [End(reason, detail)]


def check_sender(status: BenchStatus, device: str) -> BenchStatus:
    """Return `status`, or raise MalformedMessage when it arrived on another device's topic."""
    if status.device != device:
        raise MalformedMessage(f"a benchmark's status of {status.device} on the topic of {device}")
    return status
