"""Real agent processes, and the release they accept."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeml.artifacts import Bundle
from edgeml.transport import Broker
from edgeml_runtime.session import Session
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.manifest import Bounds, Feature, Manifest, ReleaseVariant, TensorSpec, blob_of
from tests.server.stand_ins import CLASSES, FEATURES, a_model, rows_of


def a_release() -> Bundle:
    """A bundle an agent accepts: the toy model with its goldens and its columns."""
    graph = a_model().data
    rows = rows_of(7, 16)["numeric"]
    answers = Session(graph).run({"numeric": rows})
    goldens = tensors.pack({"input.numeric": rows, **{f"fp32.{name}": array for name, array in answers.items()}})
    manifest = Manifest(
        model="toy",
        release="ab12ab12ab12",
        task="classification",
        created="2026-01-02T03:04:05Z",
        inputs=(TensorSpec(name="numeric", dtype="float32", shape=(-1, FEATURES)),),
        outputs=(
            TensorSpec(name="label", dtype="int64", shape=(-1,)),
            TensorSpec(name="probabilities", dtype="float32", shape=(-1, CLASSES)),
        ),
        features=tuple(Feature(name=f"x{i}", kind="numeric") for i in range(FEATURES)),
        classes=tuple("abc"),
        variants=(ReleaseVariant(name="fp32", graph=blob_of(graph), bounds=Bounds(max_abs=1e-5, label_flips=0)),),
        default_variant="fp32",
        boards={},
        goldens=blob_of(goldens),
    )
    return Bundle(manifest, {blob_of(data).digest: data for data in (graph, goldens)})


class Agent:
    """One `edgeml_runtime` process with a state folder of its own; `start` runs it (again)."""

    def __init__(self, name: str, broker: Broker, *, key: str, folder: Path) -> None:
        self.name, self.state = name, folder / name
        given = ["--id", name, "--broker", f"{broker.host}:{broker.port}", "--key", key, "--board", "test-board"]
        self._command = [sys.executable, "-m", "edgeml_runtime"]
        enroll = [*self._command, "enroll", *given, "--state", str(self.state)]
        subprocess.run(enroll, check=True, stdout=subprocess.DEVNULL)
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen([*self._command, "run", "--state", self.state], stderr=subprocess.DEVNULL)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def post(self, path: str, body: Any) -> Any:
        return self._ask(path, json.dumps(body).encode())

    def label(self, rows: Mapping[str, np.ndarray]) -> None:
        """Give it labelled rows."""
        targets = ["abc"[index] for index in rows["target"]]
        self.post("/samples", {"rows": rows["numeric"].tolist(), "targets": targets})

    @property
    def status(self) -> Any:
        return self._ask("/status", None)

    def _ask(self, path: str, body: bytes | None) -> Any:
        port = json.loads((self.state / "http.json").read_text())["port"]
        request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body)
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
