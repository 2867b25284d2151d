"""Static int8: smaller, still right, honest about what it cannot do."""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgeml import graph
from edgeml.artifacts import FP32, Rows, Skipped, Variant
from edgeml.errors import DataError, UserError
from edgeml.quantize import MIN_CALIBRATION_ROWS, RECIPES, quantize
from edgeml_runtime.session import Session
from tests import networks

STATIC = [recipe.name for recipe in RECIPES.values() if recipe.precision == "int8"]


def operators(model) -> list[str]:
    return [node.op_type for node in graph.load(model).graph.node]


@pytest.mark.parametrize("recipe", STATIC)
def test_every_recipe_makes_a_smaller_model_that_answers_nearly_alike(recipe):
    model, rows = networks.an_mlp(hidden=1024), networks.some_rows()
    reference, variant = quantize(model, rows, [recipe])
    assert (reference.recipe, reference.model) == (FP32, model)
    assert (variant.recipe, variant.reference, variant.model.source) == (recipe, model.digest, model.digest)
    assert len(variant.model.data) < 0.7 * len(model.data)
    scores = [Session(m.data).run(rows.inputs)["probabilities"] for m in (model, variant.model)]
    assert 0 < np.abs(scores[0] - scores[1]).max() < 0.1


@pytest.mark.parametrize("recipe", STATIC)
def test_every_recipe_gives_equal_bytes_for_equal_input(recipe):
    first, second = (quantize(networks.an_mlp(), networks.some_rows(), [recipe])[1] for _ in range(2))
    assert first.model.digest == second.model.digest


@pytest.mark.parametrize("recipe", STATIC)
def test_every_recipe_keeps_to_what_old_runtimes_load(recipe):
    proto = graph.load(quantize(networks.an_mlp(), networks.some_rows(), [recipe])[1].model)
    assert sorted((entry.domain, entry.version) for entry in proto.opset_import) == [("", 17), ("ai.onnx.ml", 3)]
    assert proto.ir_version <= graph.MAX_IR


def test_int8_asks_for_every_int8_recipe_and_fp32_for_none():
    made = quantize(networks.an_mlp(), networks.some_rows(), ["fp32", "int8"])
    assert [item.recipe for item in made] == [FP32, *STATIC]
    assert [item.recipe for item in quantize(networks.an_mlp(), networks.some_rows(), ["fp32"])] == [FP32]


def test_only_products_become_int8_preprocessing_stays():
    variant = quantize(networks.an_mlp(), networks.some_rows(), ["int8"])[1]
    names = operators(variant.model)
    assert names.index("Scaler") < names.index("QuantizeLinear")
    assert {"Imputer", "Scaler", "Softmax", "ArgMax"} <= set(names)
    assert graph.cost(variant.model).macs_by_class.keys() == {"gemv.u8s8"}


def test_missing_values_in_the_calibration_rows_are_imputed_by_the_model_itself():
    rows = networks.some_rows()
    rows.inputs["numeric"][::3, 2] = np.nan
    proto = graph.load(networks.an_mlp())
    proto.graph.node[0].attribute.append(helper.make_attribute("replaced_value_float", float("nan")))
    variant = quantize(graph.serialize(proto, source="test"), rows, ["int8-static-u8s8"])[1]
    assert np.isfinite(Session(variant.model.data).run(rows.inputs)["probabilities"]).all()


def test_a_bias_row_of_shape_1_n_is_quantized_too():
    # scikit-learn's networks have it; onnxruntime's quantizer stops at it
    model = networks.an_mlp()
    proto = graph.load(model)
    for tensor in proto.graph.initializer:
        if tensor.name == "b1":
            tensor.dims.insert(0, 1)
    variant = quantize(graph.serialize(proto, source="test"), networks.some_rows(), ["int8-static-u8s8"])[1]
    assert isinstance(variant, Variant)


def test_strings_beside_the_numbers_stay_as_they_are():
    nodes = [
        helper.make_node("OneHotEncoder", ["categorical"], ["hot"], domain="ai.onnx.ml", cats_strings=["a", "b", "c"]),
        helper.make_node("Reshape", ["hot", "flat"], ["columns"]),
        helper.make_node("Concat", ["numeric", "columns"], ["all"], axis=1),
        helper.make_node("Gemm", ["all", "w"], ["prediction"]),
    ]
    draw = np.random.default_rng(0)
    weights = {"w": draw.standard_normal((11, 1)).astype(np.float32), "flat": np.array([-1, 3], np.int64)}
    inputs = {"numeric": (TensorProto.FLOAT, ["rows", 8]), "categorical": (TensorProto.STRING, ["rows", 1])}
    outputs = {"prediction": (TensorProto.FLOAT, ["rows", 1])}
    proto = networks.a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights, ml=3)
    numeric = draw.random((64, 8), dtype=np.float32)
    rows = Rows({"numeric": numeric, "categorical": draw.choice(["a", "b", ""], (64, 1)).astype(object)})
    variant = quantize(graph.serialize(proto, source="test"), rows, ["int8-static-u8s8"])[1]
    assert isinstance(variant, Variant), variant
    assert "OneHotEncoder" in operators(variant.model)


def test_a_fixed_batch_is_calibrated_row_by_row():
    variant = quantize(networks.an_mlp(batch=1), networks.some_rows(40), ["int8-static-u8s8"])[1]
    assert isinstance(variant, Variant), variant


@pytest.mark.parametrize(
    ("model", "sentence"),
    [(networks.a_forest(), "tree ensemble.*ships as fp32"), (networks.a_graph, "Relu")],
    ids=["forest", "elementwise"],
)
def test_where_there_is_nothing_to_quantize_a_sentence_says_so(model, sentence):
    if model is networks.a_graph:
        types = {"inputs": {"x": (TensorProto.FLOAT, ["n", 2])}, "outputs": {"y": (TensorProto.FLOAT, ["n", 2])}}
        model = graph.serialize(networks.a_graph([helper.make_node("Relu", ["x"], ["y"])], **types), source="t")
    made = quantize(model, networks.some_rows(0), ["int8"])
    assert isinstance(made[0], Variant)
    assert [type(item) for item in made[1:]] == [Skipped] * len(STATIC)
    assert all(item.recipe in RECIPES for item in made[1:])
    with pytest.raises(AssertionError, match=sentence):
        raise AssertionError(made[1].reason)


def test_a_model_that_is_int8_already_is_not_quantized_twice():
    once = quantize(networks.an_mlp(), networks.some_rows(), ["int8-static-u8s8"])[1].model
    again = quantize(once, networks.some_rows(), ["int8-static-u8s8"])[1]
    assert isinstance(again, Skipped)
    assert "quantized already" in again.reason


def test_an_opset_too_old_for_per_channel_is_raised():
    proto = graph.load(networks.a_regressor())
    proto.opset_import[0].version = 11
    made = quantize(graph.serialize(proto, source="test"), networks.some_rows(), ["int8"])
    assert isinstance(made[1], Variant)
    assert [entry.version for entry in graph.load(made[1].model).opset_import if not entry.domain] == [13]


def test_too_few_calibration_rows_are_refused_with_both_numbers():
    with pytest.raises(DataError, match=rf"31 calibration rows.*needs {MIN_CALIBRATION_ROWS}"):
        quantize(networks.an_mlp(), networks.some_rows(31), ["int8"])


def test_an_unknown_precision_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"'int3'.*fp32.*int8"):
        quantize(networks.an_mlp(), networks.some_rows(), ["int3"])


def test_nothing_is_left_in_the_temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    quantize(networks.an_mlp(), networks.some_rows(), ["int8"])
    assert list(tmp_path.iterdir()) == []


def test_a_graph_the_quantizer_cannot_handle_is_skipped_with_its_words():
    proto = graph.load(networks.a_regressor())
    for tensor in proto.graph.initializer:  # a double weight beside float rows: onnx takes it, onnxruntime does not
        if tensor.name == "w":
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones((networks.FEATURES, 1)), "w"))
    made = quantize(graph.serialize(proto, source="test"), networks.some_rows(), ["int8-static-u8s8"])
    assert isinstance(made[1], Skipped)
    assert "double" in made[1].reason


def test_the_page_names_every_recipe_and_the_precision_that_asks_for_it():
    page = (Path(__file__).resolve().parents[2] / "docs/quantize.md").read_text(encoding="utf-8")
    missing = [r.name for r in RECIPES.values() if f"| `{r.name}` | `{r.precision}` |" not in page]
    assert not missing, missing
