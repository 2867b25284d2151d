"""Timings and what is said about the machine that gave them. No test depends on how fast it is."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_runtime.errors import AgentRefused
from edgeml_runtime.measure import (
    KEPT_SAMPLES,
    Plan,
    _doubts,
    confidence_of_median,
    environment,
    hardware,
    measure,
    refuse_architecture,
)
from edgeml_runtime.session import Session

SHORT = Plan(warmup_s=0.01, min_s=0.05, min_count=100, max_s=1.0)
ROW = {"numeric": np.ones((1, 64), np.float32)}


def test_a_timing_is_in_order_and_counts_its_runs(models: SimpleNamespace) -> None:
    timing = measure(Session(models.mlp()), ROW, SHORT)
    assert 0 < timing.min_ms <= timing.p50_ms <= timing.p90_ms <= timing.p99_ms
    assert timing.ci95_ms[0] <= timing.ci95_ms[1]
    assert timing.n >= SHORT.min_count
    assert timing.cpu_ms > 0
    assert timing.valid is (timing.why == "")


def test_the_sample_for_plots_is_thin_sorted_and_keeps_the_ends(models: SimpleNamespace) -> None:
    timing = measure(Session(models.mlp()), ROW, SHORT)
    assert len(timing.samples_ms) == min(KEPT_SAMPLES, timing.n)
    assert list(timing.samples_ms) == sorted(timing.samples_ms)
    assert timing.samples_ms[0] == timing.min_ms


def test_a_timing_can_be_written_as_json(models: SimpleNamespace) -> None:
    timing = measure(Session(models.mlp()), ROW, SHORT)
    assert json.loads(json.dumps(dataclasses.asdict(timing)))["n"] == timing.n


def test_several_inputs_and_several_rows_are_timed_by_plain_runs(models: SimpleNamespace) -> None:
    feeds = {"numeric": np.ones((1, 2), np.float32), "categorical": np.array([["red"]], object)}
    assert measure(Session(models.colours()), feeds, SHORT).n >= SHORT.min_count
    rows = {"numeric": np.ones((7, 64), np.float32)}
    assert measure(Session(models.mlp()), rows, SHORT).n >= SHORT.min_count


def test_max_s_ends_a_measurement_that_never_reaches_its_count(models: SimpleNamespace) -> None:
    plan = Plan(warmup_s=0.0, min_s=0.01, min_count=10**9, max_s=0.05)
    assert measure(Session(models.mlp()), ROW, plan).n < 10**9


def test_the_interval_holds_the_true_median_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1)
    draws = [confidence_of_median(rng.exponential(1.0, 500)) for _ in range(400)]
    inside = sum(low <= np.log(2) <= high for low, high in draws)
    assert 0.91 * 400 <= inside <= 400


def test_moods_of_the_machine_widen_the_interval() -> None:
    """A slow drift makes neighbours alike; runs taken as independent would claim far too much."""
    rng = np.random.default_rng(2)
    steady = rng.normal(10, 1, 3100)
    moody = np.sort(steady)
    widths = [high - low for low, high in map(confidence_of_median, (steady, moody))]
    assert widths[1] > 5 * widths[0]


@settings(deadline=None)
@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=400))
def test_the_interval_lies_around_the_middle(samples: list[float]) -> None:
    low, high = confidence_of_median(np.array(samples))
    assert min(samples) <= low <= high <= max(samples)


QUIET = {"cores": 4, "affinity": [0, 1, 2, 3], "load_average": 0.1, "running": 1}


@pytest.mark.parametrize(
    ("median", "change", "why"),
    [
        ((1.0, 0.99, 1.01), {}, ""),
        ((1.0, 0.99, 1.01), {"running": 5}, ""),
        ((1.0, 0.99, 1.01), {"running": 13}, "3.0 other tasks per core want to run (at most 1): quieten the machine"),
        ((1.0, 0.99, 1.01), {"throttled": 0x5}, "throttled (get_throttled 0x5): check power supply and cooling"),
        ((1.0, 0.99, 1.01), {"throttled": 0x50000}, ""),  # once since boot, not now
        ((1.0, 0.8, 1.1), {}, "the median's interval is 30% of it (at most 20%): measure for longer"),
    ],
)
def test_what_spoils_a_measurement_is_named(
    median: tuple[float, float, float], change: dict[str, int], why: str
) -> None:
    facts = QUIET | change
    assert _doubts(median, facts, facts) == why


def test_the_environment_is_what_the_machine_says() -> None:
    facts = environment()
    assert facts["affinity"] == sorted(os.sched_getaffinity(0))
    assert facts["cores"] == os.cpu_count()
    assert facts["running"] >= 1
    assert None not in facts.values()
    assert ("governor" in facts) is Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").exists()


def test_throttling_is_asked_of_the_firmware_where_there_is_any(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x50005\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert environment()["throttled"] == 0x50005
    program.write_text("#!/bin/sh\nexit 1\n")
    assert "throttled" not in environment()


def test_the_hardware_is_described_in_words() -> None:
    facts = hardware()
    assert all(isinstance(value, str) and value for value in facts.values())
    assert int(facts["memory_bytes"]) > 64 << 20
    assert {"machine", "kernel", "cores"} <= facts.keys()


@pytest.mark.parametrize("machine", ["armv7l", "armv6l", "armhf"])
def test_32_bit_arm_is_refused_in_one_sentence(machine: str) -> None:
    with pytest.raises(AgentRefused, match=f"{machine} is 32-bit .*install a 64-bit system"):
        refuse_architecture(machine)


@pytest.mark.parametrize("machine", ["aarch64", "x86_64", ""])
def test_64_bit_machines_are_taken(machine: str) -> None:
    refuse_architecture(machine)
