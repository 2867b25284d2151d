"""Compression of updates: what comes back, what comes next time, and what a hostile upload meets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.wire import compress, tensors

SPECS = ("fp16", "int8", "int8:stochastic", "topk:0.05", "topk:1", "sign")
SHAPES = {"w": (7, 5), "b": (), "empty": (0, 3), "c": (11,)}
Arrays = dict[str, np.ndarray]


def an_update(seed: int = 0, shapes: compress.Shapes = SHAPES) -> Arrays:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()}


def flat(update: Arrays) -> np.ndarray:
    return np.concatenate([update[name].ravel() for name in sorted(update)])


def through(update: Arrays, spec: str, **options: Any) -> tuple[Arrays, Arrays]:
    """What the server reads, by way of the bytes of the wire, and the residual."""
    encoded = compress.encode(update, spec, **options)
    shapes = {name: value.shape for name, value in update.items()}
    return compress.decode(tensors.unpack(tensors.pack(encoded.arrays)), spec, shapes), encoded.residual


@pytest.mark.parametrize("spec", SPECS)
def test_what_arrives_and_what_is_left_make_the_update(spec: str) -> None:
    update = an_update()
    arrived, residual = through(update, spec)
    assert {name: value.shape for name, value in arrived.items()} == SHAPES
    for name, value in update.items():
        assert arrived[name].dtype == residual[name].dtype == np.float32
        np.testing.assert_allclose(arrived[name] + residual[name], value, atol=1e-7)


ERRORS = {"fp16": 5e-4, "int8": 0.5 / 127, "int8:stochastic": 1 / 127, "topk:1": 5e-4}


@pytest.mark.parametrize(("spec", "relative"), ERRORS.items())
def test_each_value_is_off_by_no_more_than_a_step(spec: str, relative: float) -> None:
    update = an_update(1, {"w": (400,)})
    arrived, _ = through(update, spec)
    assert np.abs(arrived["w"] - update["w"]).max() <= relative * 1.001 * np.abs(update["w"]).max()


def test_topk_sends_the_largest_and_sign_the_mean_magnitude() -> None:
    update = {"w": np.array([0.1, -4.0, 0.2, 3.0], np.float32)}
    np.testing.assert_allclose(through(update, "topk:0.5")[0]["w"], [0, -4, 0, 3], rtol=1e-3)
    np.testing.assert_allclose(through(update, "sign")[0]["w"], np.array([1, -1, 1, 1]) * 1.825, rtol=1e-6)


@pytest.mark.parametrize("spec", ["int8", "topk:0.1", "sign", "fp16"])
def test_error_feedback_brings_everything_there_in_time(spec: str) -> None:
    """After many rounds the sum of what arrived is the sum of the updates, but for the last residual."""
    residual: Arrays = {}
    wanted, arrived = np.zeros(12), np.zeros(12)
    for seed in range(50):
        update = an_update(seed, {"w": (12,)})
        got, residual = through(update, spec, residual=residual)
        wanted, arrived = wanted + update["w"], arrived + got["w"]
    np.testing.assert_allclose(arrived + residual["w"], wanted, atol=1e-4)
    assert np.abs(residual["w"]).max() < 3


def test_stochastic_rounding_is_right_on_average() -> None:
    update = {"w": np.array([1.0, 0.3333, -0.0021], np.float32)}
    rng = np.random.default_rng(0)
    mean = np.mean([through(update, "int8:stochastic", rng=rng)[0]["w"] for _ in range(3000)], axis=0)
    np.testing.assert_allclose(mean, update["w"], atol=4 * 0.5 / 127 / np.sqrt(3000))


def test_a_residual_of_another_model_is_forgotten() -> None:
    update = an_update()
    got, _ = through(update, "fp16", residual={"w": np.ones((2, 2), np.float32), "gone": np.ones(3, np.float32)})
    np.testing.assert_allclose(got["w"], update["w"], atol=1e-3)


def test_the_bytes_of_a_small_network() -> None:
    """4,810 parameters of 19,240 bytes: an MLP 64-64-10."""
    update = an_update(0, {"w1": (64, 64), "b1": (64,), "w2": (64, 10), "b2": (10,)})
    sizes = {spec: len(tensors.pack(compress.encode(update, spec).arrays)) for spec in ("", *SPECS)}
    assert sizes["int8"] < 5100 and sizes["fp16"] < 9900 and sizes["topk:0.05"] < 1300 and sizes["sign"] < 900


@pytest.mark.parametrize("spec", ["int4", "topk", "topk:0", "topk:2", "topk:nan", "fp16:x", "int8:", "sign:1", ":"])
def test_an_unknown_method_is_refused_with_the_known_ones(spec: str) -> None:
    with pytest.raises(MalformedMessage, match=r"fp16, int8, int8:stochastic, topk:FRACTION"):
        compress.parse(spec)


def test_an_update_that_is_not_finite_is_not_compressed() -> None:
    with pytest.raises(MalformedMessage, match="1 of 2 values"):
        compress.encode({"w": np.array([1, np.inf], np.float32)}, "int8")


def broken(spec: str, change: str) -> Arrays:
    found = dict(compress.encode(an_update(), spec).arrays)
    match change:
        case "missing":
            del found["s"]
        case "unknown":
            found["w"] = np.zeros(3, np.float32)
        case "short":
            found["q"] = found["q"][:-1]
        case "other type":
            found["q"] = found["q"].astype(np.float64)
        case "scale":
            found["s"] = -found["s"]
        case "nan":
            found["s"] = np.full_like(found["s"], np.nan)
        case "huge":
            found["s"] = np.full_like(found["s"], 3e38)
            found["q"] = np.full_like(found["q"], 127 if found["q"].dtype != np.float16 else 60000)
    return found


@pytest.mark.parametrize("change", ["missing", "unknown", "short", "other type", "scale", "nan"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_broken_upload_is_refused(spec: str, change: str) -> None:
    with pytest.raises(MalformedMessage):
        compress.decode(broken(spec, change), spec, SHAPES)


@pytest.mark.parametrize("spec", ["fp16", "int8", "topk:0.05"])
def test_values_beyond_float32_are_refused(spec: str) -> None:
    with pytest.raises(MalformedMessage, match="not finite"):
        compress.decode(broken(spec, "huge"), spec, SHAPES)


@pytest.mark.parametrize("places", [[3, 3], [4, 2], [1, 47], [65535, 65535]])
def test_places_must_increase_and_exist(places: list[int]) -> None:
    found = compress.encode(an_update(), "topk:0.04").arrays
    with pytest.raises(MalformedMessage, match="increasing numbers below 47"):
        compress.decode({**found, "i": np.array(places, np.uint16)}, "topk:0.04", SHAPES)


WILD = st.dictionaries(
    st.sampled_from(["q", "s", "i", "w"]),
    arrays_of.arrays(
        st.sampled_from([np.int8, np.uint8, np.uint16, np.float16, np.float32, np.int64]),
        arrays_of.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=8),
    ),
)


@settings(deadline=None, max_examples=300)
@given(WILD, st.sampled_from(SPECS))
def test_whatever_arrives_becomes_an_update_of_the_right_shape_or_is_refused(wild: Arrays, spec: str) -> None:
    shapes = {"w": (2, 3), "b": (1,)}
    try:
        got = compress.decode(wild, spec, shapes)
    except MalformedMessage:
        return
    assert {name: (value.shape, value.dtype) for name, value in got.items()} == {
        name: (shape, np.dtype(np.float32)) for name, shape in shapes.items()
    }
    assert all(np.all(np.isfinite(value)) for value in got.values())


@settings(deadline=None, max_examples=200)
@given(st.data(), st.sampled_from(SPECS))
def test_any_finite_update_survives_the_way(data: st.DataObject, spec: str) -> None:
    numbers = st.floats(-(2.0**100), 2.0**100, width=32)
    update = data.draw(
        st.dictionaries(
            st.text(max_size=3),
            arrays_of.arrays(np.float32, arrays_of.array_shapes(min_dims=0, min_side=0, max_side=5), elements=numbers),
            max_size=4,
        )
    )
    arrived, residual = through(update, spec)
    for name, value in update.items():
        assert arrived[name].shape == residual[name].shape == value.shape
    if update and flat(update).size:
        largest = float(np.abs(flat(update)).max())
        np.testing.assert_allclose(flat(arrived) + flat(residual), flat(update), atol=1e-6 * largest, rtol=1e-6)
