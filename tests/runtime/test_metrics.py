"""Counters of one boot."""

from __future__ import annotations

import subprocess
import sys
import threading

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edgeml_runtime.metrics import LATENCY_EDGES, MAX_LABELS, OTHER, Counters
from edgeml_runtime.wire.messages import MAX_BYTES, Histogram, Metrics, decode, encode


def latency_of(metrics: Metrics) -> Histogram:
    assert metrics.latency is not None
    return metrics.latency


def test_the_edges_are_log_spaced_from_ten_microseconds_to_ten_seconds() -> None:
    assert LATENCY_EDGES[0] == 1e-5
    assert LATENCY_EDGES[-1] == 10
    assert np.allclose(np.diff(np.log10(LATENCY_EDGES)), 0.25, atol=0.003)


@given(st.lists(st.floats(min_value=0, max_value=100)))
def test_every_request_falls_into_the_bucket_between_its_edges(seconds: list[float]) -> None:
    counters = Counters("boot")
    for value in seconds:
        counters.served(value, ["a"])
    histogram = latency_of(counters.snapshot(1.0))
    assert len(histogram.counts) == len(histogram.edges) + 1
    inner = np.histogram(seconds, bins=[0, *LATENCY_EDGES, np.inf])[0] if seconds else [0] * (len(LATENCY_EDGES) + 1)
    assert list(histogram.counts) == list(inner)


@given(st.lists(st.one_of(st.none(), st.lists(st.sampled_from("abc"), max_size=3)), max_size=20))
def test_sums_only_grow_and_add_up(requests: list[list[str] | None]) -> None:
    counters = Counters("boot", started=5.0)
    last = counters.snapshot(5.0)
    for request in requests:
        if request is None:
            counters.failed("no such column")
        else:
            counters.served(0.001, request, "r1")
        now = counters.snapshot(6.0)
        assert now.seq == last.seq + 1
        assert now.predictions + now.errors > last.predictions + last.errors
        last = now
    assert last.errors == requests.count(None)
    assert sum(last.labels.values()) == sum(len(request) for request in requests if request)


def test_a_regressor_counts_its_rows_without_labels() -> None:
    counters = Counters("boot")
    counters.served(0.1, rows=7, release="r1")
    counters.served(0.1)
    snapshot = counters.snapshot(2.0)
    assert (snapshot.predictions, snapshot.labels, snapshot.release) == (8, {}, "r1")
    assert sum(latency_of(snapshot).counts) == 2


def test_a_report_stays_small_whatever_is_counted() -> None:
    counters = Counters("boot")
    for i in range(3 * MAX_LABELS):
        counters.served(0.1, [f"{i:05d}" + "é" * 500])
    counters.failed("x" * 100_000)
    snapshot = counters.snapshot(1.0)
    payload = encode(snapshot)
    assert len(payload) <= MAX_BYTES[Metrics]
    assert decode(Metrics, payload) == snapshot
    assert snapshot.labels[OTHER] == 2 * MAX_LABELS


def test_uptime_is_counted_from_the_start() -> None:
    assert Counters("boot", started=10.0).snapshot(12.5).uptime_s == 2.5


def test_threads_lose_no_count() -> None:
    counters = Counters("boot")
    threads = [threading.Thread(target=lambda: [counters.served(0.001, ["a"]) for _ in range(2000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.snapshot(1.0).labels == {"a": 8000}


def test_resident_memory_is_that_of_this_process() -> None:
    """In a process of its own: a large one may have 64 MiB to spare that the kernel counts already."""
    code = (
        "import numpy as np; from edgeml_runtime.metrics import rss_bytes; before = rss_bytes();"
        "block = np.ones(8 << 20); print(rss_bytes() - before, block.sum())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown, total = map(float, done.stdout.split())
    assert 32 << 20 < grown < 128 << 20 and total == 8 << 20
