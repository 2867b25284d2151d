"""Pictures that stay channels first: the same numbers, and fewer transpositions."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.autodiff.backward import live
from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.facing import TURN, channels_first
from edgeml_runtime.session import Session

SIZES = (3, 4, 5, 2)  # rows, channels, height, width
node = helper.make_node


def turned(name: str, into: str) -> NodeProto:
    return node("Transpose", [name], [into], perm=TURN)


FRONT = [turned("x", "c"), node("Mul", ["c", "half"], ["d"]), turned("d", "p")]  # what a depthwise layer leaves behind
BACK = [turned("r", "e"), node("Reshape", ["e", "flat"], ["y"])]  # what the gradient of a weight begins with
NORM = [f"channels.{i}" for i in range(4)]
CHAINS = {
    "activation": [node("Relu", ["p"], ["r"])],
    "two of one": [node("Relu", ["p"], ["a"]), node("Mul", ["a", "p"], ["r"])],
    "normalized": [node("BatchNormalization", ["p", *NORM], ["r"])],
    "by channel": [node("Reshape", ["channels.0", "column"], ["b"]), node("Sub", ["p", "b"], ["r"])],
    "one tap": [node("Conv", ["p", "one"], ["r"], kernel_shape=[1, 1])],
    "one tap and a bias": [node("Conv", ["p", "one", "channels.0"], ["r"])],
    "with pictures as they lie": [node("Add", ["p", "x"], ["r"])],
    "one tap of what was spread": [
        node("ReduceMean", ["p", "places"], ["m"]),
        turned("m", "t"),
        node("Neg", ["t"], ["n"]),
        turned("n", "s"),
        node("Mul", ["s", "p"], ["q"]),
        node("Conv", ["q", "one"], ["r"]),
    ],
    "without negatives": [node("Clip", ["p", "zero", ""], ["r"])],
}
KEPT = {
    "three taps": [node("Conv", ["p", "three"], ["r"], pads=[1, 1, 1, 1])],
    "one tap, strided": [node("Conv", ["p", "one"], ["r"], strides=[2, 1])],
    "of an unknown shape": [node("Reshape", ["channels.0", "row"], ["b"]), node("Add", ["p", "b"], ["r"])],
    "softmax": [node("Softmax", ["p"], ["r"], axis=1)],
}
ENDS = {  # what does not look at single pictures
    "sum by channel": [node("ReduceSum", ["p", "others"], ["y"], keepdims=0)],
    "size": [node("Size", ["p"], ["y"])],
    "sum by row": [node("ReduceSum", ["p", "rest"], ["y"], keepdims=0)],
    "sum by channel, kept": [node("ReduceSum", ["p", "others"], ["y"], keepdims=1)],
}


def a_model(nodes: list[NodeProto]) -> ModelProto:
    draw = np.random.default_rng(0)
    _, channels, height, width = SIZES
    arrays = {name: draw.uniform(0.5, 2, channels).astype(np.float32) for name in NORM}
    arrays |= {name: draw.normal(size=(4, 4, n, n)).astype(np.float32) for name, n in (("one", 1), ("three", 3))}
    arrays |= {"half": np.array(0.5, np.float32), "zero": np.array(0, np.float32), "flat": np.array([channels, -1])}
    arrays |= {"column": np.array([-1, 1, 1]), "row": np.array([1, -1, 1, 1])}
    arrays |= {"others": np.array([0, 2, 3]), "rest": np.array([1, 2, 3]), "places": np.array([2, 3])}
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", channels, height, width])
    initial = [numpy_helper.from_array(value, name) for name, value in arrays.items()]
    graph = helper.make_graph(nodes, "chain", [given], [helper.make_empty_tensor_value_info("y")], initial)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def rewritten(model: ModelProto) -> ModelProto:
    g = GraphBuilder(model)
    nodes = live(channels_first(g, [NodeProto.FromString(one.SerializeToString()) for one in model.graph.node]), ["y"])
    constants = [numpy_helper.from_array(value, name) for name, value in g.constants.items()]
    graph = helper.make_graph(nodes, "chain", model.graph.input, model.graph.output, constants)
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=9)


def turns(model: ModelProto) -> int:
    return sum(one.op_type == "Transpose" and list(one.attribute[0].ints) == TURN for one in model.graph.node)


@pytest.mark.parametrize(
    "nodes",
    [[*FRONT, *chain, *BACK] for chain in (CHAINS | KEPT).values()] + [[*FRONT, *end] for end in ENDS.values()],
    ids=[*CHAINS, *KEPT, *ENDS],
)
def test_the_numbers_are_the_same(nodes: list[NodeProto]) -> None:
    model = a_model(nodes)
    x = {"x": np.random.default_rng(1).normal(size=SIZES).astype(np.float32)}
    made, wanted = (Session(one.SerializeToString()).run(x)["y"] for one in (rewritten(model), model))
    assert made.shape == wanted.shape
    np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CHAINS)
def test_pictures_are_turned_where_they_come_in_alone(name: str) -> None:
    assert turns(rewritten(a_model([*FRONT, *CHAINS[name], *BACK]))) == 1
