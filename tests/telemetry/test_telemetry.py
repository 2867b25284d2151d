"""Telemetry is merged without losing or counting anything twice."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.telemetry import Telemetry, merge, percentile, summarize, well_formed
from edgeml_runtime.wire.messages import Histogram, Metrics

EDGES = (0.001, 0.01, 0.1)


def snapshot(
    boot: str, seq: int, *, counts: tuple[int, ...] = (0, 0, 0, 0), edges: tuple[float, ...] = EDGES
) -> Metrics:
    return Metrics(
        boot_id=boot,
        seq=seq,
        uptime_s=float(seq),
        predictions=sum(counts),
        errors=seq,
        latency=Histogram(edges=edges, counts=counts),
        labels={"cat": sum(counts)},
        rss_bytes=50_000_000,
    )


def merged(snapshots: Sequence[Metrics]) -> Telemetry:
    state = Telemetry()
    for metrics in snapshots:
        state = merge(state, metrics)
    return state


def test_the_newest_snapshot_of_a_boot_is_its_sum() -> None:
    state = merged([snapshot("a", 1, counts=(1, 0, 0, 0)), snapshot("a", 3, counts=(5, 1, 0, 0)), snapshot("a", 2)])
    assert state.total is not None
    assert (state.total.predictions, state.total.errors, state.total.labels) == (6, 3, {"cat": 6})


def test_a_reboot_adds_to_what_was_counted_before() -> None:
    state = merged([snapshot("a", 7, counts=(4, 0, 0, 0)), snapshot("b", 1, counts=(0, 2, 0, 0))])
    summary = summarize(state)
    assert (summary.predictions, summary.errors, summary.labels) == (6, 8, {"cat": 6})
    assert (summary.p50_ms, summary.p90_ms) == (1.0, 10.0)


def test_a_late_snapshot_of_a_finished_boot_changes_nothing() -> None:
    state = merged([snapshot("a", 1, counts=(4, 0, 0, 0)), snapshot("b", 1)])
    assert merge(state, snapshot("a", 2, counts=(9, 0, 0, 0))) == state


def test_an_agent_with_other_edges_starts_its_histogram_anew_and_keeps_its_sums() -> None:
    state = merged([snapshot("a", 1, counts=(4, 0, 0, 0)), snapshot("b", 1, counts=(0, 3), edges=(0.5,))])
    assert state.total is not None
    assert state.total.predictions == 7
    assert state.total.latency == Histogram(edges=(0.5,), counts=(0, 3))


@given(st.lists(st.lists(st.integers(0, 50), min_size=1, max_size=5), min_size=1, max_size=5), st.randoms())
def test_lost_repeated_and_reordered_snapshots_of_a_boot_lose_nothing(boots: list[list[int]], random: object) -> None:
    expected, sent = 0, []
    for number, increments in enumerate(boots):
        totals = list(itertools.accumulate(increments))
        batch = [snapshot(f"boot-{number}", seq, counts=(total, 0, 0, 0)) for seq, total in enumerate(totals)]
        last = batch[-1]
        extra = batch + batch[:2]
        random.shuffle(extra)  # type: ignore[attr-defined]
        sent += [last, *extra]
        expected += totals[-1]
    total = merged(sent).total
    assert total is not None
    assert total.predictions == expected


@given(st.lists(st.floats(1e-5, 1.0), min_size=1, max_size=200), st.floats(0.01, 1.0))
def test_a_percentile_is_the_edge_of_the_bucket_the_true_one_lies_in(samples: list[float], share: float) -> None:
    edges = tuple(10.0 ** (-5 + 0.25 * i) for i in range(21))
    counts = [0] * (len(edges) + 1)
    for sample in samples:
        counts[next((i for i, edge in enumerate(edges) if sample <= edge), len(edges))] += 1
    true = sorted(samples)[max(0, -(-round(share * len(samples) * 1e9) // 10**9) - 1)]
    found = percentile(Histogram(edges=edges, counts=tuple(counts)), share)
    assert found is not None
    assert found in edges
    assert found >= true * 0.999999 or found == edges[-1]


def test_nothing_served_has_no_percentile() -> None:
    assert percentile(None, 0.5) is None
    assert percentile(Histogram(edges=EDGES, counts=(0, 0, 0, 0)), 0.5) is None
    assert summarize(Telemetry()).p90_ms is None


@pytest.mark.parametrize(
    ("edges", "counts", "good"),
    [
        (EDGES, (0, 0, 0, 0), True),
        (EDGES, (0, 0, 0), False),
        ((2.0, 1.0), (0, 0, 0), False),
        (EDGES, (0, -1, 0, 0), False),
    ],
)
def test_a_histogram_is_looked_at_before_it_is_believed(
    edges: tuple[float, ...], counts: tuple[int, ...], good: bool
) -> None:
    assert well_formed(Histogram(edges=edges, counts=counts)) is good
