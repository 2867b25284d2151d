"""What the device's tests share: small models, a small disk, a broker, a server side, an agent."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest
from onnx import helper

from tests.runtime.agent_kit import AgentProcess, Mosquitto, ServerSide, broker_in, server_at
from tests.runtime.graphs import FLOAT, INT64, colours, mlp, mlp_in_numpy, model


@pytest.fixture
def models() -> SimpleNamespace:
    """Return the builders of small models by name."""
    builders = {"model": model, "mlp": mlp, "mlp_in_numpy": mlp_in_numpy, "colours": colours}
    return SimpleNamespace(**builders, onnx=onnx, node=helper.make_node, FLOAT=FLOAT, INT64=INT64)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Return an empty file system of 1 MiB; skip where none can be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small tmpfs needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, timeout=30)
    if done.returncode:
        pytest.skip(f"no small tmpfs here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=30)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    with broker_in(tmp_path) as running:
        yield running


@pytest.fixture
def server(broker: Mosquitto) -> Iterator[ServerSide]:
    with server_at(broker.port) as running:
        yield running


@pytest.fixture
def agent(tmp_path: Path, broker: Mosquitto) -> Iterator[AgentProcess]:
    """Return a running agent that is enrolled at `broker`."""
    with AgentProcess(tmp_path, broker.port) as process:
        yield process.start()
