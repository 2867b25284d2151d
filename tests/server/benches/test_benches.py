"""Benchmarks on real agents over a real mosquitto: run, refused, postponed, killed, queued."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from edgeml.artifacts import OnnxModel
from edgeml.cli import edgeml as cli
from edgeml.errors import BenchFailed, NotFound, NothingFits, UserError
from edgeml.files import read_bundle
from edgeml.pipeline.benchmark import BenchOptions
from edgeml.pipeline.measured import measurements_for
from edgeml.pipeline.remote_bench import bench_on, reachable, refuse_too_large, wait
from edgeml.registry import DeviceRecord, Registry
from edgeml.transport.broker import find_mosquitto
from edgeml_runtime.wire.messages import BenchPlan, Reported
from tests.server.agents import a_release
from tests.server.benches.kit import LONG, Agent, a_bundle, a_request, ended
from tests.server.stand_ins import Server, a_model, rows_of, until

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto"),
]


def test_every_variant_of_a_bundle_is_measured_on_the_device_and_kept_with_its_hardware(
    registry: Registry, agent: Callable[..., Agent], tmp_path: Path
) -> None:
    agent()
    bundle = a_bundle(tmp_path / "spotter.bundle", registry.signing_key())
    said: list[str] = []
    options = BenchOptions(seconds=0.1, progress=lambda stage, line: said.append(line))
    found = bench_on(registry, "pi-1", bundle, options=options)
    assert [(one["variant"], one["board"], one["device"]) for one in found["results"]] == [
        ("fp32", "raspberry-pi-4", "pi-1"),
        ("int8-static-u8s8", "raspberry-pi-4", "pi-1"),
    ]
    for one in found["results"]:
        assert one["measured"]["p50_ms"] > 0
        assert one["measured"]["n"] >= 100
        assert one["memory_mb"]["peak"] > 10
        assert one["measured"]["operators"]
        assert one["predicted"]["method"] in ("prior", "emulated", "combined")
        assert one["environment"]["onnxruntime"]
    assert found["failed"] == {}
    assert any("running" in line for line in said)

    kept = measurements_for(registry, [one.graph.digest for one in read_bundle(bundle).manifest.variants])
    assert set(kept) == {"raspberry-pi-4"}
    assert set(kept["raspberry-pi-4"]) == {"fp32", "int8-static-u8s8"}
    measured = kept["raspberry-pi-4"]["fp32"]
    assert measured.p50 == found["results"][0]["measured"]["p50_ms"]
    assert measured.environment["hardware"]["cores"]
    assert measured.environment["device"] == "pi-1"


def test_the_command_prints_what_was_measured_and_ends_with_the_code_of_its_trouble(
    registry: Registry, agent: Callable[..., Agent], tmp_path: Path
) -> None:
    agent()
    model = tmp_path / "toy.onnx"
    model.write_bytes(a_model().data)

    def edgeml(*words: str) -> Any:
        return CliRunner().invoke(cli, ["bench", str(model), "--registry", str(registry.root), *words])

    done = edgeml("--on", "pi-1", "--seconds", "0.1", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["model"], told["board"], told["device"]) == ("toy.onnx", "raspberry-pi-4", "pi-1")
    assert {"p50_ms", "p90_ms", "p99_ms", "ci95_ms", "n", "valid", "why"} <= told["measured"].keys()
    assert {"low", "predicted", "high", "method", "coverage"} <= told["predicted"].keys()
    done = edgeml("--on", "pi-1", "--seconds", "0.1")
    assert "toy.onnx on pi-1 (raspberry-pi-4)" in done.stdout
    assert (edgeml("--on", "pi-7").exit_code, edgeml("--on", "pi-1", "--predict-only").exit_code) == (1, 2)
    agent("pi-2", accept=["training"])
    refused = edgeml("--on", "pi-2")
    assert refused.exit_code == 4
    assert "pi-2: Policy: the owner's policy accepts training, not bench" in refused.stderr


def test_who_is_unknown_offline_or_too_small_is_told_before_anything_is_sent(
    registry: Registry, agent: Callable[..., Agent]
) -> None:
    running = agent()
    with pytest.raises(NotFound, match="no device 'pi-2'; did you mean 'pi-1'"):
        reachable(registry, "pi-2")
    with pytest.raises(UserError, match="no single device"):
        reachable(registry, "all")
    small = Reported(boot_id="b", seq=1, agent="0", board="", hardware={"memory_bytes": str(30_000_000)})
    with pytest.raises(NothingFits, match=r"predicted to need .* MB of memory, and pi-1 has 30 MB: nothing was sent"):
        refuse_too_large(DeviceRecord(id="pi-1", reported=small), "fp32", OnnxModel(a_model().data, "test"))
    running.kill()
    running.start()
    running.process.terminate()
    until(lambda: not registry.devices()[0].online, "it to be offline")
    with pytest.raises(BenchFailed, match="pi-1 is offline, its last word came"):
        reachable(registry, "pi-1")


@pytest.mark.fault
def test_traffic_interrupts_it_serving_goes_on_and_it_is_finished_when_it_is_calm(
    registry: Registry, agent: Callable[..., Agent]
) -> None:
    busy = agent()
    registry.add_release(a_release(), summary={}, run_dir="")
    rollout = registry.request_rollout("toy", None, "all", deadline_s=60)
    until(lambda: registry.rollout(rollout).is_over, "the rollout")
    plan = BenchPlan(warmup_s=0.01, min_s=2.0, max_s=2.0)
    bench_id = a_request(registry, plan=plan, graphs={"a": a_model().data, "b": a_model(1).data})
    until(lambda: busy.bench().get("phase") == "RUNNING", "the benchmark")
    until(lambda: bool(busy.children()), "its child")
    rows = rows_of(5, 4)["numeric"].tolist()

    def interrupted() -> bool:
        assert busy.call("/predict", {"rows": rows})["labels"]
        return busy.bench()["phase"] == "QUEUED"

    until(interrupted, "the interruption")
    told = busy.bench()
    assert told["reason"] == "Serving"
    assert "predictions a second" in told["detail"]
    until(lambda: not busy.children(), "its child to be gone")
    until(lambda: registry.benches.find(bench_id).step == "QUEUED", "the server to know")
    assert "interrupted" in registry.benches.find(bench_id).detail
    done = ended(registry, bench_id)
    assert done.state == "SUCCEEDED", done


@pytest.mark.fault
def test_an_agent_that_is_killed_in_the_middle_goes_on_when_it_is_back(
    registry: Registry, agent: Callable[..., Agent]
) -> None:
    victim = agent()
    graphs = {name: a_model(seed).data for seed, name in enumerate("abcd")}
    bench_id = a_request(registry, graphs=graphs, plan=BenchPlan(warmup_s=0.01, min_s=1.0, max_s=1.0))
    until(lambda: registry.benches.find(bench_id).progress > 0, "one job to be done")
    victim.kill()
    until(lambda: not victim.children(), "the child to end with its agent")
    before = (victim.state / "bench" / f"{bench_id}.jsonl").read_text()
    victim.start()
    done = ended(registry, bench_id)
    assert done.state == "SUCCEEDED", done
    assert (victim.state / "bench" / f"{bench_id}.jsonl").read_text().startswith(before.splitlines()[0])
    result = wait(registry, bench_id)
    assert [job.name for job in result.jobs] == list("abcd")
    assert not any(job.reason for job in result.jobs)


@pytest.mark.fault
def test_a_device_that_disappears_ends_it_with_a_clear_reason(registry: Registry, agent: Callable[..., Agent]) -> None:
    victim = agent()
    bench_id = a_request(registry, plan=LONG, gone_s=1.0)
    until(lambda: registry.benches.find(bench_id).step == "RUNNING", "it to run")
    victim.kill()
    done = ended(registry, bench_id)
    assert (done.state, done.reason) == ("FAILED", "DeviceGone")
    assert "pi-1 is offline for 1 s; it said last: RUNNING" in done.detail
    victim.start()
    until(lambda: victim.bench().get("phase") == "CANCELED", "it to be taken back when the device is there again")


@pytest.mark.fault
def test_a_child_that_is_killed_is_that_variants_failure_and_not_the_others(
    registry: Registry, agent: Callable[..., Agent]
) -> None:
    victim = agent()
    graphs = {"big": a_model(1).data, "small": a_model(2).data}
    bench_id = a_request(registry, graphs=graphs, plan=BenchPlan(warmup_s=0.01, min_s=2.0, max_s=2.0))
    until(lambda: bool(victim.children()), "the child")
    journal = victim.state / "bench" / f"{bench_id}.jsonl"
    until(lambda: journal.exists() and "begun" in journal.read_text(), "the first job")
    os.kill(victim.children()[0], signal.SIGKILL)
    result = wait(registry, bench_id)
    assert [job.reason for job in result.jobs] == ["Killed", ""]
    assert "most likely for memory" in result.jobs[0].detail
    assert victim.process.poll() is None


@pytest.mark.fault
def test_a_server_that_is_started_again_goes_on_with_the_queue(
    registry: Registry, server: Server, start_server: Callable[[], Server], agent: Callable[..., Agent]
) -> None:
    agent()
    plan = BenchPlan(warmup_s=0.01, min_s=2.0, max_s=2.0)
    first, second = a_request(registry, plan=plan), a_request(registry)
    until(lambda: registry.benches.find(first).step == "RUNNING", "the first to run")
    server.stop()
    time.sleep(2.5)  # it ends while nobody listens
    start_server()
    assert [ended(registry, one).state for one in (first, second)] == ["SUCCEEDED"] * 2


def test_two_of_one_device_are_done_in_order_and_other_devices_do_not_wait(
    registry: Registry, agent: Callable[..., Agent]
) -> None:
    agent()
    agent("pi-2")
    plan = BenchPlan(warmup_s=0.01, min_s=2.0, max_s=2.0)
    first, second = a_request(registry, plan=plan), a_request(registry)
    other = a_request(registry, device="pi-2")
    assert registry.benches.before(registry.benches.find(second)) == 1
    records = {name: ended(registry, name) for name in (other, first, second)}
    assert all(one.state == "SUCCEEDED" for one in records.values()), records
    ends = [records[name].ended or 0.0 for name in (other, first, second)]
    assert ends == sorted(ends)


def test_what_is_taken_back_ends_on_the_device_too(registry: Registry, agent: Callable[..., Agent]) -> None:
    running = agent()
    bench_id, next_id = a_request(registry, plan=LONG), a_request(registry)
    until(lambda: bool(running.children()), "the child")
    registry.benches.cancel(bench_id)
    done = ended(registry, bench_id)
    assert (done.state, done.reason) == ("FAILED", "Canceled")
    assert ended(registry, next_id).state == "SUCCEEDED"
