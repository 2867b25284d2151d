"""Benchmarks on real agents over a real mosquitto: run, refused, postponed, killed, queued, forged, calibrated."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from click.testing import CliRunner
from paho.mqtt.enums import CallbackAPIVersion

from edgeml import bench
from edgeml.artifacts import Bundle, OnnxModel
from edgeml.bench.calibrate.reference import ds_cnn
from edgeml.bench.calibrate.work import works_of
from edgeml.cli import edgeml as cli
from edgeml.errors import BenchFailed, NotFound, NothingFits, UserError
from edgeml.files import read_bundle, write_bundle
from edgeml.pipeline.benchmark import BenchOptions
from edgeml.pipeline.calibration import find_calibration
from edgeml.pipeline.measured import measurements_for
from edgeml.pipeline.remote_bench import bench_on, reachable, refuse_too_large, wait
from edgeml.pipeline.remote_device import OnDevice, calibrate_on
from edgeml.registry import BenchPatience, BenchRecord, BenchWork, DeviceRecord, Registry
from edgeml.server.errand import End, Errand
from edgeml.transport import Broker, start_broker
from edgeml.transport.broker import find_mosquitto
from edgeml_runtime.measure import Plan
from edgeml_runtime.wire import blocks, messages, signed, tensors, topics
from edgeml_runtime.wire.manifest import Bounds, Manifest, ReleaseVariant, Settings, TensorSpec, blob_of
from edgeml_runtime.wire.messages import BenchBlob, BenchJob, BenchPlan, BenchStatus, BenchTask, Reported
from edgeml_runtime.wire.plain import to_plain
from tests.server.stand_ins import Server, a_model, rows_of, until
from tests.server.test_agents import a_release

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto"),
]
QUICK = BenchPlan(warmup_s=0.01, min_s=0.05, min_count=20, max_s=0.2)
LONG = BenchPlan(warmup_s=0.01, min_s=30.0, max_s=30.0)
ROWS = tensors.pack({"numeric": rows_of(1, 1)["numeric"]})


class Agent:
    """One `edgeml_runtime` process with a state folder and a policy of its own."""

    def __init__(self, name: str, broker: Broker, *, key: str, folder: Path, policy: dict[str, Any]) -> None:
        self.name, self.state = name, folder / name
        given = ["--id", name, "--broker", f"{broker.host}:{broker.port}", "--key", key, "--board", "raspberry-pi-4"]
        command = [sys.executable, "-m", "edgeml_runtime"]
        subprocess.run([*command, "enroll", *given, "--state", self.state], check=True, stdout=subprocess.DEVNULL)
        settings = json.loads((self.state / "agent.json").read_text())
        (self.state / "agent.json").write_text(json.dumps({**settings, "policy": policy}))
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "edgeml_runtime", "run", "--state", str(self.state)]
        self.log = (self.state / "log").open("ab")
        self.process = subprocess.Popen(command, stderr=self.log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()

    def call(self, path: str, body: Any = None) -> Any:
        port = json.loads((self.state / "http.json").read_text())["port"]
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def bench(self) -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            return self.call("/status")["bench"] or {}
        return {}

    def children(self) -> list[int]:
        """Return the benchmark's child processes, if any."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if b"bench_child" in (words := path.read_bytes()) and str(self.state).encode() in words:
                    found.append(int(path.parent.name))
        return found


@pytest.fixture
def broker() -> Iterator[Broker]:
    with start_broker(kind="mosquitto") as running:
        yield running


@pytest.fixture
def agent(registry: Registry, broker: Broker, server: Server, tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Return a function that starts an agent and waits until the server knows it."""
    started: list[Agent] = []

    def start(name: str = "pi-1", **policy: Any) -> Agent:
        made = Agent(name, broker, key=registry.public_key_hex(), folder=tmp_path / "agents", policy=policy)
        started.append(made)
        until(lambda: any(d.id == name and d.online and d.reported for d in registry.devices()), f"{name}")
        return made

    yield start
    for one in started:
        one.kill()


def a_request(
    registry: Registry,
    *,
    device: str = "pi-1",
    plan: BenchPlan = QUICK,
    graphs: dict[str, bytes] | None = None,
    deadline_s: float = 60.0,
    gone_s: float = 30.0,
) -> str:
    """Ask for a timing of the toy model, or of these graphs by name."""
    jobs, blobs = [], {}
    for name, data in {**(graphs or {"fp32": a_model().data})}.items():
        graph, rows = (BenchBlob(digest=registry.put_blob(one), size=len(one)) for one in (data, ROWS))
        blobs |= {graph.digest: graph, rows.digest: rows}
        jobs.append(BenchJob(name=name, verb="timing", graph=graph.digest, rows=rows.digest, plan=plan))
    work = BenchWork(jobs=tuple(jobs), blobs=tuple(blobs.values()))
    return registry.benches.add(device, work, BenchPatience(deadline_s=deadline_s, gone_s=gone_s), model="toy")


def ended(registry: Registry, bench_id: str) -> BenchRecord:
    until(lambda: registry.benches.find(bench_id).is_over, f"the end of {bench_id}")
    return registry.benches.find(bench_id)


def a_bundle(folder: Path, key: Any) -> Path:
    """Write a bundle of MLPerf Tiny's keyword spotter in float32 and in int8, and return where."""
    graphs = {"fp32": ds_cnn(int8=False)[0], "int8-static-u8s8": ds_cnn(int8=True)[0]}
    rows = np.random.default_rng(0).standard_normal((4, 1, 49, 10)).astype(np.float32)
    packed = tensors.pack({"input.x": rows})
    manifest = Manifest(
        model="spotter",
        release="ab12ab12ab12",
        task="tensor",
        created="2026-01-02T03:04:05Z",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 1, 49, 10)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 12)),),
        variants=tuple(
            ReleaseVariant(name=name, graph=blob_of(graph), bounds=Bounds(max_abs=1e-5, label_flips=0))
            for name, graph in graphs.items()
        ),
        default_variant="fp32",
        boards={},
        goldens=blob_of(packed),
    )
    bundle = Bundle(manifest, {blob_of(data).digest: data for data in (*graphs.values(), packed)})
    write_bundle(folder, bundle, key)
    return folder


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
    plan = BenchPlan(warmup_s=0.01, min_s=4.0, max_s=4.0)
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


class Liar:
    """A client that speaks on a device's topics."""

    def __init__(self, broker: Broker) -> None:
        self.heard: list[bytes] = []
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="liar", protocol=mqtt.MQTTv311)
        self.client.on_message = lambda client, data, message: self.heard.append(bytes(message.payload))
        self.client.connect(broker.host, broker.port)
        self.client.subscribe(topics.bench("+"), qos=1)
        self.client.loop_start()

    def say(self, topic: str, payload: bytes) -> None:
        self.client.publish(topic, payload, qos=1).wait_for_publish(10)

    def result(self, device: str, task: str, data: bytes) -> None:
        """Announce and send a forged result."""
        status = BenchStatus(task=task, device=device, boot_id="x", state="DONE", size=len(data))
        status = BenchStatus(**{**status.__dict__, "digest": blocks.digest_of(data)})
        self.say(topics.telemetry(device, "bench"), messages.encode(status))
        for index, part in enumerate(blocks.split(data)):
            self.say(topics.telemetry(device, "bench"), blocks.encode(status.digest, index, part))


@pytest.fixture
def liar(broker: Broker) -> Iterator[Liar]:
    made = Liar(broker)
    yield made
    made.client.disconnect()
    made.client.loop_stop()


@pytest.mark.fault
def test_a_task_replayed_to_another_device_or_later_is_refused_and_counted(
    registry: Registry, agent: Callable[..., Agent], liar: Liar
) -> None:
    one, other = agent(), agent("pi-2")
    bench_id = a_request(registry)
    assert ended(registry, bench_id).state == "SUCCEEDED"
    envelope = liar.heard[0]
    liar.say(topics.bench("pi-2"), envelope)
    until(lambda: other.call("/status")["malformed"]["count"] == 1, "the count")
    assert "a benchmark for pi-1 arrived at pi-2" in other.call("/status")["malformed"]["last"]
    assert other.bench() == {}
    assert ended(registry, a_request(registry)).state == "SUCCEEDED"
    liar.say(topics.bench("pi-1"), envelope)
    until(lambda: one.call("/status")["malformed"]["count"] == 1, "the count")
    assert "was seen before" in one.call("/status")["malformed"]["last"]
    task = BenchTask(device="pi-1", task="forged", kind="measure", seq=10**6)
    forged = json.loads(envelope)
    liar.say(topics.bench("pi-1"), signed.canonical({**forged, "signed": to_plain(task)}))
    until(lambda: one.call("/status")["malformed"]["count"] == 2, "the count")
    assert "BadSignature" in one.call("/status")["malformed"]["last"]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xa1\x66schema\xfb\x7f\xf8\x00\x00\x00\x00\x00\x00", "a result of schema nan"),
        (b"nonsense", "a result of"),
        (b"\x00" * (5 << 20), "announces 5,242,880 bytes"),
    ],
    ids=["nan", "nonsense", "oversized"],
)
def test_a_forged_result_is_not_accepted_and_counted(
    registry: Registry, server: Server, broker: Broker, device: Any, liar: Liar, *, data: bytes, why: str
) -> None:
    device("pi-1")
    bench_id = a_request(registry)
    until(lambda: registry.benches.find(bench_id).state == "RUNNING", "its turn")
    liar.result("pi-1", bench_id, data)
    done = ended(registry, bench_id)
    assert (done.state, done.reason) == ("FAILED", "BadResult")
    assert why in done.detail
    until(lambda: registry.devices()[0].malformed >= 1, "the count")
    assert not registry.benches.measurements()
    liar.say(
        topics.telemetry("pi-1", "bench"),
        messages.encode(BenchStatus(task="x", device="pi-9", boot_id="x", state="DONE")),
    )
    until(lambda: registry.devices()[0].malformed >= 2, "the count of a status in another's name")
    assert server.alive


@pytest.mark.fault
def test_an_agent_that_does_not_answer_ends_it() -> None:
    task = BenchTask(device="pi-1", task="b", kind="measure", seq=1, deadline_s=600.0)
    errand, now, effects = Errand(task, 0.0, gone_s=60.0), 0.0, []
    while not any(isinstance(one, End) for one in effects):
        now += 1.0
        effects = errand.tick(now, online=True)
        assert now < 60
    assert effects[-1].reason == "NoAnswer"  # type: ignore[union-attr]


TINY = Plan(warmup_s=0.02, min_s=0.02, min_count=3, max_s=0.05)
SMALL = bench.Scope(kernels=("relu", "tree regressor"), references=("ds-cnn",), rounds=1, plan=TINY)


def test_a_device_is_calibrated_interrupted_gone_on_with_and_predicted_for(
    registry: Registry, agent: Callable[..., Agent], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEML_DEVICES", str(tmp_path / "devices"))
    agent()

    def interrupt(done: int, total: int, what: str) -> None:
        if done > 3:
            raise KeyboardInterrupt

    def edgeml(*words: str) -> Any:
        return CliRunner().invoke(cli, ["devices", "calibrate", "--registry", str(registry.root), *words])

    assert [edgeml(*words).exit_code for words in ((), ("pi-1", "--local"), ("pi-9",))] == [2, 2, 1]
    with pytest.raises(KeyboardInterrupt):
        calibrate_on(registry, "pi-1", threads=(1,), scope=SMALL, progress=interrupt)
    before = len(registry.benches.waiting()), len(list((tmp_path / "devices").glob("*pi-1.journal")))
    assert before == (0, 1)
    said: list[str] = []
    (found,) = calibrate_on(
        registry, "pi-1", threads=(1,), scope=SMALL, progress=lambda done, total, what: said.append(what)
    )
    assert found["board"] == "raspberry-pi-4"
    assert found["samples"] > 10
    assert not list((tmp_path / "devices").glob("*.journal"))
    assert any(line.startswith("pi-1: ") for line in said)

    calibration = find_calibration("raspberry-pi-4")
    assert calibration is not None
    assert {one.name for one in calibration.references} == {"ds-cnn", "ds-cnn int8"}
    assert calibration.environment["onnxruntime"]
    net = OnnxModel(ds_cnn(int8=False)[0], "test")
    there = OnDevice(registry, "pi-1", Settings())
    nodes = there.nodes(net.data, {"x": np.zeros((1, 1, 49, 10), np.float32)}, 1)
    forecast = bench.Kernels(calibration).forecast(works_of(nodes, net.data))
    measured = next(one.ms for one in calibration.references if one.name == "ds-cnn")
    assert 0 < forecast.ms < 100 * measured
