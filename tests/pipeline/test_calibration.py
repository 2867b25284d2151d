"""Calibrations on disk: one per number of threads, found by the name of the board, and used by `edgeml bench`."""

from __future__ import annotations

import shutil

import pytest

from edgeml import bench
from edgeml.bench.calibrate.blocks import Builder
from edgeml.errors import DataError, NotFound
from edgeml.pipeline.benchmark import BenchOptions, bench_path
from edgeml.pipeline.calibration import calibrate_here, calibration_path, find_calibration
from edgeml_runtime.measure import Plan

SCOPE = bench.Scope(
    kernels=("pointwise", "first", "vector product", "global pool"),
    references=("ds-cnn",),
    rounds=1,
    plan=Plan(warmup_s=0.02, min_s=0.02, min_count=3, max_s=0.05),
)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory):
    """A folder with this machine's calibrations for one and two threads, their summary and the progress."""
    folder, seen = tmp_path_factory.mktemp("calibrated"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGEML_DEVICES", str(folder))
        found = calibrate_here(threads=(1, 2), scope=SCOPE, progress=lambda *what: seen.append(what))
    return folder, found, seen


@pytest.fixture
def devices(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEML_DEVICES", str(tmp_path / "devices"))
    return tmp_path / "devices"


@pytest.fixture
def model(tmp_path):
    net = Builder((1, 3, 32, 32))
    path = tmp_path / "model.onnx"
    path.write_bytes(net.done(net.dense(net.pooled(net.conv(net.conv("x", 16, kernel=3, stride=2), 32)), 10)))
    return path


def predicted(model, threads=1):
    options = BenchOptions(boards=("this-machine",), measure=False, threads=threads)
    return bench_path(model, options)["predicted"]


def test_this_machine_is_calibrated_once_for_each_number_of_threads_and_then_predicts(calibrated, devices, model):
    folder, found, seen = calibrated
    shutil.copytree(folder, devices)
    assert [one["threads"] for one in found] == [1, 2]
    assert sorted(path.name for path in devices.iterdir()) == [
        "this-machine.2-threads.calibration.json",
        "this-machine.calibration.json",
    ]  # and no journal
    assert {done for done, of, _ in seen if of} >= {0, seen[-1][1]}
    for threads in (1, 2):
        assert find_calibration("this-machine", threads).session_settings().threads == threads
        told = predicted(model, threads)
        assert told["method"] == "calibrated"
        assert told["low"] < told["predicted"] < told["high"]


def test_without_a_calibration_the_command_that_makes_one_is_named(devices, model):
    with pytest.raises(NotFound, match=r"not calibrated for 2 threads yet.*devices calibrate --local --threads 2"):
        predicted(model, threads=2)


def test_a_calibration_that_was_cut_off_is_refused_where_it_is_needed(calibrated, devices, model):
    shutil.copytree(calibrated[0], devices)
    path = calibration_path("this-machine")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"this-machine\.calibration\.json: .*calibrate again"):
        predicted(model)
