"""Memory: what is predicted lies near what processes hold, and a board too small is said before anything ships."""

from __future__ import annotations

import dataclasses
import platform

import pytest

from edgeml import bench, graph
from edgeml.artifacts import FP32, OnnxModel, Parity, Variant, Verdict
from edgeml.bench.calibrate.blocks import Builder, feeds
from edgeml.bench.predict.memory import PRICES, RUNTIME_MB, amounts, memory, memory_mb
from edgeml.devices import find_board
from edgeml.project import Board
from edgeml_runtime.measure import cold_start
from edgeml_runtime.wire.manifest import Settings

MACHINE = platform.machine()


def dense(width: int, layers: int) -> OnnxModel:
    net, x = Builder((1, width)), "x"
    for _ in range(layers):
        x = net.dense(x, width, act="Relu")
    return OnnxModel(net.done(x), source="test")


def convolutional() -> OnnxModel:
    net, x = Builder((1, 3, 96, 96)), "x"
    for out, stride in ((32, 2), (64, 1), (128, 2), (256, 2), (512, 2)):
        x = net.conv(x, out, kernel=3, stride=stride)
    return OnnxModel(net.done(net.dense(net.pooled(x), 10)), source="test")


MODELS = {
    "dense, 42 MB": (dense(1024, 10), (1, 1024)),
    "tiny": (dense(32, 1), (1, 32)),
    "convolutions": (convolutional(), (1, 3, 96, 96)),
}
OPTIONS = [
    Settings(),
    Settings(threads=2),
    Settings(arena=False),
    Settings(prepacking=False),
    Settings(mem_pattern=False),
    Settings(graph_level="extended"),
    Settings(graph_level="basic", arena=False, prepacking=False),
]


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_processes_hold_about_what_is_predicted(name, settings):
    model, shape = MODELS[name]
    held = cold_start(model.data, feeds(shape), starts=1, settings=settings)
    found = memory(model, settings, machine=MACHINE)
    extra = RUNTIME_MB - held.bare_mb  # what an agent has beside onnxruntime and numpy
    assert found.steady_mb - extra == pytest.approx(held.steady_mb, rel=0.25)
    assert found.peak_mb - extra == pytest.approx(held.peak_mb, rel=0.25)
    assert found.anonymous_mb - extra == pytest.approx(held.anonymous_mb, rel=0.35)


def test_every_amount_has_a_price_and_the_peak_is_never_below_what_stays():
    for model, _ in MODELS.values():
        for settings in OPTIONS:
            assert amounts(model, settings).keys() == PRICES.keys()
            found = memory(model, settings)
            assert found.peak_mb >= found.steady_mb > found.anonymous_mb > 0


def test_weights_beside_the_file_stay_there_when_they_are_not_packed():
    model = MODELS["dense, 42 MB"][0]
    usual = memory(model)
    mapped = memory(model, Settings(prepacking=False, external_data=True))
    assert mapped.anonymous_mb < usual.anonymous_mb - 42
    assert mapped.steady_mb < usual.steady_mb


def test_the_blocked_layout_costs_memory_where_there_is_one():
    model = MODELS["convolutions"][0]
    assert memory_mb(model, machine="x86_64") > memory_mb(model, machine="aarch64") + 1
    assert memory_mb(model, settings=Settings(graph_level="extended"), machine="x86_64") == memory_mb(model)


def test_a_cost_that_is_known_is_not_counted_again():
    model = MODELS["convolutions"][0]
    assert memory_mb(model, graph.cost(model)) == memory_mb(model)


def test_a_model_that_needs_more_than_the_board_has_is_refused_before_it_ships():
    zero = find_board("raspberry-pi-zero-2w")
    model = dense(4096, 6)  # 400 MB of weights on a board of 512 MB
    verdict = Verdict(FP32, True, "passes", Parity(9, 0.0, 0, 0), "", {}, 0.0, 0.0, (), 0.0)
    chosen = bench.choose(
        Board(board=zero.name),
        bench.Known(profile=zero),
        variants=[Variant(model, FP32, model.digest)],
        verdicts=[verdict],
        measurements=[],
    )
    assert not chosen.fits
    assert chosen.variant == ""
    needed = chosen.predictions[FP32].memory_mb
    assert needed > zero.memory_limit_mb
    assert f"needs {needed:.0f} MB of {zero.memory_limit_mb:.0f} MB" in chosen.reason
    assert bench.choose(
        Board(board=zero.name),
        bench.Known(profile=dataclasses.replace(zero, ram_mb=8192, usable_ram_mb=8000)),
        variants=[Variant(model, FP32, model.digest)],
        verdicts=[verdict],
        measurements=[],
    ).fits
