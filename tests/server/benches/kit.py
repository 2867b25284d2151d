"""What the tests of benchmarks on devices share: a real agent, a liar, requests and their ends."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgeml.artifacts import Bundle
from edgeml.bench.calibrate.reference import ds_cnn
from edgeml.files import write_bundle
from edgeml.registry import BenchPatience, BenchRecord, BenchWork, Registry
from edgeml.transport import Broker
from edgeml_runtime.wire import blocks, messages, tensors, topics
from edgeml_runtime.wire.manifest import Bounds, Manifest, ReleaseVariant, TensorSpec, blob_of
from edgeml_runtime.wire.messages import BenchBlob, BenchJob, BenchPlan, BenchStatus
from tests.server.stand_ins import a_model, rows_of, until

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
