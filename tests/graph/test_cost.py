"""What a row costs, against numbers counted by hand."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeml import graph
from edgeml.artifacts import Rows
from edgeml.graph.operators import ELEMENTWISE, FREE, MACS
from edgeml.graph.trees import OPERATORS as TREES
from edgeml.quantize import quantize
from tests import networks


def test_convolutions_are_counted_by_class():
    found = graph.cost(networks.a_conv_net())
    assert found.macs_by_class == {"conv": 8 * 8 * 8 * 27 + 8 * 8 * 16 * 8, "depthwise": 8 * 8 * 8 * 9, "gemv": 80}
    assert found.weight_bytes == 4 * (8 * 27 + 8 * 9 + 16 * 8 + 80 + 5)
    assert found.unknown == {}


def test_many_rows_at_once_are_a_gemm_one_row_is_a_gemv():
    left = {"x": (TensorProto.FLOAT, [1, 20, 8])}
    right = {"w": np.zeros((8, 4), np.float32)}
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    proto = networks.a_graph([node], inputs=left, outputs={"y": (TensorProto.FLOAT, [1, 20, 4])}, weights=right)
    assert graph.cost(graph.serialize(proto, source="t")).macs_by_class == {"gemm": 20 * 8 * 4}
    assert graph.cost(networks.a_regressor()).macs_by_class == {"gemv": networks.FEATURES}


@pytest.mark.parametrize(("recipe", "types"), [("int8-static-u8s8", "u8s8"), ("int8-static-s8s8", "s8s8")])
def test_a_qdq_graph_is_counted_as_int8_with_its_types(recipe, types):
    images = np.random.default_rng(0).random((40, 3, 16, 16), dtype=np.float32)
    model = networks.a_conv_net()
    variant = quantize(model, Rows({"image": images}), [recipe])[1]
    found, full = graph.cost(variant.model), graph.cost(model)
    assert found.macs_by_class == {f"{name}.{types}": macs for name, macs in full.macs_by_class.items()}
    assert found.weight_bytes < 0.5 * full.weight_bytes


def test_a_forest_costs_the_mean_depth_of_its_leaves_plus_one_per_tree():
    assert graph.cost(networks.a_forest(trees=3)).tree_visits == round(3 * (5 / 3 + 1))


def test_the_newer_tree_operator_is_counted_alike():
    node = helper.make_node(
        "TreeEnsemble",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        n_targets=1,
        tree_roots=[0],
        nodes_featureids=[0, 0],
        nodes_splits=helper.make_tensor("s", TensorProto.FLOAT, (2,), [0.5, 0.2]),
        nodes_modes=helper.make_tensor("m", TensorProto.UINT8, (2,), [0, 0]),
        nodes_truenodeids=[0, 1],
        nodes_trueleafs=[1, 1],
        nodes_falsenodeids=[1, 2],
        nodes_falseleafs=[0, 1],
        leaf_targetids=[0, 0, 0],
        leaf_weights=helper.make_tensor("w", TensorProto.FLOAT, (3,), [1.0, 2.0, 3.0]),
    )
    types = {"inputs": {"x": (TensorProto.FLOAT, ["rows", 2])}, "outputs": {"y": (TensorProto.FLOAT, ["rows", 1])}}
    model = graph.serialize(networks.a_graph([node], **types, ml=5, opset=21), source="t")
    assert graph.cost(model).tree_visits == round(5 / 3 + 1)


def test_an_operator_nobody_counts_is_named():
    node = helper.make_node("Det", ["x"], ["y"])
    types = {"inputs": {"x": (TensorProto.FLOAT, [3, 3])}, "outputs": {"y": (TensorProto.FLOAT, [])}}
    assert graph.cost(graph.serialize(networks.a_graph([node], **types), source="t")).unknown == {"Det": 1}


def test_activations_alive_at_once_are_the_two_largest_neighbours():
    # 8x8x8 into the 1x1 convolution, 16x8x8 out of it
    assert graph.cost(networks.a_conv_net()).activation_bytes == 4 * (512 + 1024)


@pytest.mark.parametrize("operator", sorted(MACS))
def test_every_counted_operator_stands_in_one_table_only(operator):
    assert operator not in ELEMENTWISE | FREE
    assert operator not in TREES
