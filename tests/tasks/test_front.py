"""A model's own first layers in front of a study: the head is learned exactly, and goes back behind them."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import joblib
import numpy as np
import onnx
import pytest
from onnx import helper
from sklearn.datasets import load_digits, load_wine
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from edgeml import convert, graph
from edgeml.artifacts import OnnxModel
from edgeml.errors import UnsupportedModel, UserError
from edgeml.tasks import Front, front, study, with_head
from edgeml_runtime.session import Session
from tests.tasks.fleet import conclude, split

NEWTON = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-12)
to_onnx = convert.open_room("sklearn").convert


@functools.cache
def a_network() -> OnnxModel:
    x, y = load_digits(return_X_y=True)
    network = MLPClassifier((12,), max_iter=15, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.fit(x[:600] / 16, y[:600])
    model: OnnxModel = to_onnx(network, {"numeric": 64}, source="test")
    return model


def features_of(before: Front, x: np.ndarray) -> np.ndarray:
    """Return what the front makes of `x`, from the model itself."""
    cut = onnx.load_from_string(before.model.data)
    cut.graph.output.append(helper.make_tensor_value_info(before.tensor, onnx.TensorProto.FLOAT, None))
    return Session(cut.SerializeToString()).run({"numeric": x})[before.tensor].astype(np.float64)


def test_the_head_of_a_network_is_fitted_on_its_own_features_and_goes_back() -> None:
    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype(np.float32)
    before = front(a_network())
    assert before.features == 12
    done = conclude(study(NEWTON, classes=range(10), front=before), split({"numeric": x, "target": y}))
    whole = with_head(before, to_onnx(done.result(), {"numeric": 12}, source="test"))
    features = features_of(before, x)
    pooled = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-12).fit(features, y)
    assert np.allclose(done.result().coef_, pooled.coef_, atol=1e-9)
    answers = Session(whole.data).run({"numeric": x})
    assert np.allclose(answers["probabilities"], pooled.predict_proba(features), atol=1e-5)
    assert np.mean(answers["label"] == y) > np.mean(Session(a_network().data).run({"numeric": x})["label"] == y)
    assert [spec.name for spec in graph.inputs(whole)] == ["numeric"]


def test_preprocessing_in_front_takes_the_rows_that_a_study_alone_would_leave_out() -> None:
    x, y = load_wine(return_X_y=True)
    x = x.astype(np.float32)
    x[::5, 3] = np.nan
    first = make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()).fit(x[::3], y[::3])
    before = front(to_onnx(first, {"numeric": 13}, source="test"))
    done = conclude(study(NEWTON, classes=(0, 1, 2), front=before), split({"numeric": x, "target": y}))
    pooled = LogisticRegression(C=0.1, solver="newton-cholesky", tol=1e-12).fit(features_of(before, x), y)
    assert np.allclose(done.result().coef_, pooled.coef_, atol=1e-9)
    assert done.notes == ()


def test_words_are_counted_on_the_device_for_tf_idf(tmp_path: Path) -> None:
    vocabulary = ["good", "bad", "phone", "battery", "very", "never"]
    texts = [
        "good phone",
        "bad battery bad",
        "very good",
        "never",
        "phone phone battery",
        "nothing known",
        "very bad",
    ] * 6
    counter = CountVectorizer(vocabulary=vocabulary, token_pattern="[a-zA-Z0-9_]{2,}").fit(texts)
    joblib.dump(counter, tmp_path / "m.joblib")
    model = convert.read_model(tmp_path / "m.joblib", trust=True)
    before = front(model, graph.outputs(model)[0].name)
    rows = {"categorical": np.array(texts, dtype=object).reshape(-1, 1)}
    found = conclude(study("TfidfTransformer", front=before), split(rows)).result()
    assert np.allclose(found.idf_, TfidfTransformer().fit(counter.transform(texts)).idf_, rtol=1e-12)


def a_model(*nodes: onnx.NodeProto, opset: int = 21, name: str = "numeric") -> OnnxModel:
    x = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 3])
    weights = [onnx.numpy_helper.from_array(np.ones((3, 2), np.float32), "w")]
    made = helper.make_graph(nodes, "g", [x], [helper.make_tensor_value_info("out", 1, None)], weights)
    imports = [helper.make_opsetid("", opset)]
    return OnnxModel(helper.make_model(made, opset_imports=imports, ir_version=9).SerializeToString(), "test")


def test_a_head_on_the_raw_input_needs_no_layer_before_it() -> None:
    before = front(a_model(helper.make_node("MatMul", ["numeric", "w"], ["out"]), opset=15))  # is rewritten as 18
    rng = np.random.default_rng(0)
    rows = {"numeric": rng.normal(size=(80, 3)).astype(np.float32), "target": rng.normal(size=80)}
    found = conclude(study(Ridge(), front=before), split(rows)).result()
    assert np.allclose(found.coef_, Ridge().fit(rows["numeric"].astype(np.float64), rows["target"]).coef_)


def test_a_model_without_a_linear_layer_is_asked_for_a_tensor() -> None:
    model = a_model(helper.make_node("Relu", ["numeric"], ["out"]))
    with pytest.raises(UnsupportedModel, match=r"no Gemm, MatMul.* to learn anew: name the tensor"):
        front(model)
    assert front(model, "out").features == 3
    with pytest.raises(UnsupportedModel, match="size of 'nowhere' is not fixed"):
        front(model, "nowhere")


def test_what_does_not_fit_is_refused() -> None:
    before = front(a_model(helper.make_node("MatMul", ["numeric", "w"], ["out"])))
    with pytest.raises(UserError, match="5 features, and the front makes 3"):
        study("Ridge", features=5, front=before)
    with pytest.raises(UserError, match="the front gives 3 features"):
        with_head(before, a_network())
    awkward = front(a_model(helper.make_node("MatMul", ["origin.x", "w"], ["out"]), name="origin.x"))
    rows = {"origin.x": np.ones((9, 3), np.float32), "target": np.arange(9.0)}
    with pytest.raises(UserError, match=r"input 'origin\.x', and the study a parameter"):
        conclude(study("Ridge", front=awkward), split(rows, devices=3))
