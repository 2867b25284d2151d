"""The queue of federations: oldest first, one at a time, their slow parts in a thread beside the loop.

A federation that an earlier server was at is the oldest one unfinished, so it is taken up first.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from edgeml.registry import Registry
from edgeml.server.course import Shop
from edgeml.server.learner import Retrain
from edgeml.server.roster import Roster
from edgeml.server.rounds import Rounds


class Learning:
    """All unfinished federations of the registry; `current` is the one at work."""

    def __init__(self, registry: Registry, retrain: Retrain) -> None:
        self._registry, self._retrain = registry, retrain
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="edgeml-learning")
        self.current: Rounds | None = None
        unfinished = {record.id for record in registry.fleet.federations(unfinished=True)}
        for federation_id in registry.journals.known() - unfinished:
            registry.journals.forget(federation_id)

    def poll(self, roster: Roster, *, publish: Callable[..., None], wake: Callable[[], None]) -> None:
        """Take up the next federation when none is at work."""
        if self.current is not None and not self.current.is_over:
            return
        self.current = None
        waiting = self._registry.fleet.federations(unfinished=True)
        if waiting:

            def submit(work: Callable[..., Any], *arguments: Any) -> Future[Any]:
                future: Future[Any] = self._pool.submit(work, *arguments)
                future.add_done_callback(lambda _: wake())
                return future

            self.current = Rounds(waiting[0], Shop(self._registry, roster, publish, submit), self._retrain)

    def flush(self, now: float) -> None:
        """Write down what came of the federation at work."""
        if self.current is not None:
            self.current.flush(now)

    def close(self) -> None:
        """Let the worker finish what it is at, and end it."""
        self._pool.shutdown(cancel_futures=True)
