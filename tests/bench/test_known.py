"""Everything that is known of a board makes one prediction: on a real calibration of this machine."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgeml import bench, graph
from edgeml.artifacts import FP32, Measurement, Prediction, Rows, Variant
from edgeml.bench.calibrate.blocks import Builder
from edgeml.devices import find_board
from edgeml.errors import NotPredictable
from edgeml.graph.proto import load
from edgeml_runtime.measure import Plan

PI_4 = find_board("raspberry-pi-4")
LARGE = Rows({"x": np.ones((1, 16, 256, 256), np.float32)})
QUICK = Plan(warmup_s=0.02, min_s=0.02, min_count=3, max_s=0.05)


@pytest.fixture(scope="module")
def known() -> bench.Known:
    """A board of which there is a profile and a calibration: of one operator, on this machine."""
    scope = bench.Scope(kernels=("relu",), references=("ds-cnn",), rounds=2, plan=QUICK)
    found = bench.calibrate(bench.Here(), name=PI_4.name, scope=scope)
    rows = Rows({"x": np.ones((1, 16, 64, 64), np.float32)})
    return bench.Known(profile=PI_4, calibration=found, rows=rows)


@pytest.fixture(scope="module")
def rectifier() -> Variant:
    net = Builder((1, 16, 64, 64))
    model = graph.serialize(load(net.done(net.add("Relu", ["x"], (1, 16, 64, 64)))), source="t")
    return Variant(model, FP32, model.digest)


def error_function() -> Variant:
    """An operator that no calibration of this page has measured, over a million elements."""
    net = Builder((1, 16, 256, 256))
    model = graph.serialize(load(net.done(net.add("Erf", ["x"], (1, 16, 256, 256)))), source="t")
    return Variant(model, FP32, model.digest)


def by_method(found: Prediction) -> dict[str, float]:
    return {source.method: source.weight for source in found.sources}


def test_a_calibration_joins_the_prior_and_both_are_told(known: bench.Known, rectifier: Variant) -> None:
    found = bench.predict_for(rectifier, known)
    assert {"prior", "calibrated"} <= by_method(found).keys()
    assert sum(by_method(found).values()) == pytest.approx(1.0, abs=1e-3)  # told to four places
    assert found.method in ("calibrated", "combined", "prior")
    assert found.low < found.predicted < found.high


def test_what_a_calibration_does_not_explain_is_left_to_the_prior_and_said(known: bench.Known) -> None:
    found = bench.predict_for(error_function(), dataclasses.replace(known, rows=LARGE))
    assert "calibrated" not in by_method(found)
    assert any("its calibration explains" in note for note in found.notes)


def test_a_calibration_of_other_threads_is_no_answer(known: bench.Known, rectifier: Variant) -> None:
    found = bench.predict_for(rectifier, dataclasses.replace(known, threads=4))
    assert "calibrated" not in by_method(found)
    assert any("is calibrated for 1 threads, and 4 are asked" in note for note in found.notes)


def test_a_calibration_alone_that_explains_too_little_is_refused(known: bench.Known) -> None:
    alone = dataclasses.replace(known, profile=None, rows=LARGE)
    with pytest.raises(NotPredictable, match="80% are needed"):
        bench.predict_for(error_function(), alone)


def test_a_measurement_on_the_board_silences_every_prediction(known: bench.Known, rectifier: Variant) -> None:
    told = Measurement(FP32, 0.5, 0.6, 0.7, 100, (0.49, 0.51), True, "")
    found = bench.predict_for(rectifier, dataclasses.replace(known, measured={FP32: told}))
    assert (found.method, found.low, found.predicted, found.high) == ("measured", 0.49, 0.5, 0.51)
