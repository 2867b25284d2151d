"""A whole agent where there is no onnxruntime: its Python has what the agent needs beside it, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from edgeml.artifacts import OnnxModel, Rows
from edgeml.quantize.plain import plain
from edgeml.quantize.recipe import Options
from edgeml_runtime.session import Session
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.manifest import PLAIN
from tests.runtime.agent_kit import AgentProcess, Mosquitto, needs_mosquitto, server_at
from tests.runtime.graphs import mlp
from tests.runtime.releases import Release, a_release

pytestmark = [pytest.mark.broker, needs_mosquitto]
NEEDED = ("numpy", "paho-mqtt", "cryptography", "cffi", "pycparser", "cbor2", "safetensors")
ROWS = np.random.default_rng(5).normal(size=(3, 64)).astype(np.float32)
RUNTIME = Path(__file__).resolve().parents[2] / "runtime"


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a Python that finds the agent and what it needs, and no onnxruntime."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for name in NEEDED:
        files = metadata.files(name) or []
        for top in {file.parts[0] for file in files if file.parts[0] not in ("..", "__pycache__")}:
            (folder / top).symlink_to(Path(str(files[0].locate())).parents[len(files[0].parts) - 1] / top)
    python = str(getattr(sys, "_base_executable", sys.executable))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(RUNTIME), str(folder)]))
    code = "from importlib import util; import numpy; print(util.find_spec('onnxruntime'))"
    said = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "None"
    return python


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto, bare: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[AgentProcess]:
    monkeypatch.setattr(sys, "executable", bare)  # what the kit starts agents with
    with AgentProcess(tmp_path, broker.port) as process:
        yield process.start()


def a_release_with_a_program() -> Release:
    """Return a release with the variants fp32 and numpy."""
    graph = mlp()
    program = plain(OnnxModel(graph, "t"), Rows({}), Options()).model.data
    return a_release("two", graph, others={PLAIN: program})


def test_it_takes_the_numpy_program_and_answers_like_onnxruntime(agent: AgentProcess, broker: Mosquitto) -> None:
    with server_at(broker.port) as server:
        server.assign("pi-1", a_release_with_a_program(), job="j1", seq=1)
        ended = server.until_ended("pi-1", "j1")
        assert ended.state == "SUCCEEDED", ended.detail
        assert agent.status()["running"]["variant"] == PLAIN
        wanted = Session(mlp()).run({"numeric": ROWS})
        said = agent.predict(ROWS)
        assert said["labels"] == [str(label) for label in wanted["label"]]
        np.testing.assert_allclose(said["probabilities"], wanted["probabilities"], atol=1e-5)
        assert "onnxruntime" not in server.reports["pi-1"][-1].hardware


def test_a_release_without_one_is_refused_in_a_sentence(agent: AgentProcess, broker: Mosquitto) -> None:
    with server_at(broker.port) as server:
        server.assign("pi-1", a_release("one"), job="j1", seq=1)
        ended = server.until_ended("pi-1", "j1")
        assert ended.state == "REJECTED" and ended.reason == "ModelRefused"
        assert "none of them is numpy; onnxruntime is not installed here: serve releases" in ended.detail


def test_the_hardware_is_told_there_too(bare: str) -> None:
    told = subprocess.run([bare, "-m", "edgeml_runtime", "hardware"], capture_output=True, check=True).stdout
    assert json.loads(told)["cores"] >= 1 and "onnxruntime" not in json.loads(told)
    assert tensors.unpack(tensors.pack({"a": ROWS}))["a"].shape == ROWS.shape
