"""What the fleet says about itself, merged: Metrics snapshots in, one state per device out.

A snapshot carries sums since boot that only grow, so a lost one loses nothing. A new `boot_id`
starts at zero again: what the last boot had counted is kept and the new boot adds to it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeml_runtime.wire.messages import Histogram, Metrics

REMEMBERED_BOOTS = 16  # a late snapshot of one of these is not counted again


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """One device over all its boots. `past` are the sums of finished boots, `now` is the running one."""

    past: Metrics | None = None
    now: Metrics | None = None
    boots: tuple[str, ...] = ()  # finished ones, oldest first

    @property
    def total(self) -> Metrics | None:
        """Everything this device ever counted, with the newest release, uptime and memory."""
        return add(self.past, self.now) if self.past and self.now else self.now or self.past


@dataclass(frozen=True, kw_only=True)
class Summary:
    """A device in one line; latencies are upper edges of histogram buckets, in ms, or None before the first answer."""

    predictions: int = 0
    errors: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    rss_mb: float = 0.0
    labels: Mapping[str, int] = field(default_factory=dict)
    last_error: str = ""
    personal: bool | None = None  # whether the device's own tensors answer; None: it has none
    gain: float | None = None  # of them over the release, on its own rows


def merge(state: Telemetry, metrics: Metrics) -> Telemetry:
    """Return `state` with one snapshot more; an older one than known, or of a finished boot, changes nothing."""
    now = state.now
    if metrics.boot_id in state.boots:
        return state
    if now is None or metrics.boot_id == now.boot_id:
        newer = now is None or metrics.seq > now.seq
        return dataclasses.replace(state, now=metrics) if newer else state
    past = add(state.past, now) if state.past else now
    return Telemetry(past=past, now=metrics, boots=(*state.boots, now.boot_id)[-REMEMBERED_BOOTS:])


def add(older: Metrics, newer: Metrics) -> Metrics:
    """Return the sums of both; what is no sum (release, memory, ...) is the newer's."""
    labels = dict(older.labels)
    for name, count in newer.labels.items():
        labels[name] = labels.get(name, 0) + count
    return dataclasses.replace(
        newer,
        predictions=older.predictions + newer.predictions,
        errors=older.errors + newer.errors,
        labels=labels,
        latency=_add_histograms(older.latency, newer.latency),
        last_error=newer.last_error or older.last_error,
    )


def _add_histograms(older: Histogram | None, newer: Histogram | None) -> Histogram | None:
    """Return the sum; an agent with other edges than before starts its histogram anew."""
    if older is None or newer is None or older.edges != newer.edges:
        return newer or older
    counts = tuple(a + b for a, b in zip(older.counts, newer.counts, strict=True))
    return Histogram(edges=newer.edges, counts=counts)


def well_formed(histogram: Histogram) -> bool:
    """Say whether the edges rise and there is one count more than edges, none of them negative."""
    rising = all(a < b for a, b in zip(histogram.edges, histogram.edges[1:], strict=False))
    return rising and len(histogram.counts) == len(histogram.edges) + 1 and min(histogram.counts) >= 0


def percentile(histogram: Histogram | None, share: float) -> float | None:
    """Return the upper edge, in seconds, of the bucket where `share` of the counts is reached.

    None without counts. In the overflow bucket only a lower bound is known: its edge is returned.

    >>> percentile(Histogram(edges=(0.001, 0.01), counts=(90, 9, 1)), 0.5)
    0.001
    """
    if histogram is None or not sum(histogram.counts) or not histogram.edges:
        return None
    needed, seen = share * sum(histogram.counts), 0
    for edge, count in zip(histogram.edges, histogram.counts, strict=False):
        seen += count
        if seen >= needed:
            return edge
    return histogram.edges[-1]


def summarize(state: Telemetry) -> Summary:
    """Return the device's one line."""
    total = state.total
    if total is None:
        return Summary()

    def ms(share: float) -> float | None:
        seconds = percentile(total.latency, share)
        return None if seconds is None else seconds * 1000

    return Summary(
        predictions=total.predictions,
        errors=total.errors,
        p50_ms=ms(0.5),
        p90_ms=ms(0.9),
        p99_ms=ms(0.99),
        rss_mb=total.rss_bytes / 1e6,
        labels=dict(total.labels),
        last_error=total.last_error,
        personal=total.personal,
        gain=total.gain,
    )
