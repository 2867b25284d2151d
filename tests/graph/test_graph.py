"""The ONNX workbench: what it lets out loads everywhere, what it refuses it refuses in words."""

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgeml import graph
from edgeml.errors import DataError, UnsupportedModel
from edgeml_runtime.session import Session
from tests import networks


def test_equal_graphs_serialize_to_equal_bytes():
    assert networks.an_mlp().digest == networks.an_mlp().digest
    assert graph.serialize(graph.load(networks.an_mlp()), source="other").digest == networks.an_mlp().digest


def test_doubled_and_unused_opset_imports_are_dropped_and_the_ir_version_is_capped():
    proto = graph.load(networks.a_regressor())
    proto.opset_import.extend([helper.make_opsetid("", 13), helper.make_opsetid("com.example", 1)])
    proto.ir_version = 11
    tidy = graph.load(graph.serialize(proto, source="test"))
    assert [(entry.domain, entry.version) for entry in tidy.opset_import] == [("", 17)]
    assert tidy.ir_version == graph.MAX_IR


def test_bytes_that_are_no_model_are_refused_with_their_size():
    with pytest.raises(UnsupportedModel, match="5 bytes"):
        graph.load(b"hello")
    with pytest.raises(UnsupportedModel, match="0 bytes hold no ONNX graph"):
        graph.load(b"")


@given(st.binary(max_size=200))
def test_any_bytes_either_load_or_are_refused_in_words(data):
    try:
        graph.load(data)
    except UnsupportedModel as error:
        assert str(len(data)) in str(error)


def test_an_opset_newer_than_boards_load_is_refused_with_both_numbers():
    proto = graph.load(networks.a_regressor())
    proto.opset_import[0].version = 29
    with pytest.raises(UnsupportedModel, match=r"opset 29.*at most 28"):
        graph.serialize(proto, source="test")


def test_an_invalid_graph_is_refused():
    proto = graph.load(networks.a_regressor())
    proto.graph.node[0].input[0] = "nowhere"
    with pytest.raises(UnsupportedModel, match="not a valid ONNX graph"):
        graph.serialize(proto, source="test")


def test_inputs_leave_out_weights_that_are_listed_as_inputs():
    proto = graph.load(networks.a_regressor())
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [networks.FEATURES, 1]))
    model = graph.serialize(proto, source="test")
    assert [(spec.name, spec.dtype, spec.shape) for spec in graph.inputs(model)] == [("numeric", "float32", (-1, 8))]
    assert [(spec.name, spec.shape) for spec in graph.outputs(model)] == [("prediction", (-1, 1))]


def test_new_weights_change_the_answers_and_nothing_else():
    model = networks.a_regressor(slope=3)
    changed = graph.set_initializers(model, {"w": np.full((networks.FEATURES, 1), 5, np.float32)})
    row = {"numeric": np.ones((1, networks.FEATURES), np.float32)}
    assert Session(model.data).run(row)["prediction"][0, 0] == 24
    assert Session(changed.data).run(row)["prediction"][0, 0] == 40
    assert changed.source == model.digest
    assert graph.set_initializers(changed, graph.initializers(model)).digest == model.digest


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"w": np.zeros((2, 1), np.float32)}, r"float32 \[8, 1\] in the model, but float32 \[2, 1\]"),
        ({"w": np.zeros((8, 1))}, "but float64"),
        ({"weight": np.zeros(1, np.float32)}, "no weight 'weight'; it has b, w"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_both_shapes(arrays, message):
    with pytest.raises(DataError, match=message):
        graph.set_initializers(networks.a_regressor(), arrays)


def test_renaming_reaches_inputs_outputs_and_weights():
    renamed = graph.rename(networks.an_mlp(), {"numeric": "x", "probabilities": "p", "w1": "kernel"})
    assert [spec.name for spec in graph.inputs(renamed)] == ["x"]
    assert [spec.name for spec in graph.outputs(renamed)] == ["label", "p"]
    assert "kernel" in graph.initializers(renamed)
    row = networks.some_rows(5).inputs["numeric"]
    before = Session(networks.an_mlp().data).run({"numeric": row})["probabilities"]
    assert np.array_equal(Session(renamed.data).run({"x": row})["p"], before)


@pytest.mark.parametrize("names", [{"nothing": "x"}, {"numeric": "label"}, {"w1": "k", "w2": "k"}])
def test_a_rename_that_would_lose_a_tensor_is_refused(names):
    with pytest.raises(DataError):
        graph.rename(networks.an_mlp(), names)


def test_shapes_are_seen_through_ai_onnx_ml_operators():
    shapes = graph.infer(graph.load(networks.an_mlp()))
    assert shapes["scaled"].shape == (1, networks.FEATURES)
    assert shapes["h"].shape == (1, networks.HIDDEN)
    proto = graph.load(networks.an_mlp())
    graph.annotate(proto)
    typed = {value.name: value.type.tensor_type.elem_type for value in proto.graph.value_info}
    assert typed["h"] == onnx.TensorProto.FLOAT
