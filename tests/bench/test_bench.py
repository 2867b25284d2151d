"""Prediction and choice: always a range, always a reason with numbers."""

import dataclasses

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeml import bench, graph
from edgeml.artifacts import FP32, Measurement, Parity, Rows, Variant, Verdict
from edgeml.bench.predict import machine, memory, prior
from edgeml.devices import find_board, shipped_boards
from edgeml.errors import DataError
from edgeml.project import Board
from edgeml.quantize import quantize
from edgeml_runtime.measure import Plan
from tests import networks

PI_4 = find_board("raspberry-pi-4")


def a_verdict(recipe: str, *, passed: bool = True) -> Verdict:
    missed = 0.0 if passed else {"int8-static-u8s8": 0.02}.get(recipe, 0.3)
    reason = "passes" if passed else "fails: too far off"
    return Verdict(recipe, passed, reason, Parity(9, 0.0, 0, 0), "", {}, 0.0, 0.0, (), missed)


def a_product(rows: int = 128, inner: int = 512, outer: int = 512) -> tuple[list[Variant], Rows]:
    """Return fp32 and both int8 variants of a large matrix product, where int8 pays."""
    weights = {"w": np.random.default_rng(0).standard_normal((inner, outer)).astype(np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    inputs, outputs = ({n: (TensorProto.FLOAT, ["n", rows, s])} for n, s in (("x", inner), ("y", outer)))
    model = graph.serialize(networks.a_graph([node], inputs=inputs, outputs=outputs, weights=weights), source="t")
    data = Rows({"x": np.random.default_rng(1).random((32, rows, inner), dtype=np.float32)})
    return [item for item in quantize(model, data, ["int8"]) if isinstance(item, Variant)], data


def without(board, fact: str):
    sources = {name: source for name, source in board.sources.items() if name != fact}
    return dataclasses.replace(board, sources=sources, **{fact: None})


def chosen(variants, *, board=PI_4, failed=(), measurements=(), known=None, **limits):
    target = Board(board=board.name, **limits)
    verdicts = [a_verdict(variant.recipe, passed=variant.recipe not in failed) for variant in variants]
    return bench.choose(
        target,
        bench.Known(profile=board, **(known or {})),
        variants=variants,
        verdicts=verdicts,
        measurements=measurements,
    )


@pytest.mark.parametrize("name", sorted(shipped_boards()))
def test_every_board_gets_a_range_around_the_prediction_and_a_memory_above_the_floor(name):
    for model in (networks.an_mlp(), networks.a_conv_net(), networks.a_forest(), networks.a_regressor()):
        found = bench.predict(model, find_board(name))
        assert 0 < found.low < found.predicted < found.high
        assert found.high / found.predicted == pytest.approx(found.predicted / found.low)
        assert found.memory_mb > memory.RUNTIME_MB
        assert (found.method, found.coverage) == ("prior", 1.0)


def test_a_board_of_which_only_the_class_is_known_is_predicted_as_all_boards_of_the_class():
    model = a_product()[0][0].model
    known = [
        bench.predict(model, board).predicted for board in shipped_boards().values() if not machine.unknown_of(board)
    ]
    anything = bench.predict(model, find_board("generic-aarch64"))
    assert anything.low <= min(known) and anything.high >= max(known)
    assert "frequency_ghz" in anything.notes[0] and not bench.predict(model, PI_4).notes


def test_a_fact_that_is_left_out_widens_the_range_and_is_named():
    model = a_product()[0][0].model
    whole, lacking = bench.predict(model, PI_4), bench.predict(model, without(PI_4, "frequency_ghz"))
    assert lacking.high / lacking.low > whole.high / whole.low
    assert lacking.notes == ("unknown of raspberry-pi-4: frequency_ghz; as on each of the 3 machines like it",)


def test_a_board_of_unknown_memory_is_limited_by_what_the_project_says_alone():
    unknown = without(PI_4, "ram_mb")
    assert chosen(a_product()[0], board=unknown).fits
    assert not chosen(a_product()[0], board=unknown, memory_mb=20).fits


@pytest.mark.parametrize("table", [prior.EFFICIENCY, prior.ACTIVATIONS])
def test_every_prior_is_a_share_for_every_kind_of_core(table):
    for shares in table.values():
        assert shares.keys() == {prior.IN_ORDER, prior.OUT_OF_ORDER, prior.DOT}
        assert all(0 < share <= 1 for share in shares.values())


def test_the_known_product_takes_the_cycles_that_were_counted_for_it():
    # 33.6 M multiply-accumulates: 8.65 M cycles on an A72, 1.25 M in int8 on an A76
    variants, _ = a_product()
    on_pi_4 = bench.predict(variants[0].model, PI_4).predicted
    assert on_pi_4 == pytest.approx(8.65e6 / 1.8e9 * 1e3, rel=0.05)
    int8 = next(v for v in variants if v.recipe == "int8-static-s8s8")
    assert bench.predict(int8.model, find_board("raspberry-pi-5")).predicted == pytest.approx(1.25e6 / 2.4e6, rel=0.4)


def test_a_faster_board_and_more_threads_are_faster():
    model = a_product()[0][0].model
    zero, four, five = (bench.predict(model, find_board(f"raspberry-pi-{n}")).predicted for n in ("zero-2w", "4", "5"))
    assert zero > four > five
    assert bench.predict(model, PI_4, 4).predicted == pytest.approx(four / 2, rel=0.1)


def test_a_call_of_a_tiny_model_costs_what_the_runtime_costs():
    found = bench.predict(networks.a_regressor(), PI_4)
    assert 0.005 < found.predicted < 0.05  # 24,000 instructions at 1.8 GHz, not nothing


def test_an_operator_nobody_knows_lowers_the_coverage_and_widens_the_range():
    node = helper.make_node("Det", ["x"], ["y"])
    types = {"inputs": {"x": (TensorProto.FLOAT, [3, 3])}, "outputs": {"y": (TensorProto.FLOAT, [])}}
    found = bench.predict(graph.serialize(networks.a_graph([node], **types), source="t"), PI_4)
    assert found.coverage < 0.8
    assert found.high / found.predicted > 2.4


@pytest.mark.parametrize(
    ("board", "recipe"), [("raspberry-pi-4", "int8-static-u8s8"), ("raspberry-pi-5", "int8-static-s8s8")]
)
def test_where_int8_pays_each_kind_of_core_gets_its_activation_type(board, recipe):
    choice = chosen(a_product()[0], board=find_board(board))
    assert (choice.variant, choice.fits) == (recipe, True)
    assert "as fast as fp32" in choice.reason
    assert len(choice.predictions) == 3


def test_where_int8_gains_nothing_fp32_ships_and_the_reason_says_so():
    variants = quantize(networks.an_mlp(), networks.some_rows(), ["int8"])
    choice = chosen(variants)
    assert (choice.variant, choice.fits) == (FP32, True)
    assert "no compressed variant wins" in choice.reason


def test_a_failed_variant_is_never_chosen():
    choice = chosen(a_product()[0], failed=("int8-static-u8s8", "int8-static-s8s8"))
    assert choice.variant == FP32
    assert choice.predictions.keys() == {FP32}
    assert "the nearest, int8-static-u8s8, misses its bound by 0.02" in choice.reason


def test_no_variant_that_passed_is_no_choice():
    variants = [Variant(networks.an_mlp(), FP32, "")]
    choice = chosen(variants, failed=(FP32,))
    assert (choice.variant, choice.fits) == ("", False)
    assert "too far off" in choice.reason


def test_none_within_the_limit_names_the_nearest_miss_with_both_numbers():
    choice = chosen(a_product()[0], latency_p90_ms=0.01)
    assert not choice.fits
    assert "nearest miss is int8-static-u8s8" in choice.reason
    assert "for a limit of 0.01 ms" in choice.reason


def test_too_little_memory_names_the_megabytes():
    choice = chosen(a_product()[0], memory_mb=20)
    assert not choice.fits
    assert "MB of 20 MB" in choice.reason


def test_the_boards_own_memory_is_the_limit_when_the_project_gives_none():
    small = dataclasses.replace(PI_4, ram_mb=40)
    assert "MB of 40 MB" in chosen(a_product()[0], board=small).reason


def test_only_int8_within_the_limit_is_chosen_and_says_what_fp32_misses():
    variants, _ = a_product()
    full = bench.predict(variants[0].model, PI_4).predicted
    choice = chosen(variants, latency_p90_ms=0.9 * full)
    assert choice.variant == "int8-static-u8s8"
    assert "fp32 is predicted at" in choice.reason


def test_a_range_that_reaches_over_the_limit_is_said():
    variants, _ = a_product()
    full = bench.predict(variants[0].model, PI_4).predicted
    choice = chosen(variants[:1], latency_p90_ms=1.2 * full)
    assert choice.fits
    assert "the range reaches over the limit" in choice.reason
    assert "reaches over" not in chosen(variants[:1], latency_p90_ms=3 * full).reason


def test_what_was_measured_here_stands_in_the_reason_when_it_is_valid():
    variants = [Variant(networks.an_mlp(), FP32, "")]
    measured = Measurement(FP32, 0.01, 0.0123, 0.02, 100, (0.01, 0.01), True, "")
    assert "p90 0.0123 ms" in chosen(variants, measurements=[measured]).reason
    noisy = dataclasses.replace(measured, valid=False)
    assert "0.0123" not in chosen(variants, measurements=[noisy]).reason


@pytest.mark.parametrize("batch", ["rows", 1, 4])
def test_a_variant_is_timed_through_the_devices_own_session(batch):
    variant = Variant(networks.an_mlp(batch=batch), FP32, "")
    found = bench.measure_here(variant, networks.some_rows(5), Plan(warmup_s=0.01, min_s=0.05, min_count=20, max_s=0.2))
    assert found.recipe == FP32
    assert found.n >= 20
    assert 0 < found.p50 <= found.p90 <= found.p99
    assert found.ci95[0] <= found.p50 <= found.ci95[1]
    assert "onnxruntime" in found.environment


def test_no_row_to_time_is_refused():
    with pytest.raises(DataError, match="no row"):
        bench.measure_here(Variant(networks.an_mlp(), FP32, ""), networks.some_rows(0))
