"""Ranges found over devices are those of the pooled rows, and so is the int8 variant made of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.artifacts import ActivationRanges, OnnxModel, Skipped, Variant
from edgeml.artifacts import Rows as Table
from edgeml.errors import DataError, UserError
from edgeml.graph import initializers, load, random_rows
from edgeml.quantize import Options, calibration_points, quantize
from edgeml.quantize.calibration import ranges
from edgeml.tasks.calibration import calibration, keys, numbers
from tests import networks
from tests.quantize import graphs
from tests.tasks.fleet import Rows, conclude, split, sums

STATIC = ["int8-static-u8s8", "int8-static-s8s8", "int8-qoperator-u8s8"]
BY_COUNTS = ["int8-percentile", "int8-entropy", "int8-mse"]
NONE = Table({})
MODELS: dict[str, Callable[[], OnnxModel]] = {
    "mlp": networks.an_mlp,
    "conv": networks.a_conv_net,
    "residual": graphs.a_residual_net,
    "attention": graphs.an_attention,
}
every_model = pytest.mark.parametrize("name", MODELS)


def rows_of(model: OnnxModel, n: int = 200) -> Rows:
    return random_rows(model, n)


def field_of(model: OnnxModel, fleet: list[Rows]) -> ActivationRanges:
    graph, tensors = calibration_points(model)
    found: ActivationRanges = conclude(calibration(graph, tensors), fleet).result()
    return found


@every_model
def test_ends_over_ten_devices_are_the_extremes_of_all_of_them(name: str) -> None:
    model = MODELS[name]()
    graph, tensors = calibration_points(model)
    fleet = [rows for rows in split(rows_of(model)) if len(next(iter(rows.values())))]
    study = calibration(graph, tensors, histogram=False)
    found = conclude(study, fleet)
    alone = [conclude(study, [rows]).result().ends for rows in fleet]
    for tensor, (low, high) in found.result().ends.items():
        assert low == min(ends[tensor][0] for ends in alone) <= 0
        assert high == max(ends[tensor][1] for ends in alone) >= 0
    pooled = ranges(load(graph), Table(rows_of(model)), tensors=tensors, max_rows=None)
    for tensor in tensors:  # a product of floats may differ in its last bit with the number of rows
        assert np.allclose(found.result().ends[tensor], pooled[tensor], rtol=1e-6, atol=1e-7)
    assert found.rounds == 4 and found.result().rows == 200


@every_model
def test_the_int8_variant_of_the_field_is_that_of_the_pooled_rows(name: str) -> None:
    model = MODELS[name]()
    rows = rows_of(model)
    field = field_of(model, split(rows))
    fleet = quantize(model, NONE, STATIC, Options(field=field))
    pooled = quantize(model, Table(rows), STATIC)
    assert [item.recipe for item in fleet] == [item.recipe for item in pooled]
    assert len([item for item in fleet if isinstance(item, Variant)]) == len(STATIC) + 1
    for ours, theirs in zip(fleet, pooled, strict=True):
        assert isinstance(ours, Variant) and isinstance(theirs, Variant)
        ours_, theirs_ = initializers(ours.model), initializers(theirs.model)
        assert ours_.keys() == theirs_.keys()
        for tensor, values in theirs_.items():
            if values.dtype.kind == "f":
                assert np.allclose(ours_[tensor], values, rtol=1e-5, atol=1e-12), tensor
            else:
                assert np.abs(ours_[tensor].astype(np.int64) - values).max() <= 1, tensor


def test_one_device_with_all_rows_in_one_batch_makes_the_same_bytes() -> None:
    model = networks.an_mlp()
    rows = {name: array[:64] for name, array in rows_of(model).items()}
    made = quantize(model, NONE, [*STATIC, *BY_COUNTS], Options(field=field_of(model, [rows])))
    pooled = quantize(model, Table(rows), [*STATIC, *BY_COUNTS])
    assert [_bytes(item) for item in made] == [_bytes(item) for item in pooled]
    assert len({_bytes(item) for item in made}) > 3


@every_model
def test_counts_over_ten_devices_hold_every_value_once(name: str) -> None:
    model = MODELS[name]()
    rows = rows_of(model)
    fleet, one = field_of(model, split(rows)), field_of(model, [rows])
    for tensor, counts in fleet.counts.items():
        assert counts.sum() == one.counts[tensor].sum() and counts.sum() % 200 == 0
        moved = np.abs(np.cumsum(counts) - np.cumsum(one.counts[tensor])).max()
        assert moved <= 0.01 * counts.sum()


def test_broken_rows_are_left_out_and_counted_and_a_fleet_of_them_is_refused() -> None:
    model = networks.a_regressor()
    good = rows_of(model, 40)
    broken = {"numeric": np.full((5, networks.FEATURES), np.inf, np.float32)}
    broken["numeric"][:2, :7] = 0.5
    graph, tensors = calibration_points(model)
    mixed = conclude(calibration(graph, tensors), [good, broken])
    alone = conclude(calibration(graph, tensors), [good])
    assert mixed.result().ends == alone.result().ends
    assert all(np.array_equal(mixed.result().counts[name], alone.result().counts[name]) for name in tensors)
    assert not alone.notes and all(note.startswith("5 rows make") for note in mixed.notes)
    with pytest.raises(DataError, match="no row makes"):
        conclude(calibration(graph, tensors), [broken])


def test_ranges_of_another_graph_or_without_counts_make_no_variant() -> None:
    model = networks.an_mlp()
    field = field_of(model, [rows_of(model, 40)])
    other = quantize(networks.an_mlp(seed=3), NONE, ["int8-static-u8s8"], Options(field=field))[1]
    assert isinstance(other, Skipped) and "ranges are of the graph" in other.reason
    bare = quantize(model, NONE, ["int8-mse"], Options(field=replace(field, counts={})))[1]
    assert isinstance(bare, Skipped) and "needs counts" in bare.reason
    with pytest.raises(UserError, match="nothing"):
        calibration(model, ["nothing"])


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2))
def test_keys_are_in_the_order_of_numbers(values: list[float]) -> None:
    array = np.array(values)
    assert np.array_equal(numbers(keys(array)), array)
    assert np.array_equal(np.sort(keys(array)), keys(np.sort(array)))


def test_what_leaves_a_device_counts_its_rows_and_no_more() -> None:
    graph, tensors = calibration_points(networks.an_mlp())
    task = calibration(graph, tensors).task()
    given_ = sums(task, [rows_of(networks.an_mlp(), 50)])
    assert set(task.outputs) == {"rows", "rows.left_out", *(f"outermost.{name}" for name in tensors)}
    for name in tensors:
        assert np.array_equal(given_[f"outermost.{name}"].sum(axis=1), [50, 50])


def _bytes(item: Variant | Skipped) -> bytes:
    return item.model.data if isinstance(item, Variant) else item.reason.encode()
