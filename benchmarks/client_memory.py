"""What a client holds: the proportional memory (PSS) of a process and all that come from it, on Linux.

A page that several processes share counts for each of them in part, so sums of it count every page once.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
from collections.abc import Sequence
from pathlib import Path

SAMPLE_S = 0.05


class Watch:
    """The memory of process trees, looked at every SAMPLE_S while the block lasts."""

    def __init__(self, roots: Sequence[int]) -> None:
        self._roots, self._done = roots, threading.Event()
        self.samples: list[list[float]] = [[] for _ in roots]
        self.most = [0] * len(roots)
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._done.wait(SAMPLE_S):
            for place, tree in enumerate(families(self._roots)):
                self.samples[place].append(sum(map(pss_mb, tree)))
                self.most[place] = max(self.most[place], len(tree))

    @property
    def median(self) -> float:
        return max(map(statistics.median, self.samples))

    @property
    def highest(self) -> float:
        return max(map(max, self.samples))


def families(roots: Sequence[int]) -> list[list[int]]:
    """Return each of these processes with all that come from it."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parent = int(stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(stat.parent.name))
    trees = [[root] for root in roots]
    for tree in trees:
        for pid in tree:
            tree += children.get(pid, [])
    return trees


def resting(roots: Sequence[int]) -> float:
    """Return the memory of the largest of these process trees now."""
    return max(sum(map(pss_mb, tree)) for tree in families(roots))


def pss_mb(pid: int) -> float:
    """Return the proportional set size of a process in MB of 10**6 bytes, 0 when it is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0
