"""Calibration of a device of the fleet: questions in batches, interrupted and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from edgeml import bench
from edgeml.artifacts import OnnxModel
from edgeml.bench.calibrate.reference import ds_cnn
from edgeml.bench.calibrate.work import works_of
from edgeml.cli import edgeml as cli
from edgeml.pipeline.calibration import find_calibration
from edgeml.pipeline.remote_device import OnDevice, calibrate_on
from edgeml.registry import Registry
from edgeml.transport.broker import find_mosquitto
from edgeml_runtime.measure import Plan
from edgeml_runtime.wire.manifest import Settings
from tests.server.benches.kit import Agent

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto"),
]


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
