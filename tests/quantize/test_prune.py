"""Narrower networks answer nearly as the whole one, with less, and say why where no channel can go."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from edgeml import graph
from edgeml.artifacts import OnnxModel, Rows, Skipped
from edgeml.convert.sklearn import convert
from edgeml.quantize import Options, quantize
from edgeml_runtime.session import Session
from tests import networks

OPTIONS = Options(metric="accuracy", task="classification", max_drop=0.06)


def digits():
    rows, target = load_digits(return_X_y=True)
    return (rows / 16).astype(np.float32), target


@pytest.fixture(scope="module")
def wide():
    rows, target = digits()
    network = MLPClassifier((128, 64), max_iter=60, random_state=0).fit(rows[:1200], target[:1200])
    return convert(network, {"numeric": 64}, source="wide")


@pytest.mark.parametrize("recipe", ["pruned", "distilled"])
def test_a_wide_network_gets_narrow_and_keeps_its_accuracy(recipe, wide):
    rows, target = digits()
    made = quantize(wide, Rows({"numeric": rows[:1200]}, target[:1200]), [recipe], options=OPTIONS)[1]
    assert made.recipe == recipe, made
    assert len(made.model.data) < 0.75 * len(wide.data)
    assert [(s.name, s.dtype) for s in graph.outputs(made.model)] == [(s.name, s.dtype) for s in graph.outputs(wide)]
    before, after = (Session(m.data).run({"numeric": rows[1200:]})["label"] for m in (wide, made.model))
    assert (after == target[1200:]).mean() > (before == target[1200:]).mean() - 0.06


def two_convolutions(seed: int = 0) -> OnnxModel:
    """Return a network whose second half of channels says what the first half says."""
    rng, f = np.random.default_rng(seed), TensorProto.FLOAT
    half = rng.normal(size=(8, 3, 3, 3)).astype(np.float32)
    arrays = {"a": np.concatenate([half, half]), "ab": np.tile(rng.normal(size=8), 2).astype(np.float32)}
    arrays |= {"b": rng.normal(size=(5, 16, 3, 3)).astype(np.float32), "bb": rng.normal(size=5).astype(np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "a", "ab"], ["p"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["p"], ["q"]),
        helper.make_node("Conv", ["q", "b", "bb"], ["y"], kernel_shape=[3, 3], strides=[2, 2]),
    ]
    ends = (
        [helper.make_tensor_value_info(name, f, ["n", *shape])] for name, shape in (("x", [3, 9, 9]), ("y", [5, 4, 4]))
    )
    body = helper.make_graph(nodes, "g", *ends, [numpy_helper.from_array(v, k) for k, v in arrays.items()])
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return OnnxModel(proto.SerializeToString(), "two")


def test_channels_that_say_the_same_twice_go_without_loss():
    model = two_convolutions()
    rows = np.random.default_rng(1).normal(size=(64, 3, 9, 9)).astype(np.float32)
    made = quantize(model, Rows({"x": rows}), ["pruned"], options=Options(max_drop=0.01))[1]
    weights = [array.shape for array in graph.initializers(made.model).values() if array.ndim == 4]
    (outputs, left), (made_left, inputs) = sorted(shape[:2] for shape in weights)
    assert (outputs, inputs) == (5, 3)
    assert left == made_left < 16
    more = np.random.default_rng(2).normal(size=(16, 3, 9, 9)).astype(np.float32)
    before, after = (Session(m.data).run({"x": more})["y"] for m in (model, made.model))
    assert np.sqrt(np.mean((before - after) ** 2)) < 0.05 * before.std()


@pytest.mark.parametrize("recipe", ["pruned", "distilled"])
def test_where_no_channel_can_go_the_reason_says_so(recipe):
    rows = Rows({"numeric": np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)})
    made = quantize(networks.a_forest(), rows, [recipe])[1]
    assert isinstance(made, Skipped)
    assert "no two layers" in made.reason
