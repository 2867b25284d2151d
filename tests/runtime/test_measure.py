"""Timings and what is said about the machine that gave them. No test depends on how fast it is."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_runtime.errors import AgentRefused, ModelRefused
from edgeml_runtime.measure import (
    NOTHING,
    SCENARIOS,
    Conditions,
    Plan,
    Scenario,
    Versus,
    benchmark,
    bootstrap,
    cold_start,
    conditions,
    confidence_of_median,
    environment,
    hardware,
    intervals,
    measure,
    operators,
    order_interval,
    overhead,
    refuse_architecture,
    tune,
    versus,
)
from edgeml_runtime.measure.doubts import Evidence, doubts
from edgeml_runtime.measure.timing import KEPT_SAMPLES
from edgeml_runtime.measure.tuning import DEARER, _judge, changes
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import Settings

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


def test_what_too_few_queries_cannot_say_is_left_out(models: SimpleNamespace) -> None:
    timing = measure(Session(models.mlp()), ROW, Plan(warmup_s=0.0, min_s=0.0, min_count=1, max_s=0.001))
    assert timing.n < 3000, "a machine so fast that this needs another model"
    assert timing.p999_ms is None and "p999" in timing.unsure
    assert timing.intervals_ms.keys().isdisjoint(timing.unsure)


def test_several_inputs_and_several_rows_are_timed_by_plain_runs(models: SimpleNamespace) -> None:
    feeds = {"numeric": np.ones((1, 2), np.float32), "categorical": np.array([["red"]], object)}
    assert measure(Session(models.colours()), feeds, SHORT).n >= SHORT.min_count
    rows = {"numeric": np.ones((7, 64), np.float32)}
    assert measure(Session(models.mlp()), rows, SHORT).n >= SHORT.min_count


def test_max_s_ends_a_measurement_that_never_reaches_its_count(models: SimpleNamespace) -> None:
    plan = Plan(warmup_s=0.0, min_s=0.01, min_count=10**9, max_s=0.05)
    assert measure(Session(models.mlp()), ROW, plan).n < 10**9


def alike(rng: np.random.Generator, count: int, rho: float) -> np.ndarray:
    """Return exponential durations of which neighbours are alike: `rho` is their normal scores' correlation."""
    scores = [rng.normal()]
    for shock in rng.normal(size=count - 1) * math.sqrt(1 - rho**2):
        scores.append(rho * scores[-1] + shock)
    return np.array([-math.log(math.erfc(score / math.sqrt(2)) / 2) for score in scores])


@pytest.mark.parametrize(("count", "rho"), [(100, 0.0), (100, 0.5), (500, 0.0), (500, 0.8), (3000, 0.9)])
def test_intervals_hold_the_truth_about_95_times_in_100_however_alike_neighbours_are(count: int, rho: float) -> None:
    rng, draws = np.random.default_rng(1), 100
    found = [order_interval(alike(rng, count, rho), quantile) for _ in range(draws) for quantile in (0.5,)]
    inside = sum(told is not None and told[0] <= math.log(2) <= told[1] for told in found)
    assert inside >= 0.88 * draws


def test_a_quantile_that_the_queries_are_too_few_for_has_no_interval() -> None:
    rng, quantiles = np.random.default_rng(4), {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
    told = {count: set(intervals(rng.exponential(1.0, count), quantiles)) for count in (100, 1000, 10_000)}
    assert told == {100: {"p50", "p90"}, 1000: {"p50", "p90", "p99"}, 10_000: set(quantiles)}


def test_intervals_of_tails_hold_the_truth() -> None:
    rng, inside = np.random.default_rng(5), {"p90": 0, "p99": 0}
    for _ in range(60):
        told = intervals(rng.exponential(1.0, 2000), {"p90": 0.9, "p99": 0.99})
        for name, truth in (("p90", math.log(10)), ("p99", math.log(100))):
            inside[name] += told[name][0] <= truth <= told[name][1]
    assert min(inside.values()) >= 53


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


QUIET = {"running_others": 0.0, "steal": 0.0, "swapped_pages": 0, "throttled": 0}


@pytest.mark.parametrize(
    ("median", "change", "why"),
    [
        ((1.0, 0.99, 1.01), {}, ""),
        ((1.0, 0.99, 1.01), {"running_others": 4.0}, ""),
        (
            (1.0, 0.99, 1.01),
            {"running_others": 12.0},
            "3.0 other tasks per core want to run (at most 1): quieten the machine",
        ),
        (
            (1.0, 0.99, 1.01),
            {"throttled": 0x5},
            "throttled (get_throttled 0x5: under-voltage, throttled): check power supply and cooling",
        ),
        ((1.0, 0.99, 1.01), {"throttled": 0x50000}, ""),  # once since boot, not now
        (
            (1.0, 0.99, 1.01),
            {"steal": 0.2},
            "the hypervisor took 20% of the processors (at most 5%): take a quieter host",
        ),
        ((1.0, 0.99, 1.01), {"swapped_pages": 999}, "999 pages were swapped (at most 256): free some memory"),
        ((1.0, 0.99, 1.01), {"frequency_khz_min": 1_790_000, "frequency_khz_max": 1_800_000}, ""),
        (
            (1.0, 0.99, 1.01),
            {"frequency_khz_min": 600_000, "frequency_khz_max": 1_800_000},
            "the clock moved between 600 and 1800 MHz: fix the governor (performance), cool it",
        ),
        ((1.0, 0.8, 1.1), {}, "the median's interval is 30% of it (at most 20%): measure for longer"),
    ],
)
def test_what_spoils_a_measurement_is_named(
    median: tuple[float, float, float], change: dict[str, float], why: str
) -> None:
    assert doubts(Evidence(median=median, facts=QUIET | change, cores=4)) == why


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"held": 0.5}, "the processor was taken away for 50% of the time (at most 10%): quieten the machine"),
        (
            {"interrupted": 0.3},
            "others took the processor during 30% of the queries (at most 10%): quieten the machine",
        ),
        ({"late": 0.3}, "30% of the queries had to wait for the one before: ask less often, or for less"),
        ({"settled": False}, "still getting faster or slower after the longest warm-up: warm up for longer"),
    ],
)
def test_what_the_run_itself_showed_spoils_it_too(change: dict[str, Any], why: str) -> None:
    assert doubts(Evidence(median=(1.0, 0.99, 1.01), facts=QUIET, cores=4, **change)) == why


def test_several_doubts_are_all_said() -> None:
    why = doubts(Evidence(median=(1.0, 0.5, 1.5), facts={"throttled": 1}, cores=1))
    assert why.count(";") == 1 and "under-voltage" in why and "interval" in why


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


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_scenario_times_its_queries(models: SimpleNamespace, scenario: Scenario) -> None:
    timing = measure(Session(models.mlp()), ROW, replace(SHORT, scenario=scenario, rate_hz=500.0))
    rows = {"single-stream": 1, "multi-stream": 8, "offline": 64, "paced": 1}[scenario]
    assert (timing.scenario, timing.rows) == (scenario, rows)
    if scenario == "paced":
        assert timing.rows_per_s <= 1.1 * 500  # fewer where the machine has other things to do
    else:
        assert timing.rows_per_s == pytest.approx(rows * 1e3 / timing.mean_ms, rel=0.1)
    assert timing.n >= SHORT.min_count


def test_a_model_of_one_fixed_row_answers_a_larger_query_row_by_row(models: SimpleNamespace) -> None:
    calls, session = [], Session(models.mlp(rows=1))
    answer = session.predict

    def counting(row: np.ndarray) -> dict[str, np.ndarray]:
        calls.append(len(row))
        return answer(row)

    session.predict = counting
    timing = measure(session, ROW, replace(SHORT, scenario="multi-stream", rows=5))
    assert timing.rows == 5
    assert set(calls) == {1} and len(calls) % 5 == 0


def test_paced_queries_keep_their_rate_and_overload_is_said(models: SimpleNamespace) -> None:
    plan = Plan(warmup_s=0.02, min_s=0.5, min_count=1, max_s=0.5, scenario="paced", rate_hz=50.0)
    assert 5 <= measure(Session(models.mlp()), ROW, plan).n <= 30  # 25 where nobody else wants the machine
    hurried = measure(Session(models.mlp()), ROW, replace(plan, rate_hz=10_000_000.0))
    assert not hurried.valid and "had to wait for the one before" in hurried.why


def test_intervals_hold_their_quantiles_and_a_time_line_covers_the_run(models: SimpleNamespace) -> None:
    timing = measure(Session(models.mlp()), ROW, SHORT)
    values = {"p50": timing.p50_ms, "p90": timing.p90_ms, "p99": timing.p99_ms, "p999": timing.p999_ms}
    for name, (low, high) in timing.intervals_ms.items():
        assert low <= values[name] <= high
    assert timing.intervals_ms["p50"] == timing.ci95_ms
    assert [point[0] for point in timing.series] == sorted(point[0] for point in timing.series)
    assert len(timing.readings) >= 3  # before the warm-up, after it, after a stretch


def test_a_bootstrap_interval_covers_the_true_quantile() -> None:
    rng = np.random.default_rng(3)
    inside = 0
    for seed in range(100):
        ((low, high),) = bootstrap(rng.exponential(1.0, 2000), [0.9], seed)
        inside += low <= np.log(10) <= high
    assert inside >= 88


def test_a_machine_under_load_makes_a_run_invalid(models: SimpleNamespace) -> None:
    """Twice as many busy loops as this process has cores: the timing goes on, and is not believed."""
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(3 * (os.cpu_count() or 1))]
    try:
        timing = measure(Session(models.mlp()), ROW, Plan(warmup_s=0.05, min_s=1.0, max_s=2.0))
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert not timing.valid
    assert "quieten the machine" in timing.why


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is read in place of /sys."""
    for name in ("CPU", "FIRMWARE", "RAPL", "METERS", "THERMAL"):
        monkeypatch.setattr(conditions, name, tmp_path / getattr(conditions, name).relative_to("/sys"))
    return tmp_path


def test_energy_is_read_where_there_is_a_counter_or_a_meter(board: Path) -> None:
    watched = Conditions()
    assert watched.joules() is None
    counter = board / "class/powercap/intel-rapl:0/energy_uj"
    counter.parent.mkdir(parents=True)
    counter.write_text("1000000\n")
    watched = Conditions()
    watched.look()
    counter.write_text("3500000\n")
    watched.look()
    assert watched.joules() == pytest.approx(2.5)
    counter.write_text("12\n")  # wrapped around
    watched.look()
    assert watched.joules() is None


def test_a_meter_on_the_board_gives_power_times_time(board: Path) -> None:
    power = board / "class/hwmon/hwmon3/power1_input"
    power.parent.mkdir(parents=True)
    power.write_text("4200000\n")
    watched = Conditions()
    watched.look()
    time.sleep(0.05)
    watched.look()
    seconds = watched.readings[-1].at_s - watched.readings[1].at_s
    assert watched.joules() == pytest.approx(4.2 * seconds)


def test_clock_and_firmware_bits_are_watched_along_the_run(board: Path) -> None:
    for core in os.sched_getaffinity(0):
        (board / f"devices/system/cpu/cpu{core}/cpufreq").mkdir(parents=True)
    clock = board / f"devices/system/cpu/cpu{max(os.sched_getaffinity(0))}/cpufreq/scaling_cur_freq"
    bits = board / "devices/platform/soc/soc:firmware/get_throttled"
    bits.parent.mkdir(parents=True)
    bits.write_text("0\n")
    clock.write_text("600000\n")  # asleep, before the run
    watched = Conditions()
    for khz, throttled in ((1_800_000, "0"), (1_800_000, "2"), (1_200_000, "50006")):
        clock.write_text(f"{khz}\n")
        bits.write_text(throttled)
        watched.look()
    facts = watched.facts()
    assert (facts["frequency_khz_min"], facts["frequency_khz_max"]) == (1_200_000, 1_800_000)
    assert facts["throttled"] == 0x50007  # bit 16 came up meanwhile: so did bit 0
    assert [reading.get("throttled") for reading in watched.series()] == [0, 0, 2, 0x50006]


def test_throttling_between_two_looks_shows_in_the_history(board: Path) -> None:
    """The bits of now are gone again when somebody looks; those of the history stay."""
    bits = board / "devices/platform/soc/soc:firmware/get_throttled"
    bits.parent.mkdir(parents=True)
    bits.write_text("10000\n")  # too little voltage, once, long ago
    watched = Conditions()
    bits.write_text("50000\n")
    watched.end()
    throttled = watched.facts()["throttled"]
    assert throttled & 0xF == 0b0100
    assert "throttled" in doubts(Evidence(median=(1.0, 0.99, 1.01), facts={"throttled": throttled}, cores=4))


def test_a_firmware_that_only_answers_a_program_is_asked_before_and_after(
    board: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "vcgencmd"
    program.write_text('#!/bin/sh\necho asked >> "$0.log"; echo throttled=0x2\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    watched = Conditions()
    for _ in range(5):
        watched.look()
    watched.end()
    assert (tmp_path / "vcgencmd.log").read_text().split() == ["asked", "asked"]
    assert watched.facts()["throttled"] == 2


def test_a_voltage_alarm_the_hottest_zone_and_every_governor_are_read(board: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    for name, text in {
        "class/hwmon/hwmon1/in0_lcrit_alarm": "1",
        "class/thermal/thermal_zone0/temp": "41000",
        "class/thermal/thermal_zone3/temp": "78500",
        f"devices/system/cpu/cpu{cores[0]}/cpufreq/scaling_governor": "performance",
        f"devices/system/cpu/cpu{cores[-1]}/cpufreq/scaling_governor": "powersave",
    }.items():
        (board / name).parent.mkdir(parents=True, exist_ok=True)
        (board / name).write_text(text + "\n")
    facts = Conditions().facts()
    assert facts["throttled"] == 1 and facts["temperature_c_max"] == 78.5
    assert facts["governor"] == ("performance, powersave" if len(cores) > 1 else "powersave")


def test_a_clock_that_is_set_meanwhile_is_noticed_and_spoils_nothing() -> None:
    watched = Conditions()
    watched.look()
    last = watched.readings[-1]
    watched.readings[-1] = replace(last, wall_s=last.wall_s - 7200)
    facts = watched.facts()
    assert facts["clock_jump_s"] == pytest.approx(-7200, abs=1)
    assert doubts(Evidence(median=(1.0, 0.99, 1.01), facts={**QUIET, "clock_jump_s": -7200.0}, cores=4)) == ""


def test_no_duration_is_taken_from_a_clock_that_can_be_set() -> None:
    folder = Path(conditions.__file__).parent
    lines = [
        f"{path.name}: {line.strip()}"
        for path in (*folder.glob("*.py"), folder.parent / "first_answer.py")
        for line in path.read_text().splitlines()
        if re.search(r"\btime\.time\(|time\.time_ns|datetime|CLOCK_REALTIME", line.partition("#")[0])
    ]
    assert lines == ["conditions.py: wall_s=time.time(),"]


def test_waiting_for_a_processor_is_counted_by_the_kernel() -> None:
    before = conditions.kept_waiting()
    assert before is not None
    until = time.thread_time() + 0.02
    while time.thread_time() < until:
        pass
    after = conditions.kept_waiting()
    assert after is not None and after[0] - before[0] >= 10_000_000 and after[1] >= before[1]


def test_what_a_call_costs_is_told_beside_the_model() -> None:
    proto = onnx.load_from_string(NOTHING)
    onnx.checker.check_model(proto)
    assert [node.op_type for node in proto.graph.node] == ["Identity"]
    found = overhead()
    assert 0 < found.loop_ms < found.predict_ms and found.loop_ms < found.run_ms


def test_a_cold_start_is_a_real_process(models: SimpleNamespace) -> None:
    found = cold_start(models.mlp(), ROW, starts=1)
    assert min(found.process_ms, found.session_ms, found.first_ms) > 0
    assert found.import_ms > 5, "onnxruntime was imported before the clock started"
    assert found.peak_mb >= found.steady_mb > found.anonymous_mb > 1
    assert found.steady_mb > found.bare_mb


def test_a_cold_start_takes_strings_and_says_what_a_bad_model_is(models: SimpleNamespace) -> None:
    feeds = {"numeric": np.ones((1, 2), np.float32), "categorical": np.array([["red"]], object)}
    assert cold_start(models.colours(), feeds, starts=1).first_ms > 0
    with pytest.raises(ModelRefused, match=r"a new process cannot answer: .*not a model"):
        cold_start(b"not a model", ROW, starts=1)


def test_operators_are_those_that_run_and_the_graph_is_left_behind(models: SimpleNamespace, tmp_path: Path) -> None:
    found = operators(models.mlp(), ROW, runs=5, optimized=tmp_path / "optimized.onnx")
    assert all(entry.runs == 5 and entry.ms >= entry.fast_ms >= 0 for entry in found)
    assert any("Gemm" in entry.operator for entry in found)
    first = found[0]
    assert first.shapes[0] == ("float", (1, 64)) and first.inputs >= 1
    Session(tmp_path / "optimized.onnx", Settings(graph_level="disabled"))


def test_a_benchmark_becomes_one_json_document(models: SimpleNamespace) -> None:
    document = benchmark(models.mlp(), ROW, SHORT, starts=1, profile=True).plain()
    assert json.loads(json.dumps(document)) is not None
    assert document["memory_mb"].keys() == {"peak", "steady", "anonymous", "bare"}
    assert document["cold_start"]["starts"] == 1
    assert document["settings"]["threads"] == 1
    assert document["overhead"].keys() == {"loop_ms", "predict_ms", "run_ms"}
    assert sum(node["ms"] for node in document["operators"]) > 0


def test_a_comparison_in_turns_finds_the_slower_of_two(models: SimpleNamespace) -> None:
    small, large = Session(models.mlp(hidden=8)), Session(models.mlp(hidden=2048))
    found = versus((small, ROW), (large, ROW), replace(SHORT, min_s=0.3, max_s=1.0))
    assert found.ratio95[0] <= found.ratio <= found.ratio95[1]
    assert found.ratio95[0] > 1.2
    assert replace(found, valid=True).verdict("small", "large").startswith("small is faster: large takes")
    assert replace(found, valid=False, why="too warm").verdict() == "no verdict: too warm"


def test_a_model_is_as_fast_as_itself(models: SimpleNamespace) -> None:
    first, second = Session(models.mlp()), Session(models.mlp())
    found = versus((first, ROW), (second, ROW), replace(SHORT, min_s=0.5, max_s=1.0))
    assert 0.8 < found.ratio < 1.25
    assert found.pairs >= 30


def test_settings_are_searched_and_only_what_is_proven_is_kept(models: SimpleNamespace) -> None:
    found = tune(models.mlp(), ROW, replace(SHORT, min_s=0.1, max_s=0.2))
    tried = [dict(trial.change) for trial in found.trials]
    assert all({name: False} in tried for name in ("prepacking", "arena", "mem_pattern", "io_binding"))
    for trial in found.trials:
        assert not trial.kept or trial.ratio95[1] < 1
        assert trial.why
    assert found.settings.threads == 1 or {"threads": found.settings.threads} in tried


def test_weights_beside_a_big_model_are_kept_for_less_memory_at_little_cost() -> None:
    found = Versus(a_ms=1.0, b_ms=1.05, ratio=1.05, ratio95=(1.02, 1.08), pairs=30, valid=True, why="")
    assert _judge(found, DEARER, (100.0, 40.0))[0]
    assert not _judge(found, DEARER, (100.0, 90.0))[0], "hardly any memory saved"
    assert not _judge(replace(found, ratio95=(1.02, 1.3)), DEARER, (100.0, 40.0))[0], "perhaps far slower"
    assert not _judge(replace(found, valid=False), DEARER, (100.0, 40.0))[0]
    tried = [dict(change) for change, _ in changes(2, big=True)]
    assert {"external_data": True, "prepacking": False} in tried


@pytest.mark.parametrize(
    ("limit", "why"),
    [
        ("RLIMIT_CPU, (2, 2)", r"ended a new process by SIG(XCPU|KILL): "),
        ("RLIMIT_DATA, (260 << 20,) * 2", r"67,\d+,\d+ bytes of model need more memory than is free here"),
    ],
)
def test_a_model_that_is_too_much_for_a_machine_is_refused_in_words(
    models: SimpleNamespace, tmp_path: Path, limit: str, why: str
) -> None:
    (tmp_path / "model.onnx").write_bytes(models.mlp(features=2048, hidden=8192))
    code = (
        "import resource, sys, numpy; from edgeml_runtime.measure import cold_start; "
        f"resource.setrlimit(resource.{limit}); "
        "cold_start(sys.argv[1], {'numeric': numpy.ones((8192, 2048), numpy.float32)}, starts=1)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert re.search(r"ModelRefused: .*" + why, done.stderr), done.stderr[-600:]


@pytest.mark.parametrize(("cores", "threads"), [(1, []), (2, [2]), (4, [2, 4]), (6, [2, 4, 6])])
def test_threads_are_tried_up_to_the_cores_and_spinning_only_with_several(cores: int, threads: list[int]) -> None:
    tried = [change for change, _ in changes(cores)]
    assert [change["threads"] for change in tried if "threads" in change] == threads
    assert ({"spinning": True} in tried) is (cores > 1)
