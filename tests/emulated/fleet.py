"""Emulated devices at a real coordinator: mosquitto, `edgeml server`, agents that take themselves to be on boards."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeml.artifacts import Bundle
from edgeml.registry import Registry, Release
from edgeml.transport.broker import Broker, die_with_parent
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import Manifest
from tests.emulated.board_root import Emulated

PATIENCE_S = 240.0  # a busy machine emulates ten times slower still; nothing below is timed
STOP_S = 30.0
RAW = "application/octet-stream"


def until(ready: Callable[[], Any], what: str, *, timeout_s: float = PATIENCE_S) -> Any:
    """Return the first true value of `ready()`; fail the test when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := ready():
            return value
        time.sleep(0.1)
    pytest.fail(f"waited {timeout_s:g} s for {what}")


class Device:
    """One `edgeml-agent`, installed from its wheel, in the virtual environment of an emulated board."""

    def __init__(self, name: str, board: Emulated, *, folder: Path, dies: bool = False) -> None:
        self.name, self.board = name, board
        self.home, self.state, self.log = folder / "home", folder / "state", folder / "agent.log"
        self.home.mkdir(parents=True)
        self.python = board.dies if dies else board.python
        self._child: subprocess.Popen[bytes] | None = None

    def command(self, *words: object, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
        """Run one command of the agent to its end."""
        return self._run([*self._agent(*words), "--state", str(self.state)], timeout_s)

    def run_python(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self._run([str(self.python), *map(str, words)], PATIENCE_S)

    def enroll(self, broker: Broker, key: str) -> None:
        words = ("--id", self.name, "--broker", f"{broker.host}:{broker.port}", "--key", key, "--telemetry", "1")
        done = self.command("enroll", *words, "--board", self.board.profile.name)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        (self.state / "http.json").unlink(missing_ok=True)
        with self.log.open("ab") as out:
            self._child = subprocess.Popen(
                [*self._agent("run"), "--state", str(self.state)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environ(),
                preexec_fn=die_with_parent,
            )

    def kill(self) -> None:
        """End it like a power cut."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()

    def stop(self) -> None:
        """End it like systemd."""
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_S)
            self.kill()

    def call(self, path: str, body: Any = None) -> Any:
        """Return the JSON answer of its local HTTP door; a body makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        return json.loads(self._ask(path, data, {"Content-Type": "application/json"}))

    def predict(self, rows: np.ndarray) -> np.ndarray:
        """Return what the serving model answers to `rows` (one tensor input, one float output)."""
        data = self._ask("/predict", rows.astype("<f4").tobytes(), {"Content-Type": RAW, "Accept": RAW})
        return np.frombuffer(data, "<f4").reshape(len(rows), -1)

    def status(self) -> Any:
        """Return what the running agent says of itself, None while its door is not open."""
        assert self._child is not None and self._child.poll() is None, self.log.read_text(errors="replace")[-2000:]
        with contextlib.suppress(OSError):
            return self.call("/status")
        return None

    def running(self) -> dict[str, Any]:
        return dict((self.status() or {}).get("running") or {})

    def _ask(self, path: str, data: bytes | None, headers: Mapping[str, str]) -> bytes:
        port = json.loads((self.state / "http.json").read_bytes())["port"]
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=data, headers=dict(headers))
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return bytes(answer.read())

    def _run(self, command: list[str], timeout_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False, env=self._environ()
        )

    def _agent(self, *words: object) -> list[str]:
        return [str(self.python.with_name("edgeml-agent")), *map(str, words)]

    def _environ(self) -> dict[str, str]:
        """Return what a login on the board would have: nothing of this machine's Python."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8"}


@dataclass
class Fleet:
    """A broker, a registry, a server and one device a board. Everything is a process of its own, and is ended."""

    folder: Path
    registry: Registry
    broker: Broker
    devices: dict[str, Device] = field(default_factory=dict)  # by board

    def edgeml(self, *words: object) -> Any:
        """Return the JSON that a command of the workstation prints."""
        environment = {**os.environ, "EDGEML_REGISTRY": str(self.registry.root)}
        command = [sys.executable, "-m", "edgeml", *map(str, words), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment, check=False)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def ship(self, release: Release, *devices: Device, soak_predictions: int = 0) -> str:
        """Ask the server to ship `release` and return the rollout's id."""
        names, options = ",".join(device.name for device in devices), {"soak_predictions": soak_predictions}
        return self.registry.request_rollout(release.model, release.release, names, **options)

    def ended(self, rollout: str) -> dict[str, Any]:
        """Return how a rollout ended on each device, once it has."""
        until(lambda: self.registry.rollout(rollout).is_over, "the end of a rollout")
        return dict(self.registry.rollout(rollout).devices)

    def pinned(self, release: Release, variant: str) -> Release:
        """Return a release like this one of which every board runs `variant`."""
        bundle = self.registry.bundle_of(release)
        everywhere = dict.fromkeys((board.profile.name for board in self.boards()), variant)
        manifest = dataclasses.replace(
            bundle.manifest, boards=everywhere, release=f"{variant[-4:]}{release.release[4:]}"
        )
        return self.add(Bundle(manifest, bundle.blobs))

    def add(self, bundle: Bundle) -> Release:
        return self.registry.add_release(bundle, summary={}, run_dir="")

    def boards(self) -> list[Emulated]:
        return [device.board for device in self.devices.values()]


def here(bundle: Bundle, variant: str, rows: np.ndarray) -> np.ndarray:
    """Return what `variant` answers to `rows` on this machine, in the session the bundle asks for."""
    chosen = next(item for item in bundle.manifest.variants if item.name == variant)
    session = Session(bundle.blobs[chosen.graph.digest], chosen.session)
    answers = session.run({bundle.manifest.inputs[0].name: rows})
    return answers[bundle.manifest.outputs[0].name]


def bounds(manifest: Manifest, variant: str) -> float:
    return next(item.bounds.max_abs for item in manifest.variants if item.name == variant)
