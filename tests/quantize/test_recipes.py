"""One contract for every recipe on every kind of graph: a variant that answers nearly alike, or a sentence."""

import functools

import numpy as np
import pytest

from edgeml import graph
from edgeml.artifacts import FP32, OnnxModel, Rows, Skipped, Variant
from edgeml.quantize import RECIPES, Options, quantize
from edgeml.quantize.float16 import float16
from edgeml_runtime.session import Session
from tests import networks
from tests.quantize import graphs

MODELS = {
    "mlp": lambda: networks.an_mlp(hidden=1024),
    "conv": networks.a_conv_net,
    "residual": graphs.a_residual_net,
    "lstm": graphs.an_lstm,
    "gru": lambda: graphs.an_lstm("GRU"),
    "attention": graphs.an_attention,
    "forest": networks.a_forest,
    "regressor": networks.a_regressor,
}
AT_MOST = {
    "fp16-weights": 0.01,
    "int4-weights": 0.2,
    "fp16": 0.01,
    "int8-entropy": 0.2,
}  # of the spread of the scores, root mean square
FAMILY = {"mixed": ("mixed-u8s8", "mixed-s8s8", "mixed-u8s8-safe", "mixed-s8s8-safe")}


@functools.cache
def made(name: str) -> tuple[OnnxModel, Rows, dict[str, Variant | Skipped]]:
    """Every recipe on one model, once."""
    model = MODELS[name]()
    rows = Rows(graph.random_rows(model, 64))
    return model, rows, {item.recipe: item for item in quantize(model, rows, list(RECIPES), Options(budget_s=20))}


def scores(model: OnnxModel, rows: Rows) -> np.ndarray:
    answers = Session(model.data).run(rows.inputs)
    return next(a for a in answers.values() if a.dtype.kind == "f").astype(np.float64)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_gives_a_variant_or_a_sentence(recipe, name):
    model, rows, items = made(name)
    found = [items[key] for key in (recipe, *FAMILY.get(recipe, ())) if key in items]
    assert found, f"{recipe} is silent"
    for item in found:
        if isinstance(item, Skipped):
            assert len(item.reason) > 20
            assert "\n" not in item.reason
            continue
        assert (item.reference, item.model.source) == (model.digest, model.digest)
        assert item.model.digest != model.digest
        if item.recipe != "numpy":  # a program, whose inputs and outputs test_plain.py looks at
            assert graph.inputs(item.model) == graph.inputs(model)
            assert [o.name for o in graph.outputs(item.model)] == [o.name for o in graph.outputs(model)]
        full, small = scores(model, rows), scores(item.model, rows)
        error = np.sqrt(np.mean((full - small) ** 2)) / np.std(full)
        assert error < AT_MOST.get(recipe, 0.1), f"{recipe} on {name}: {error:.3f} of the spread"


@pytest.mark.parametrize("name", [name for name in MODELS if name != "forest"])
def test_every_variant_can_be_costed(name):
    model, _, items = made(name)
    full = graph.cost(model)
    for item in items.values():
        if isinstance(item, Variant) and item.recipe != "numpy":  # a program, not a graph
            found = graph.cost(item.model)
            assert found.unknown.keys() <= full.unknown.keys(), item.recipe
            narrower = item.recipe in ("pruned", "distilled")
            assert (found.macs < full.macs) if narrower else (found.macs == full.macs), item.recipe


@pytest.mark.parametrize(
    ("name", "recipes"),
    [
        ("mlp", {"int8-static-u8s8", "int8-qoperator-s8s8", "int8-dynamic", "fp16", "int8-weights"}),
        ("conv", {"int8-static-u8s8", "int8-qoperator-u8s8", "int8-equalized", "fp16"}),
        ("residual", {"int8-static-s8s8", "int8-qoperator-u8s8", "int8-equalized", "int8-mse", "int8-entropy"}),
        ("lstm", {"int8-dynamic", "int8-weights"}),
        ("attention", {"int8-static-u8s8", "int8-smooth", "int8-qoperator-u8s8"}),
    ],
)
def test_where_a_recipe_is_at_home_it_makes_a_variant(name, recipes):
    items = made(name)[2]
    assert {r for r in recipes if isinstance(items[r], Variant)} == recipes, [items[r] for r in recipes]


def operators(item: Variant | Skipped) -> list[str]:
    assert isinstance(item, Variant), item
    return [node.op_type for node in graph.load(item.model).graph.node]


def test_a_dynamic_recipe_never_touches_a_convolution():
    assert "none of 1 Gemm has constant weights" in made("conv")[2]["int8-dynamic"].reason
    assert "DynamicQuantizeLSTM" in operators(made("lstm")[2]["int8-dynamic"])
    assert "no 8-bit GRU" in made("gru")[2]["int8-dynamic"].reason


def test_int4_holds_the_operator_it_promises():
    assert "MatMulNBits" in operators(quantize(big_mlp(), networks.some_rows(), ["int4"])[1])
    assert "4-bit blocks gain from 16,384 on" in made("conv")[2]["int4-weights"].reason


def big_mlp() -> OnnxModel:
    proto = graph.load(networks.an_mlp(hidden=1024))
    wide = np.random.default_rng(0).standard_normal((1024, 1024)).astype(np.float32) / 32
    proto.graph.initializer.append(networks.onnx.numpy_helper.from_array(wide, "wide"))
    product = networks.helper.make_node("MatMul", ["r", "wide"], ["r2"])
    last = next(i for i, node in enumerate(proto.graph.node) if node.output[0] == "z")
    proto.graph.node[last].input[0] = "r2"
    proto.graph.node.insert(last, product)
    return graph.serialize(proto, source="test")


def test_a_residual_net_stays_in_eight_bits_from_end_to_end():
    names = operators(made("residual")[2]["int8-qoperator-u8s8"])
    assert {"QLinearConv", "QLinearAdd", "QLinearConcat", "MaxPool", "QLinearGlobalAveragePool", "QGemm"} <= set(names)
    assert not {"Conv", "Add", "Concat", "Relu", "Clip", "Gemm"} & set(names)
    assert names.count("QuantizeLinear") == 1


def test_the_qoperator_form_is_smaller_than_qdq_and_answers_alike():
    model, rows, items = made("residual")
    pair = items["int8-static-u8s8"].model, items["int8-qoperator-u8s8"].model
    assert len(pair[1].data) < len(pair[0].data)
    full, small = (scores(m, rows) for m in pair)
    assert np.abs(full - small).max() < 0.05 * np.std(scores(model, rows))


def test_smoothing_helps_where_a_channel_outlies():
    model, rows, items = made("attention")
    errors = {r: np.mean((scores(model, rows) - scores(items[r].model, rows)) ** 2) for r in items if "int8-s" in r}
    assert errors["int8-smooth"] < errors["int8-static-u8s8"]


def test_equalizing_saves_a_depthwise_net_with_uneven_channels():
    model, rows = graphs.a_lopsided_net()
    plain, equal = quantize(model, rows, ["int8-static-u8s8", "equalized"])[1:]
    full, small, even = (scores(m, rows) for m in (model, plain.model, equal.model))
    errors = [np.sqrt(np.mean((full - other) ** 2)) / np.std(full) for other in (small, even)]
    assert errors[1] < 0.1 < 0.2 < errors[0]


def test_mixed_starts_from_the_equalized_graph_where_that_is_better():
    model, rows = graphs.a_lopsided_net()
    options = Options(task="classification", max_drop=0.05)
    variant = next(i for i in quantize(model, rows, ["mixed"], options) if i.recipe == "mixed-u8s8")
    full, small = (Session(m.data).run(rows.inputs)["label"] for m in (model, variant.model))
    assert np.mean(full != small) <= 0.05
    assert len(graph.cost(variant.model).macs_by_class) == len(graph.cost(model).macs_by_class)


def test_two_recipes_that_make_one_graph_are_kept_once():
    model, rows = graphs.a_lopsided_net()
    options = Options(task="classification", max_drop=0.05)
    made = {item.recipe: item for item in quantize(model, rows, ["equalized", "mixed"], options)}
    assert isinstance(made["int8-equalized"], Variant)
    assert made["mixed-u8s8"].reason == "makes the same graph as int8-equalized, which is kept"


def test_new_forms_have_classes_of_their_own():
    items = made("mlp")[2]
    classes = {r: set(graph.cost(items[r].model).macs_by_class) for r in ("int8-dynamic", "fp16", "int8-weights")}
    assert classes == {"int8-dynamic": {"gemv.u8s8"}, "fp16": {"gemv"}, "int8-weights": {"gemv"}}
    assert graph.cost(quantize(big_mlp(), networks.some_rows(), ["int4"])[1].model).macs_by_class["gemv.s8u4"]


@pytest.mark.parametrize(("recipe", "share"), [("int8-weights", 0.5), ("fp16-weights", 0.6)])
@pytest.mark.parametrize("name", ["mlp", "lstm", "gru"])
def test_weights_that_are_unfolded_while_loading_cost_what_fp32_costs(name, recipe, share):
    model, _, items = made(name)
    full, small = graph.cost(model), graph.cost(items[recipe].model)
    assert len(items[recipe].model.data) < share * len(model.data)
    assert small.macs_by_class == full.macs_by_class
    assert small.moved_bytes == full.moved_bytes
    assert small.nodes <= full.nodes


def test_float16_refuses_weights_it_cannot_hold():
    proto = graph.load(networks.a_regressor())
    for tensor in proto.graph.initializer:
        tensor.CopyFrom(
            networks.onnx.numpy_helper.from_array(np.full(tuple(tensor.dims), 1e6, np.float32), tensor.name)
        )
    with pytest.raises(Exception, match="'w' reaches 1e\\+06: float16 ends at 65504"):
        float16(graph.serialize(proto, source="t"), networks.some_rows(), Options())


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("conv", {"int8-static-u8s8", "int8-static-s8s8", "mixed", "int8-equalized"}),
        ("lstm", {"int8-dynamic", "int8-dynamic-tensor"}),
        ("attention", {"int8-static-u8s8", "int8-smooth", "int8-dynamic"}),
    ],
)
def test_auto_asks_for_what_suits_the_graph(name, wanted):
    model, rows, _ = made(name)
    named = {item.recipe.replace("-u8s8", "-u8s8") for item in quantize(model, rows, ["auto"])}
    assert wanted <= named | {"mixed"}
    assert "fp16" not in named


def test_auto_says_why_where_no_recipe_suits():
    types = {
        "inputs": {"x": (networks.TensorProto.FLOAT, ["n", 2])},
        "outputs": {"y": (networks.TensorProto.FLOAT, ["n", 2])},
    }
    proto = networks.a_graph([networks.helper.make_node("Relu", ["x"], ["y"])], **types)
    made = quantize(graph.serialize(proto, source="t"), Rows({"x": np.zeros((9, 2), np.float32)}), ["auto"])
    assert [(item.recipe, type(item)) for item in made] == [(FP32, Variant), ("auto", Skipped)]
    assert "nothing to quantize" in made[1].reason


def test_without_rows_the_recipes_that_need_none_do_their_work():
    made = {item.recipe: item for item in quantize(graphs.an_lstm(), Rows({}), list(RECIPES))}
    assert {r.name for r in RECIPES.values() if r.min_rows} <= {n for n, i in made.items() if isinstance(i, Skipped)}
    assert "there are none: give 32 or more" in made["int8-static-u8s8"].reason
    assert {n for n, i in made.items() if isinstance(i, Variant)} >= {"int8-dynamic", "fp16", "int8-weights"}


def test_fp32_is_always_first():
    assert all(next(iter(made(name)[2].values())).recipe == FP32 for name in MODELS)
