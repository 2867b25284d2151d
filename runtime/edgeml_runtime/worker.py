"""A thread for slow work, so that the agent's loop and its predictions go on meanwhile."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from edgeml_runtime.errors import DeviceError

log = logging.getLogger(__name__)


class Outcome(NamedTuple):
    """How a piece of work for `who` (about `tag`) ended: an event with a value, or an error."""

    who: str
    tag: str
    event: str
    value: Any = None
    error: Exception | None = None

    @property
    def reason(self) -> str:
        """The class name that reports carry, "" when it ended well."""
        if self.error is None:
            return ""
        return self.error.reason if isinstance(self.error, DeviceError) else type(self.error).__name__

    @property
    def detail(self) -> str:
        return (str(self.error).splitlines() or [""])[0] if self.error else ""


class Worker:
    """Runs one thing after the other; each ends in an `Outcome` given to `post`."""

    def __init__(self, who: str, post: Callable[[Outcome], None]) -> None:
        self._who, self._post = who, post
        self._work: queue.SimpleQueue[tuple[str, str, Callable[[], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def submit(self, tag: str, event: str, work: Callable[[], Any]) -> None:
        """Run `work` when what came before is done; it ends in `event`, or in "failed" with the error."""
        if self._thread is None:  # a device that never gets a task never has the thread
            self._thread = threading.Thread(target=self._run, name=self._who, daemon=True)
            self._thread.start()
        self._work.put((tag, event, work))

    def _run(self) -> None:
        while (item := self._work.get()) is not None:
            tag, event, work = item
            try:
                outcome = Outcome(self._who, tag, event, work())
            except DeviceError as error:
                outcome = Outcome(self._who, tag, "failed", error=error)
            except (
                Exception
            ) as error:  # a bug, or a disk that fails: the job ends, the agent goes on, the log has the trace
                log.exception("%s of %s", event, tag)
                outcome = Outcome(self._who, tag, "failed", error=error)
            self._post(outcome)
