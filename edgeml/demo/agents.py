"""The demo's processes: the coordinator and the agents, started like a user would, ended whatever happens."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgeml.errors import FleetError
from edgeml.transport.broker import die_with_parent

START_S, STOP_S = 30.0, 5.0


class Process:
    """A child whose output goes to a log file. Leaving the `with` block ends it; so does the end of this process."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as out:
            self._child = subprocess.Popen(
                [sys.executable, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                preexec_fn=die_with_parent,
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def check(self) -> None:
        """Raise FleetError with the last line of the log when the child has ended."""
        if self._child.poll() is not None:
            lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            said = lines[-1] if lines else "it said nothing"
            raise FleetError(f"{self.name} ended with status {self._child.returncode}: {said} (whole log: {self._log})")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        if self._child.poll() is None:
            self._child.terminate()
        try:
            self._child.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Agent(Process):
    """One `edgeml-agent`, enrolled with a state folder of its own, spoken to over its local HTTP port."""

    def __init__(self, device: str, board: str, *, folder: Path, broker: str, key: str) -> None:
        self.device, self._state = device, folder / device
        enroll = ["enroll", "--id", device, "--broker", broker, "--key", key, "--board", board, "--telemetry", "1"]
        subprocess.run(
            [sys.executable, "-m", "edgeml_runtime", *enroll, "--state", str(self._state)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        run = ["-m", "edgeml_runtime", "run", "--state", str(self._state)]
        super().__init__(f"agent {device}", run, folder / f"{device}.log")

    @property
    def port(self) -> int:
        """The port of its HTTP door on 127.0.0.1."""
        return int(json.loads((self._state / "http.json").read_text(encoding="utf-8"))["port"])

    def call(self, path: str, body: Any = None) -> Any:
        """Return the JSON answer of the agent's HTTP door `path`; a body makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=data, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=START_S) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise FleetError(f"{self.name}, {path}: {error.read().decode(errors='replace')[:200]}") from error


def wait_until(ready: Any, processes: Sequence[Process], *, what: str) -> None:
    """Return once `ready()` is true; raise FleetError when one of `processes` ended or START_S passed."""
    deadline = time.monotonic() + START_S
    while not ready():
        for process in processes:
            process.check()
        if time.monotonic() > deadline:
            raise FleetError(f"waited {START_S:.0f} s for {what}: look into the logs of the demo")
        time.sleep(0.05)
