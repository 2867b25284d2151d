"""What the agent's tests drive: a mosquitto, agent processes, a small server side that signs what it publishes."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from paho.mqtt.enums import CallbackAPIVersion

from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.wire import blocks, messages, signed, tensors, topics
from edgeml_runtime.wire.messages import Assignment, BlockRequest, JobStatus, Metrics, Online, Reported, UpdateHeader
from edgeml_runtime.wire.plain import to_plain
from tests.runtime.releases import KEY, Release, a_release

STRANGER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
needs_mosquitto = pytest.mark.skipif(not Path(MOSQUITTO).exists(), reason="mosquitto is not installed")
PATIENCE_S = 30.0


def until(ready: Callable[[], Any], what: str, *, timeout_s: float = PATIENCE_S) -> Any:
    """Return the first true value of `ready()`; fail the test when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := ready():
            return value
        time.sleep(0.02)
    pytest.fail(f"waited {timeout_s:g} s for {what}")


class Mosquitto:
    """A broker on a free port that can be killed and come back on the same one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.port = int(listener.getsockname()[1])
        self._conf = folder / "mosquitto.conf"
        self._conf.write_text(
            f"listener {self.port} 127.0.0.1\nallow_anonymous true\npersistence false\nset_tcp_nodelay true\n"
        )
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._child = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._conf)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until(self._answers, "mosquitto")

    def kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=1):
            return True
        return False


@dataclass
class ServerSide:
    """A coordinator without decisions: serves blobs, remembers what devices say."""

    port: int
    blobs: dict[str, bytes] = field(default_factory=dict)
    spoiled: set[str] = field(default_factory=set)  # digests whose first block is served with a flipped bit
    limit: int | None = None  # blocks still served; None: all
    served: collections.Counter[tuple[str, int]] = field(default_factory=collections.Counter)
    reports: dict[str, list[Reported]] = field(default_factory=lambda: collections.defaultdict(list))
    online: dict[str, list[Online]] = field(default_factory=lambda: collections.defaultdict(list))
    metrics: dict[str, list[Metrics]] = field(default_factory=lambda: collections.defaultdict(list))
    uploads: queue.SimpleQueue[tuple[str, bytes]] = field(default_factory=queue.SimpleQueue)

    def __post_init__(self) -> None:
        client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id="server", protocol=mqtt.MQTTv311)
        client.reconnect_delay_set(1, 1)
        client.on_connect = lambda c, *_: c.subscribe([(name, 1) for name in topics.for_server()])
        client.on_message = self._receive
        client.connect("127.0.0.1", self.port)
        client.loop_start()
        self.client = client

    def _receive(self, _client: Any, _data: Any, message: Any) -> None:
        with contextlib.suppress(MalformedMessage):  # tests publish junk where devices speak, too
            self._take(message)

    def _take(self, message: Any) -> None:
        topic = topics.parse(message.topic)
        if topic.kind == "reported":
            self.reports[topic.device].append(messages.decode(Reported, message.payload))
        elif topic.kind == "online":
            self.online[topic.device].append(messages.decode(Online, message.payload))
        elif topic.kind == "tel":
            self.metrics[topic.device].append(messages.decode(Metrics, message.payload))
        elif topic.kind == "up":
            self.uploads.put((topic.device, message.payload))
        elif topic.kind == "req":
            self._answer(topic.device, messages.decode(BlockRequest, message.payload))

    def _answer(self, device: str, request: BlockRequest) -> None:
        parts = blocks.split(self.blobs[request.digest])
        for first, end in request.ranges:
            for index in range(first, end):
                if self.limit is not None:
                    if self.limit == 0:
                        return
                    self.limit -= 1
                data = parts[index]
                if request.digest in self.spoiled and index == 0:
                    data = bytes([data[0] ^ 1]) + data[1:]
                self.served[request.digest, index] += 1
                self.client.publish(topics.block(device), blocks.encode(request.digest, index, data))

    def add(self, data: bytes) -> str:
        digest = blocks.digest_of(data)
        self.blobs[digest] = data
        return digest

    def assign(
        self, to: str, release: Release, *, job: str, seq: int, key: Ed25519PrivateKey = KEY, **changes: Any
    ) -> None:
        """Publish a signed, retained assignment of `release`."""
        for data in release.blobs:
            self.add(data)
        assignment = Assignment(
            **{
                "device": to,
                "job": job,
                "model": release.manifest.model,
                "release": release.manifest.release,
                "manifest": self.add(release.envelope),
                "manifest_bytes": len(release.envelope),
                "seq": seq,
                "deadline_s": 60.0,
                **changes,
            }
        )
        self.publish(topics.desired(to), signed.sign(to_plain(assignment), key), retain=True)

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        self.client.publish(topic, payload, qos=1, retain=retain).wait_for_publish(10)

    def status(self, device: str, job: str) -> list[JobStatus]:
        """Return what the device has reported of `job`, in order."""
        return [r.job for r in list(self.reports[device]) if r.job is not None and r.job.job == job]

    def until_ended(self, device: str, job: str, *, timeout_s: float = PATIENCE_S) -> JobStatus:
        def ended() -> JobStatus | None:
            return next((s for s in self.status(device, job) if s.state in messages.TERMINAL), None)

        found: JobStatus = until(ended, f"the end of {job}", timeout_s=timeout_s)
        return found

    def upload(self, device: str) -> tuple[UpdateHeader, dict[str, np.ndarray]]:
        """Return the next whole upload (or refusal) of `device`."""
        return self.answers([device])[device]

    def answers(self, devices: Iterable[str]) -> dict[str, tuple[UpdateHeader, dict[str, np.ndarray]]]:
        """Return the next whole upload (or refusal) of each of `devices`."""
        wanted, found = set(devices), dict[str, tuple[UpdateHeader, dict[str, np.ndarray]]]()
        headers = dict[str, UpdateHeader]()
        parts: dict[str, dict[int, bytes]] = {device: {} for device in wanted}
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and found.keys() != wanted:
            with contextlib.suppress(queue.Empty):
                device, payload = self.uploads.get(timeout=0.5)
                assert device in wanted
                if blocks.is_block(payload):
                    block = blocks.decode(payload)
                    parts[device][block.index] = block.data
                else:
                    headers[device] = messages.decode(UpdateHeader, payload)
                header = headers.get(device)
                if header is not None and len(parts[device]) == blocks.count(header.size):
                    body = b"".join(data for _, data in sorted(parts[device].items()))
                    assert header.refused or blocks.digest_of(body) == header.digest
                    found[device] = header, tensors.unpack(body) if body else {}
        if found.keys() != wanted:
            pytest.fail(f"no upload of {', '.join(sorted(wanted - found.keys()))}")
        return found

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


class AgentProcess:
    """`edgeml-agent run` on a state folder of its own."""

    def __init__(
        self, folder: Path, port: int, *, device: str = "pi-1", key: Ed25519PrivateKey = KEY, state: str = ""
    ) -> None:
        self.device, self.state = device, folder / (state or device)
        self.home = folder / "home"
        self.home.mkdir(exist_ok=True)
        self.log = folder / f"{self.state.name}.log"
        done = self.command(
            "enroll", "--id", device, "--broker", f"127.0.0.1:{port}", "--key", signed.public_hex(key),
            "--board", "raspberry-pi-4", "--telemetry", "0.5",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        self.child: subprocess.Popen[bytes] | None = None

    def command(self, verb: str, *words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Run one command of the CLI to its end."""
        command = [sys.executable, "-m", "edgeml_runtime", verb, "--state", str(self.state), *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=60, env=self._environment(), input=stdin, check=False
        )

    def start(self) -> AgentProcess:
        with self.log.open("ab") as out:
            command = [sys.executable, "-m", "edgeml_runtime", "run", "--state", str(self.state)]
            self.child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=self._environment()
            )
        until(lambda: self._port() and self.child is not None and self._answers(), "the agent's HTTP port")
        return self

    def kill(self) -> None:
        if self.child is not None:
            self.child.kill()
            self.child.wait()
            self.child = None
            (self.state / "http.json").unlink(missing_ok=True)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """End it like systemd does and return its exit code."""
        assert self.child is not None
        self.child.send_signal(number)
        code = self.child.wait(15)
        self.child = None
        return code

    def call(self, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> Any:
        """Return the JSON answer of an HTTP path; a body makes it a POST."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._port()}{path}",
            data=data,
            headers={"Content-Type": "application/json", **(headers or {})},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.loads(answer.read())

    def refused(self, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> tuple[int, str]:
        """Return code and message of a call that must not succeed."""
        with pytest.raises(urllib.error.HTTPError) as caught:
            self.call(path, body, headers=headers)
        return caught.value.code, json.loads(caught.value.read())["error"]

    def predict(self, rows: np.ndarray, **options: Any) -> Any:
        return self.call("/predict", {"rows": rows.tolist(), **options})

    def status(self) -> Any:
        return self.call("/status")

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def __enter__(self) -> AgentProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.home)}

    def _port(self) -> int:
        path = self.state / "http.json"
        return int(json.loads(path.read_bytes())["port"]) if path.exists() else 0

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            return bool(self.status())
        return False


@contextlib.contextmanager
def broker_in(folder: Path) -> Iterator[Mosquitto]:
    broker = Mosquitto(folder)
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


@contextlib.contextmanager
def server_at(port: int) -> Iterator[ServerSide]:
    server = ServerSide(port)
    try:
        yield server
    finally:
        server.close()


def deploy(agent: AgentProcess, server: ServerSide, name: str, *, seq: int, **options: Any) -> None:
    server.assign(agent.device, a_release(name, **options), job=f"job-{name}", seq=seq)
    ended = server.until_ended(agent.device, f"job-{name}")
    assert ended.state == "SUCCEEDED", ended


def serves(agent: AgentProcess) -> str | None:
    running = agent.status()["running"]
    return running["release"] if running else None
