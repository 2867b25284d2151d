"""The emulated boards and a fleet of them; asked for with `-m emulated` alone: the first run fetches a Debian."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgeml.demo.digits import Share, deal
from edgeml.registry import Registry, Release
from edgeml.transport.broker import die_with_parent, start_broker
from tests.emulated.board_root import BOARDS, Emulated, boards
from tests.emulated.fleet import Device, Fleet, until
from tests.networks import a_conv_net


@pytest.fixture(scope="session")
def emulated() -> dict[str, Emulated]:
    return boards()


@pytest.fixture(params=BOARDS)
def board(request: pytest.FixtureRequest, emulated: dict[str, Emulated]) -> Emulated:
    """Return each board in turn."""
    return emulated[request.param]


@pytest.fixture(scope="session")
def fleet(emulated: dict[str, Emulated], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Return a mosquitto, a server, and one agent a board, enrolled and online."""
    folder = tmp_path_factory.mktemp("fleet")
    with contextlib.ExitStack() as stack:
        broker = stack.enter_context(start_broker(kind="mosquitto"))
        registry = Registry.open(folder / "registry")
        stack.callback(registry.close)
        fleet = Fleet(folder, registry, broker)
        with (folder / "server.log").open("wb") as log:
            address = f"{broker.host}:{broker.port}"
            command = [sys.executable, "-m", "edgeml", "server", "--broker", address, "--registry", str(registry.root)]
            server = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=die_with_parent)
        stack.callback(server.wait, 30)
        stack.callback(server.terminate)
        for name in BOARDS:
            device = Device(name, emulated[name], folder=folder / name)
            device.enroll(broker, registry.public_key_hex())
            device.start()
            stack.callback(device.stop)
            fleet.devices[name] = device
        until(lambda: {d.id for d in registry.devices() if d.online} == set(BOARDS), "all boards to come online")
        yield fleet


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((64, 3, 16, 16)).astype(np.float32)


@pytest.fixture(scope="session")
def conv(fleet: Fleet, images: np.ndarray) -> Release:
    """Return the release that `edgeml compile` makes of a convolutional network, fp32 and int8."""
    folder = fleet.folder / "conv"
    folder.mkdir()
    (folder / "conv.onnx").write_bytes(a_conv_net().data)
    np.savez(folder / "rows.npz", image=np.concatenate([images, images[::-1] * 0.7]))
    words = [word for name in BOARDS for word in ("--device", name)]
    told = fleet.edgeml(
        "compile",
        folder / "conv.onnx",
        "--calibration",
        folder / "rows.npz",
        "--precision",
        "int8",
        "-o",
        folder / "out",
        *words,
    )
    assert "int8-static-u8s8" in {entry["name"] for entry in told["variants"]}, told
    return fleet.registry.find("conv")


@pytest.fixture(scope="session")
def digits(fleet: Fleet) -> tuple[Release, list[Share]]:
    """Return the demo's first release, built here, and the rows of its three devices."""
    _, shares = deal(fleet.folder / "project", agents=len(BOARDS))
    project = fleet.folder / "project/edgeml.yaml"
    text = project.read_text(encoding="utf-8").replace("search: {", "search: {trials: 1, folds: 2, ")
    project.write_text(text, encoding="utf-8")
    fleet.edgeml("build", fleet.folder / "project")
    return fleet.registry.find("digits"), shares


@pytest.fixture
def alone(board: Emulated, tmp_path: Path) -> Device:
    """Return an agent on each board that is enrolled nowhere yet."""
    return Device("alone", board, folder=tmp_path / "alone")
