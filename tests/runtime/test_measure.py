"""Timings and what is said about the machine that gave them. No test depends on how fast it is."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from edgeml_runtime.errors import ModelRefused
from edgeml_runtime.measure import (
    NOTHING,
    SCENARIOS,
    Plan,
    Scenario,
    Versus,
    benchmark,
    cold_start,
    measure,
    operators,
    overhead,
    tune,
    versus,
)
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
    assert all(entry.runs == 5 and entry.ms + 1e-9 >= entry.fast_ms >= 0 for entry in found)
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
