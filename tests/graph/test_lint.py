"""Each rule of the lint fires on a graph made for it, and none on a clean one."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeml.artifacts import OnnxModel
from edgeml.graph.lint import HUGE, RULES, lint, to_plain
from tests import networks

FLOAT = TensorProto.FLOAT
IMAGE = {"x": (FLOAT, ["rows", 2, 8, 8])}
node = helper.make_node


def body():
    """Return the smallest body of a Loop."""
    values = [helper.make_tensor_value_info(n, k, []) for n, k in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))]
    keep = helper.make_tensor_value_info("keep", TensorProto.BOOL, [])
    return helper.make_graph([node("Identity", ["c"], ["keep"])], "body", values, [keep])


def many_steps():
    """Return a loop of three operators a step."""
    given = [helper.make_tensor_value_info(*v) for v in (("i", 7, []), ("c", 9, []), ("s", FLOAT, ["rows", 2]))]
    made = [helper.make_tensor_value_info("keep", 9, []), helper.make_tensor_value_info("u", FLOAT, ["rows", 2])]
    steps = [node("Identity", ["c"], ["keep"]), node("Sin", ["s"], ["t"]), node("Cos", ["t"], ["u"])]
    return node("Loop", ["trips", "", "x"], ["y"], body=helper.make_graph(steps, "body", given, made))


def a(*nodes, inputs=IMAGE, weights=None, opset=17, ml=0, **changes):
    proto = networks.a_graph(
        nodes, inputs=inputs, outputs={"y": (FLOAT, None)}, weights=weights or {}, opset=opset, ml=ml
    )
    for value in changes.get("listed", ()):
        proto.graph.input.append(helper.make_tensor_value_info(value, FLOAT, None))
    for one in proto.graph.node:
        one.doc_string = changes.get("comment", "")
    return proto


RELU = node("Relu", ["x"], ["y"])
KERNEL = np.zeros((2, 2, 3, 3), np.float32)
CASES = {
    "loop": a(node("Loop", ["n", "c"], [], body=body()), RELU),
    "float64": a(RELU, node("Identity", ["w"], ["z"]), weights={"w": np.zeros(2)}),
    "large-constant": a(node("Add", ["x", "w"], ["y"]), weights={"w": np.zeros(1 << 19, np.float32)}),
    "unused-constant": a(RELU, weights={"w": np.zeros(2, np.float32)}),
    "copied-constant": a(
        node("Add", ["x", "v"], ["m"]),
        node("Add", ["m", "w"], ["y"]),
        weights={"v": np.ones(512, np.float32), "w": np.ones(512, np.float32)},
    ),
    "weight-as-input": a(node("Add", ["x", "w"], ["y"]), weights={"w": np.zeros(2, np.float32)}, listed=["w"]),
    "open-axis": a(RELU, inputs={"x": (FLOAT, ["rows", "time", 3])}),
    "random": a(RELU, node("RandomNormal", [], ["z"], shape=[2])),
    "training-mode": a(node("Dropout", ["x", "r", "t"], ["y"]), weights={"r": np.float32(0.5), "t": np.array(True)}),
    "unfolded-norm": a(node("BatchNormalization", ["x", "b", "b", "b", "b"], ["y"]), weights={"b": np.ones(2, "f")}),
    "transposes": a(*(node("Transpose", [n], [m], perm=[0, 2, 3, 1]) for n, m in zip("xab", "aby", strict=True))),
    "softmax-axis": a(node("Softmax", ["x"], ["y"], axis=2)),
    "computed-weights": a(node("Relu", ["k"], ["w"]), node("Conv", ["x", "w"], ["y"]), weights={"k": KERNEL}),
    "conv-transpose": a(node("ConvTranspose", ["x", "w"], ["y"]), weights={"w": KERNEL}),
    "text": a(RELU, node("StringNormalizer", ["s"], ["t"])),
    "locale": a(RELU, node("StringNormalizer", ["s"], ["t"], locale="en_US.UTF-8")),
    "recurrent": a(node("GRU", ["x", "w", "r"], ["y"], hidden_size=2), weights={"w": KERNEL, "r": KERNEL}),
    "extension": a(node("FusedGemm", ["x", "x"], ["y"], domain="com.microsoft")),
    "old-opset": a(RELU, opset=12),
    "size": a(node("Add", ["x", "w"], ["y"]), weights={"w": np.zeros(HUGE // 4 + 1, np.float32)}),
    "comments": a(RELU, comment="x" * 5000),
    "steps": a(many_steps(), inputs={"x": (FLOAT, ["rows", 2])}, weights={"trips": np.array(900)}),
    "work": a(
        node("Conv", ["x", "w"], ["y"]),
        inputs={"x": (FLOAT, ["rows", 64, 256, 256])},
        weights={"w": np.zeros((64, 64, 3, 3), np.float32)},
    ),
    "float16": a(node("Conv", ["x", "w"], ["y"]), weights={"w": KERNEL.astype(np.float16)}),
    "dynamic-convolution": a(node("ConvInteger", ["x", "w"], ["y"]), weights={"w": KERNEL.astype(np.int8)}),
    "fixed-rows": a(RELU, inputs={"x": (FLOAT, [8, 3])}),
    "index-width": a(node("Gather", ["x", "w"], ["y"]), weights={"w": np.zeros(5000, np.int64)}),
}


@pytest.mark.parametrize("rule", RULES)
def test_the_rule_fires_where_it_should(rule):
    found = [one for one in lint(OnnxModel(CASES[rule].SerializeToString(), "")) if one.rule == rule]
    assert len(found) == 1
    assert len(found[0].message) > 30 and "\n" not in found[0].line()


def test_a_clean_network_has_no_findings_but_what_its_door_did():
    model = networks.an_mlp()
    noted = OnnxModel(model.data, model.source, notes=("output 'p' was a map",))
    assert lint(model) == []
    assert [(one["rule"], one["fixed"]) for one in to_plain(lint(noted))] == [("door", True)]


def test_a_clean_convolution_has_none_either():
    assert lint(OnnxModel(a(node("Conv", ["x", "w"], ["y"]), weights={"w": KERNEL}).SerializeToString(), "")) == []


def test_what_a_runtime_refuses_is_said_by_version_and_a_warning_where_it_was_asked_for():
    data = a(RELU, opset=23).SerializeToString()
    found = [one for one in lint(OnnxModel(data, ""), ["1.22.1"]) if one.rule == "runtime"]
    assert [(one.level, one.where) for one in found] == [
        ("warning", "onnxruntime 1.22.1"),
        ("info", "onnxruntime 1.19, 1.20"),
        ("info", "onnxruntime 1.21, 1.22"),
    ]
    assert found[1].message == "opset 23, it loads at most 21"
    assert not [one for one in lint(networks.an_mlp(), ["1.19"]) if one.rule == "runtime"]


def test_an_operator_without_a_kernel_is_named_with_what_does_instead():
    product = a(node("LpNormalization", ["x"], ["y"], axis=1), opset=22)
    (found,) = [one for one in lint(OnnxModel(product.SerializeToString(), "")) if "LpNorm" in one.message]
    assert found.where == "onnxruntime 1.21, 1.22, 1.23, 1.24" and "use opset 21" in found.message


def test_a_comparison_is_told_but_is_no_repair():
    model = networks.an_mlp()
    notes = ("agrees with the file run without optimisations on 16 made-up rows: 0 apart", "3 operators were sorted")
    noted = lint(OnnxModel(model.data, model.source, notes))
    assert [one.fixed for one in noted if one.rule == "door"] == [False, True]
