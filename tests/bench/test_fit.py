"""The cost model: what it finds in times that follow it, what it says of what it does not know, and how wide."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml import bench
from edgeml.artifacts import OnnxModel
from edgeml.bench.calibrate import Reference
from edgeml.bench.calibrate.blocks import Builder, feeds
from edgeml.bench.calibrate.work import Work
from edgeml.errors import NotPredictable
from edgeml_runtime.measure import Plan, measure, operators
from edgeml_runtime.session import VERSION, Session

QUICK = Plan(warmup_s=0.05, min_s=0.1, min_count=10, max_s=0.3)
SCOPE = bench.Scope(
    kernels=("pointwise", "depthwise 3", "3x3", "first", "vector product", "blocked", "relu", "global pool"),
    references=("ds-cnn", "resnet8-64"),
    rounds=1,
    plan=QUICK,
)


def a_net() -> OnnxModel:
    net = Builder((1, 3, 48, 48))
    x = net.conv("x", 16, kernel=3, stride=2)
    for out in (32, 64, 128):
        x = net.conv(net.conv(x, net.shapes[x][1], kernel=3, group=net.shapes[x][1]), out)
    return OnnxModel(net.done(net.dense(net.pooled(x), 10)), source="test")


FEEDS = feeds((1, 3, 48, 48))


@pytest.fixture(scope="module")
def here():
    return bench.calibrate(bench.Here(), name="this-machine", scope=SCOPE)


def made(truth, *, count: int = 30, noise: float = 0.0, seed: int = 0) -> list[tuple[Work, float]]:
    """Return samples of one class whose times follow `truth`: milliseconds, then per MAC and per byte moved."""
    draw, found = np.random.default_rng(seed), []
    for _ in range(count):
        work = Work("Conv float", "dense", float(draw.integers(1e5, 1e7)), float(draw.integers(1e4, 1e6)), 0.0)
        ms = truth[0] + truth[1] * work.macs + truth[2] * work.moved
        found.append((work, ms * float(np.exp(noise * draw.standard_normal()))))
    return found


def calibrated(samples, references=()) -> bench.Calibration:
    return bench.Calibration(
        device="made",
        settings={},
        environment={"onnxruntime": VERSION, "machine": "x86_64"},
        cache_bytes=1 << 25,
        near_bytes=1 << 20,
        call_ms=0.0,
        node_ms=0.0,
        samples=tuple(samples),
        references=tuple(references),
    )


def nets(samples, *factors: float) -> list[Reference]:
    """Return reference nets of ten nodes each that take `factors` times what their nodes do."""
    found = []
    for index, factor in enumerate(factors):
        chosen = samples[index : index + 10]
        total = sum(ms for _, ms in chosen)
        found.append(Reference(name=f"net {index}", ms=factor * total, nodes=tuple(work for work, _ in chosen)))
    return found


@given(st.tuples(st.floats(1e-3, 0.1), st.floats(1e-9, 1e-7), st.floats(1e-9, 1e-7)), st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_times_that_follow_the_model_are_found_again(truth, seed):
    samples = made(truth, seed=seed)
    kernels = bench.Kernels(calibrated(samples))
    for work, ms in made(truth, count=10, seed=seed + 1000):
        assert kernels.node(work)[0] == pytest.approx(ms, rel=0.12)


@given(st.lists(st.floats(1e-4, 1e3), min_size=3, max_size=12), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_whatever_the_times_no_cost_is_negative(times, seed):
    works = [work for work, _ in made((1, 0, 0), count=len(times), seed=seed)]
    kernels = bench.Kernels(calibrated(zip(works, times, strict=True)))
    assert all(value >= 0 for model in kernels.models.values() for value in model.coefficients)
    assert all(np.isfinite(kernels.node(work)[0]) for work in works)


def test_a_class_of_small_samples_is_held_to_the_wider_one_for_what_they_say_nothing_of():
    wide = made((0.01, 1e-8, 1e-8))
    wide = [(dataclasses.replace(w, weights=4e5 * i), ms + 4e5 * i * 2e-8) for i, (w, ms) in enumerate(wide)]
    small = [(dataclasses.replace(w, kind="dense clipped", weights=100.0), ms) for w, ms in made((0.01, 1e-8, 1e-8))]
    kernels = bench.Kernels(calibrated([*wide, *small[:6]]))
    large = dataclasses.replace(small[0][0], weights=4e6)
    assert kernels.node(large)[0] == pytest.approx(small[0][1] + 4e6 * 2e-8, rel=0.3)


def test_one_disturbed_sample_does_not_spoil_its_class():
    truth = (0.01, 1e-8, 1e-8)
    samples = made(truth, count=30)
    samples[3] = (samples[3][0], 20 * samples[3][1])
    kernels = bench.Kernels(calibrated(samples))
    assert all(kernels.node(work)[0] == pytest.approx(ms, rel=0.15) for work, ms in made(truth, count=10, seed=7))


def test_the_reference_nets_set_the_sum_right_and_each_is_predicted_by_the_others():
    samples = made((0.01, 1e-8, 1e-8))
    kernels = bench.Kernels(calibrated(samples, nets(samples, 1.3, 1.3, 1.3, 1.3, 2.6)))
    assert kernels.scalars[False][0] == pytest.approx(1.3, rel=0.05)
    left = kernels.left_out()
    assert left["net 0"] == pytest.approx(1.0, abs=0.05)
    assert left["net 4"] == pytest.approx(0.5, abs=0.05)


def test_references_that_disagree_widen_the_interval():
    samples = made((0.01, 1e-8, 1e-8))
    nodes = [work for work, _ in samples[:10]]
    agreeing = bench.Kernels(calibrated(samples, nets(samples, 1, 1, 1, 1, 1))).forecast(nodes)
    not_so = bench.Kernels(calibrated(samples, nets(samples, 0.7, 0.85, 1, 1.2, 1.4))).forecast(nodes)
    assert agreeing.low < agreeing.ms < agreeing.high
    assert not_so.high / not_so.low > 1.3 * (agreeing.high / agreeing.low)


def test_every_reference_left_out_lies_in_the_interval_that_the_others_give():
    draw = np.random.default_rng(5)
    inside = []
    for seed in range(20):
        samples = made((0.01, 1e-8, 1e-8), noise=0.05, seed=seed)
        references = nets(samples, *np.exp(0.05 * draw.standard_normal(5)))
        for index, one in enumerate(references):
            kernels = bench.Kernels(calibrated(samples, references[:index] + references[index + 1 :]))
            forecast = kernels.forecast(one.nodes)
            inside.append(forecast.low <= one.ms <= forecast.high)
    assert np.mean(inside) >= 0.9


def test_an_operator_nobody_measured_lowers_the_coverage_and_is_named():
    samples = made((0.01, 1e-8, 1e-8))
    kernels = bench.Kernels(calibrated(samples, nets(samples, 1, 1, 1)))
    known = kernels.forecast([samples[0][0]] * 9)
    mixed = kernels.forecast([samples[0][0]] * 9 + [Work("Einsum float", "", 0.0, 5e5, 0.0)])
    assert (known.coverage, known.unknown) == (1.0, ())
    assert mixed.coverage < 1
    assert mixed.unknown == ("Einsum float",)
    assert mixed.high / mixed.ms > known.high / known.ms


def test_a_net_is_predicted_near_what_it_takes_here(here):
    found = bench.predict_calibrated(a_net(), FEEDS, here)
    measured = measure(Session(a_net().data), FEEDS, QUICK)
    assert found.method == "calibrated"
    assert found.coverage > 0.95
    assert measured.min_ms / 3 < found.predicted < 3 * measured.p90_ms  # no timed assertion: it is the right order
    assert found.low < found.predicted < found.high


def test_the_nodes_that_a_device_sent_back_give_the_same_as_asking_here(here):
    nodes = operators(a_net().data, FEEDS, runs=1, weights=True)
    sent = bench.predict_calibrated(a_net(), FEEDS, here, nodes=nodes)
    assert sent == bench.predict_calibrated(a_net(), FEEDS, here)


def test_what_was_not_measured_there_is_refused_by_name():
    relu = bench.calibrate(
        bench.Here(), name="pi", scope=bench.Scope(kernels=("relu",), references=(), rounds=1, plan=QUICK)
    )
    with pytest.raises(NotPredictable, match=r"pi: .*explains \d+% .*80% are needed: Conv float.*measure the model"):
        bench.predict_calibrated(a_net(), FEEDS, relu)


def test_a_calibration_by_another_runtime_is_stale_which_is_said_and_widens(here):
    other = dataclasses.replace(here, environment={**here.environment, "onnxruntime": "1.17.0"})
    fresh, stale = (bench.predict_calibrated(a_net(), FEEDS, one) for one in (here, other))
    assert stale.predicted == fresh.predicted
    assert stale.high / stale.low > fresh.high / fresh.low
    assert f"stale: calibrated with onnxruntime 1.17.0, and {VERSION} will run it" in " ".join(stale.notes)
    assert not any("stale" in note for note in fresh.notes)
    same = bench.predict_calibrated(a_net(), FEEDS, other, runtime="1.17.0")
    assert same.high == fresh.high


def test_a_board_without_the_blocked_layout_is_not_predicted_by_it(here):
    board = dataclasses.replace(here, environment={**here.environment, "machine": "aarch64"})
    with pytest.raises(NotPredictable, match="Conv float were not measured"):
        bench.predict_calibrated(a_net(), FEEDS, board)  # this machine's samples are of the blocked layout


def test_doubts_of_the_calibration_are_told(here):
    doubted = dataclasses.replace(here, doubts=("3 other tasks per core want to run",))
    assert "3 other tasks" in " ".join(bench.predict_calibrated(a_net(), FEEDS, doubted).notes)


def test_what_no_sample_has_costs_what_it_costs_in_the_wider_class() -> None:
    """Weights that one kind never had cost there what they cost in the family, not a number of any size."""
    bare = [(Work("Conv float", "first", macs, 1e4, 0.0), 0.002 + 2e-8 * macs) for macs in np.linspace(1e5, 9e6, 9)]
    heavy = [
        (Work("Conv float", "dense", macs, 1e4, weights), 0.002 + 2e-8 * macs + 1e-8 * weights)
        for macs in np.linspace(1e5, 9e6, 5)
        for weights in (1e4, 1e5, 1e6)
    ]
    kernels = bench.Kernels(calibrated([*bare, *heavy]))
    asked = Work("Conv float", "first", 4e6, 1e4, 5e5)
    without = dataclasses.replace(asked, weights=0.0)
    narrow, wide = (kernels.models[("Conv float", kind)] for kind in ("first", ""))
    assert narrow.ms(asked) - narrow.ms(without) == pytest.approx(wide.ms(asked) - wide.ms(without), rel=1e-6)
    assert narrow.ms(asked) > narrow.ms(without)
