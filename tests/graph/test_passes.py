"""Every pass keeps every answer, keeps the names at the ends, and finds nothing to do the second time."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeml import graph
from edgeml.graph.passes import PASSES, optimize
from edgeml_runtime.session import Session
from tests import networks

MODELS = {
    "mlp": networks.an_mlp,
    "conv net": networks.a_conv_net,
    "forest": networks.a_forest,
    "regressor": networks.a_regressor,
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("one", PASSES)
def test_a_pass_keeps_answers_and_ends_and_is_done_after_one_time(one, name):
    model = MODELS[name]()
    proto = graph.load(model)
    optimize(proto, [one])
    graph.check(proto)
    changed = proto.SerializeToString()
    feeds = graph.random_rows(model, 16)
    before, after = Session(model.data).run(feeds), Session(changed).run(feeds)
    assert before.keys() == after.keys()
    for output in before:
        assert before[output].dtype == after[output].dtype
        assert np.allclose(before[output], after[output], rtol=1e-5, atol=1e-6)
    assert optimize(proto, [one]) == []
    assert proto.SerializeToString() == changed


def a_forest(seed: int, *, targets: int, depth: int, classes: bool) -> onnx.ModelProto:
    """Return trees with missing values to either side, leaves of few values so that some splits decide nothing."""
    rng = np.random.default_rng(seed)
    nodes: dict[str, list] = {name: [] for name in ("treeids", "nodeids", "featureids", "values", "modes")}
    nodes |= {"truenodeids": [], "falsenodeids": [], "missing_value_tracks_true": [], "hitrates": []}
    weights: dict[str, list] = {name: [] for name in ("treeids", "nodeids", "ids", "weights")}

    def grow(tree: int, level: int, counter: list[int]) -> int:
        number = counter[0]
        counter[0] += 1
        leaf = level == depth or rng.random() < 0.2
        place = len(nodes["nodeids"])
        row = {"treeids": tree, "nodeids": number, "featureids": int(rng.integers(3)) * (not leaf), "hitrates": 1.0}
        row |= {"values": float(rng.normal()) * (not leaf), "modes": "LEAF" if leaf else "BRANCH_LEQ"}
        row |= {"missing_value_tracks_true": int(rng.integers(2)) * (not leaf), "truenodeids": 0, "falsenodeids": 0}
        for key, value in row.items():
            nodes[key].append(value)
        if leaf:
            for target in range(targets):
                for key, value in {"treeids": tree, "nodeids": number, "ids": target}.items():
                    weights[key].append(value)
                weights["weights"].append(float(rng.integers(0, 2)))
        else:
            nodes["truenodeids"][place] = grow(tree, level + 1, counter)
            nodes["falsenodeids"][place] = grow(tree, level + 1, counter)
        return number

    for tree in range(4):
        grow(tree, 0, [0])
    prefix, f = ("class" if classes else "target"), TensorProto.FLOAT
    attributes = {f"nodes_{key}": value for key, value in nodes.items()}
    attributes |= {f"{prefix}_{key}": value for key, value in weights.items()}
    ends = [helper.make_tensor_value_info("scores", f, ["n", targets])]
    if classes:
        attributes["classlabels_int64s"] = list(range(targets))
        made = ["label", "scores"]
        ends.append(helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]))
    else:
        attributes["n_targets"] = targets
        made = ["scores"]
    kind = "TreeEnsembleClassifier" if classes else "TreeEnsembleRegressor"
    node = helper.make_node(kind, ["x"], made, domain="ai.onnx.ml", **attributes)
    body = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", f, ["n", 3])], ends)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(body, opset_imports=opsets, ir_version=8)


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 4), st.booleans())
def test_trees_answer_the_same_without_what_decides_nothing(seed, targets, depth, classes):
    targets = max(targets, 2) if classes else targets
    proto = a_forest(seed, targets=targets, depth=depth, classes=classes)
    data = proto.SerializeToString()
    optimize(proto, ["trees"])
    rows = np.random.default_rng(seed).normal(size=(64, 3)).astype(np.float32)
    rows[::5, seed % 3] = np.nan
    before, after = Session(data).run({"x": rows}), Session(proto.SerializeToString()).run({"x": rows})
    for name in before:
        assert np.array_equal(before[name], after[name])
    assert len(proto.SerializeToString()) < len(data)  # at least the hit rates, which nobody reads


def test_a_split_with_equal_leaves_becomes_a_leaf():
    proto = a_forest(3, targets=1, depth=4, classes=False)
    notes = optimize(proto, ["trees"])
    assert "nodes" in notes[0] and len(notes) == 1


def test_identity_goes_and_the_output_keeps_its_name():
    f = TensorProto.FLOAT
    nodes = [helper.make_node("Identity", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["b"])]
    nodes += [helper.make_node("Dropout", ["b"], ["c"]), helper.make_node("Identity", ["c"], ["y"])]
    ends = ([helper.make_tensor_value_info(name, f, ["n", 2])] for name in ("x", "y"))
    body = helper.make_graph(nodes, "g", *ends)
    proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    assert optimize(proto, ["dead"]) == ["removed 3 of 4 nodes that change nothing"]
    assert [(n.op_type, list(n.input), list(n.output)) for n in proto.graph.node] == [("Relu", ["x"], ["y"])]


@settings(max_examples=40)
@given(
    st.integers(0, 10_000),
    st.sampled_from(["Gemm", "Gemm transposed", "MatMul", "MatMul alone", "LinearClassifier", "LinearRegressor"]),
)
def test_a_scaler_goes_into_the_linear_layer_behind_it(seed, kind):
    rng = np.random.default_rng(seed)
    mean, scale = (rng.normal(size=5) * 3).astype(np.float32), rng.uniform(0.5, 4, 5).astype(np.float32)
    weight, bias = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    f, m = TensorProto.FLOAT, "ai.onnx.ml"
    if seed % 2:
        nodes = [helper.make_node("Scaler", ["x"], ["d"], domain=m, offset=mean.tolist(), scale=(1 / scale).tolist())]
    else:
        nodes = [helper.make_node("Sub", ["x", "mean"], ["c"]), helper.make_node("Div", ["c", "scale"], ["d"])]
    given_weight, made = weight, ["y"]
    attributes = {"coefficients": weight.T.ravel().tolist(), "intercepts": bias.tolist()}
    if kind == "MatMul alone":
        nodes.append(helper.make_node("MatMul", ["d", "w"], ["y"]))
    elif kind == "MatMul":
        nodes += [helper.make_node("MatMul", ["d", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    elif kind.startswith("Gemm"):
        given_weight = weight.T.copy() if "transposed" in kind else weight
        nodes.append(helper.make_node("Gemm", ["d", "w", "b"], ["y"], transB=int("transposed" in kind)))
    elif kind == "LinearRegressor":
        nodes.append(helper.make_node(kind, ["d"], ["y"], domain=m, targets=3, **attributes))
    else:
        nodes.append(helper.make_node(kind, ["d"], ["l", "y"], domain=m, classlabels_ints=[0, 1, 2], **attributes))
    arrays = {"mean": mean, "scale": scale, "w": given_weight, "b": bias}
    ends = (
        [helper.make_tensor_value_info(made[0], f, ["n", 3])],
        [onnx.numpy_helper.from_array(v, k) for k, v in arrays.items()],
    )
    body = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", f, ["n", 5])], *ends)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid(m, 3)]
    proto = helper.make_model(body, opset_imports=opsets, ir_version=8)
    data, rows = proto.SerializeToString(), rng.normal(size=(20, 5)).astype(np.float32) * 4
    assert len(optimize(proto, ["affine"])) == 1
    assert not {"Sub", "Div", "Scaler"} & {node.op_type for node in proto.graph.node}
    before, after = Session(data).run({"x": rows})["y"], Session(proto.SerializeToString()).run({"x": rows})["y"]
    assert np.allclose(before, after, rtol=1e-5, atol=1e-5 * np.abs(before).max())


def test_a_mean_far_from_its_deviation_and_trainable_weights_are_left_alone():
    f = TensorProto.FLOAT
    for mean, weight in ((1e4, "w"), (1.0, "layer0.weight")):
        arrays = {"mean": np.float32([mean]), weight: np.ones((1, 2), np.float32)}
        nodes = [helper.make_node("Sub", ["x", "mean"], ["c"]), helper.make_node("Gemm", ["c", weight], ["y"])]
        ends = ([helper.make_tensor_value_info(name, f, ["n", size])] for name, size in (("x", 1), ("y", 2)))
        tensors = [onnx.numpy_helper.from_array(value, name) for name, value in arrays.items()]
        body = helper.make_graph(nodes, "g", *ends, tensors)
        proto = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        assert optimize(proto, ["affine"]) == []
