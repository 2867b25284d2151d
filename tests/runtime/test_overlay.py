"""Other weights in a model's file: the answers of a model that was built with them, whatever the optimizers fold."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from edgeml_runtime import overlay
from edgeml_runtime.errors import ModelRefused
from edgeml_runtime.session import Session
from edgeml_runtime.sidefile import GRAPH, split
from edgeml_runtime.wire.manifest import Settings
from tests.runtime.graphs import FLOAT, mlp, model

X = np.random.default_rng(1).normal(size=(4, 3, 8, 8)).astype(np.float32)
SHAPES = {"w": (8, 3, 3, 3), "g": (8,), "b": (8,), "m": (8,), "v": (8,), "w2": (288, 5), "b2": (5,)}


def weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    found = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    return found | {"v": np.abs(found["v"]) + 1}


def convolution(values: dict[str, np.ndarray]) -> bytes:
    """Return convolution, batch normalization and a last layer: the first two become one when they are optimized."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], kernel_shape=[3, 3]),
        helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["d"]),
        helper.make_node("Relu", ["d"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("MatMul", ["f", "w2"], ["z"]),
        helper.make_node("Add", ["z", "b2"], ["y"]),
    ]
    return model(nodes, [("x", FLOAT, ["n", 3, 8, 8])], outputs=[("y", FLOAT, ["n", 5])], weights=values)


@pytest.mark.parametrize("names", [("w2", "b2"), tuple(SHAPES)], ids=["head", "all"])
@pytest.mark.parametrize("apart", [False, True], ids=["whole", "weights beside"])
@pytest.mark.parametrize(
    ("level", "packed"), list(itertools.product(("disabled", "basic", "extended", "all"), (True, False)))
)
def test_it_answers_as_a_model_built_with_these_weights(
    tmp_path: Path, names: tuple[str, ...], apart: bool, level: str, packed: bool
) -> None:
    source, target = tmp_path / "whole.onnx", tmp_path / "other.onnx"
    source.write_bytes(convolution(weights(1)))
    if apart:
        assert split(source, tmp_path, least=64)
        source = tmp_path / GRAPH
    other = {name: array for name, array in weights(2).items() if name in names}
    overlay.write(source, target, other)
    settings = Settings(graph_level=level, prepacking=packed)  # type: ignore[arg-type]
    wanted = Session(convolution(weights(1) | other), settings).run({"x": X})["y"]
    np.testing.assert_array_equal(Session(target, settings).run({"x": X})["y"], wanted)


def test_onnxruntimes_own_way_keeps_what_was_folded_and_says_nothing() -> None:
    """Why `overlay` exists. When this fails, onnxruntime has learned it."""
    options = onnxruntime.SessionOptions()
    kept = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in weights(2).items()}
    for name, value in kept.items():
        options.add_initializer(name, value)
    (said,) = onnxruntime.InferenceSession(convolution(weights(1)), options).run(None, {"x": X})
    assert np.abs(said - Session(convolution(weights(2))).run({"x": X})["y"]).max() > 0.1


@pytest.mark.parametrize(
    ("name", "array", "why"),
    [
        ("w2", np.zeros((64, 9), np.float32), r"'w2' has the shape \(64, 9\), and the model wants \(64, 10\)"),
        ("w2", np.zeros((64, 10)), "'w2' is float64"),
        ("w9", np.zeros((64, 10), np.float32), "1 of 1 tensors have no place in it: 'w9'"),
    ],
)
def test_what_has_no_place_is_refused_and_nothing_is_written(
    tmp_path: Path, name: str, array: np.ndarray, why: str
) -> None:
    source, target = tmp_path / "model.onnx", tmp_path / "other.onnx"
    source.write_bytes(mlp())
    with pytest.raises(ModelRefused, match=why):
        overlay.write(source, target, {name: array})
    assert not target.exists()
    source.write_bytes(b"nonsense")
    with pytest.raises(ModelRefused, match="not a model"):
        overlay.write(source, target, {name: array})
