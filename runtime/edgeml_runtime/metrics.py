"""What a device counts while it serves, as sums since boot that only grow: a lost report loses nothing."""

from __future__ import annotations

import bisect
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from edgeml_runtime.wire.messages import Histogram, Metrics

# seconds, four per decade from 10 us (a small MLP) to 10 s: fixed, so histograms of all devices add up
LATENCY_EDGES: tuple[float, ...] = tuple(float(f"{10 ** (step / 4 - 5):.3g}") for step in range(25))
MAX_LABELS = 500  # distinct names in one report, which must stay under 64 KiB
MAX_NAME, MAX_ERROR = 64, 300  # characters
OTHER = "(other)"


class Counters:
    """Counts of one boot. Every method may be called by several threads at once."""

    def __init__(self, boot_id: str, *, started: float = 0.0) -> None:
        """Count from `started`, a time of the clock that `snapshot` will be given."""
        self.boot_id, self._started = boot_id, started
        self._lock = threading.Lock()
        self._seq = self._predictions = self._errors = 0
        self._latency = [0] * (len(LATENCY_EDGES) + 1)
        self._labels: Counter[str] = Counter()
        self._release = self._last_error = ""

    def served(self, seconds: float, labels: Iterable[str] = (), release: str = "", *, rows: int | None = None) -> None:
        """Count one answered request of `rows` predictions (default: one per label, at least one)."""
        names = [label[:MAX_NAME] for label in labels]
        with self._lock:
            self._predictions += max(1, len(names)) if rows is None else rows
            self._latency[bisect.bisect_right(LATENCY_EDGES, seconds)] += 1
            for name in names:
                known = name in self._labels or len(self._labels) < MAX_LABELS
                self._labels[name if known else OTHER] += 1
            self._release = release or self._release

    @property
    def predictions(self) -> int:
        """How many have been answered since boot."""
        return self._predictions

    def failed(self, message: str) -> None:
        """Count one request that ended in an error, and remember its message."""
        with self._lock:
            self._errors += 1
            self._last_error = message[:MAX_ERROR]

    def snapshot(self, now: float) -> Metrics:
        """Return everything counted so far as the next telemetry message."""
        rss = rss_bytes()
        with self._lock:
            self._seq += 1
            return Metrics(
                boot_id=self.boot_id,
                seq=self._seq,
                uptime_s=max(0.0, now - self._started),
                release=self._release,
                predictions=self._predictions,
                errors=self._errors,
                latency=Histogram(edges=LATENCY_EDGES, counts=tuple(self._latency)),
                labels=dict(self._labels),
                rss_bytes=rss,
                last_error=self._last_error,
            )


def rss_bytes() -> int:
    """Return the resident memory of this process, from /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0
