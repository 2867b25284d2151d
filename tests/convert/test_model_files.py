"""Model files come in whole, agree with their source, or are refused in one line."""

from __future__ import annotations

import pickle
import subprocess
import sys
import warnings

import joblib
import numpy as np
import onnx
import pytest
import skops.io
from onnx import TensorProto, helper
from sklearn import (
    cluster,
    datasets,
    ensemble,
    linear_model,
    naive_bayes,
    neighbors,
    neural_network,
    pipeline,
    preprocessing,
    tree,
)
from sklearn.calibration import CalibratedClassifierCV
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline

from edgeml import convert, graph
from edgeml.errors import EdgeMLError, NotFound, UnsupportedModel, UserError, VerificationError
from edgeml_runtime.session import Session

X, Y = datasets.load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])[Y]
WITH_MISSING = np.where(np.random.default_rng(0).random(X.shape) < 0.1, np.nan, X)


def saved(estimator, path, x=X, y=NAMES):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        joblib.dump(estimator.fit(x, y), path)
    return path


def a_graph(*nodes, opset: int = 17, domain: str = "", **changes) -> onnx.ModelProto:
    """Return y = relu(x) over (n, 2), or the nodes given."""
    nodes = nodes or (helper.make_node("Relu", ["x"], ["y"]),)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2])
    inner = helper.make_graph(nodes, "g", [x, *changes.get("inputs", [])], [y], changes.get("weights", []))
    opsets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(inner, opset_imports=opsets, ir_version=10)


TREES = [
    tree.DecisionTreeClassifier(),
    ensemble.RandomForestClassifier(10),
    ensemble.ExtraTreesClassifier(10),
    ensemble.HistGradientBoostingClassifier(max_iter=5),
]


@pytest.mark.parametrize("estimator", TREES, ids=lambda e: type(e).__name__)
def test_trees_that_learned_from_missing_values_send_them_the_same_way(estimator, tmp_path):
    model = convert.read_model(saved(estimator, tmp_path / "m.joblib", x=WITH_MISSING), trust=True)
    rows = WITH_MISSING.astype(np.float32)
    labels = Session(model.data).run({"numeric": rows})["label"]
    assert np.array_equal(np.unique(NAMES)[labels], estimator.predict(rows))


OTHERS = [
    pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
    neural_network.MLPClassifier(max_iter=20),
    neighbors.KNeighborsClassifier(),
    ensemble.GradientBoostingClassifier(n_estimators=5),
    ensemble.VotingClassifier(
        [("a", linear_model.LogisticRegression()), ("b", naive_bayes.GaussianNB())], voting="soft"
    ),
]


@pytest.mark.parametrize("estimator", OTHERS, ids=lambda e: type(e).__name__)
def test_classifiers_over_named_classes_give_indices_and_say_so(estimator, tmp_path):
    model = convert.read_model(saved(estimator, tmp_path / "m.pkl"), trust=True)
    assert Session(model.data).run({"numeric": X.astype(np.float32)})["label"].dtype == np.int64
    assert any("setosa, versicolor, virginica" in note for note in model.notes)
    assert any("agrees with scikit-learn on 256 rows" in note for note in model.notes)


def test_a_regressor_gives_one_prediction_a_row(tmp_path):
    path = saved(linear_model.LassoCV(), tmp_path / "m.joblib", y=X[:, 0])
    session = Session(convert.read_model(path, trust=True).data)
    assert [(s.name, s.shape) for s in session.outputs] == [("prediction", (-1, 1))]


def test_what_skl2onnx_converts_wrongly_is_caught(tmp_path):
    path = saved(
        CalibratedClassifierCV(linear_model.LogisticRegression(max_iter=500), method="isotonic"), tmp_path / "m.joblib"
    )
    with pytest.raises(VerificationError, match=r"nothing was written; method='sigmoid' converts"):
        convert.read_model(path, trust=True)


def test_classes_travel_with_the_model_and_a_decision_function_is_called_scores(tmp_path):
    model = convert.read_model(saved(linear_model.RidgeClassifier(), tmp_path / "m.joblib"), trust=True)
    assert model.classes == ("setosa", "versicolor", "virginica")
    assert [(s.name, s.shape) for s in graph.outputs(model)] == [("label", (-1,)), ("scores", (-1, 3))]


def test_a_transformer_gives_its_features(tmp_path):
    model = convert.read_model(saved(preprocessing.StandardScaler(), tmp_path / "m.joblib"), trust=True)
    assert [(s.name, s.shape) for s in graph.outputs(model)] == [("features", (-1, 4))]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("steps", [(), (preprocessing.StandardScaler(),)], ids=["alone", "behind a scaler"])
def test_k_means_comes_in_whatever_precision_it_was_fitted_in(steps, dtype, tmp_path):
    estimator = make_pipeline(*steps, cluster.KMeans(3, n_init=1, random_state=0))
    path = saved(estimator, tmp_path / "m.joblib", x=X.astype(dtype), y=None)
    read = convert.read_model(path, trust=True)
    found = Session(read.data).run({"numeric": X.astype(np.float32)})["cluster"]
    assert np.mean(found == estimator.predict(X.astype(dtype))) > 0.99


def test_a_pipeline_over_text_takes_one_column_of_text(tmp_path, real_data):
    lines = real_data("sentences_amazon/amazon_cells_labelled.txt").read_text().splitlines()
    texts, marks = zip(*(line.rsplit("\t", 1) for line in lines if "\t" in line), strict=True)
    for pattern, refused in (("[a-zA-Z0-9_]{2,}", False), (r"(?u)\b\w\w+\b", True)):
        model = make_pipeline(TfidfVectorizer(token_pattern=pattern), linear_model.LogisticRegression())
        model.fit([*texts, "größer naïve"], [*marks, "1"])
        joblib.dump(model, tmp_path / "m.joblib")
        if refused:
            with pytest.raises(VerificationError, match="token_pattern"):
                convert.read_model(tmp_path / "m.joblib", trust=True)
            continue
        read = convert.read_model(tmp_path / "m.joblib", trust=True)
        asked = np.array([["Great PHONE, works well"], ["größer"], [""]], dtype=object)
        found = Session(read.data).run({"categorical": asked})["probabilities"]
        assert np.allclose(found, model.predict_proba(asked[:, 0]), atol=1e-5)


def test_a_pickle_needs_the_users_word_and_runs_nothing_without_it(tmp_path):
    class Trap:
        def __reduce__(self):
            return (tmp_path.joinpath("sprung").touch, ())

    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(UserError, match="--trust"):
        convert.read_model(tmp_path / "m.pkl")
    assert not (tmp_path / "sprung").exists()


def test_skops_needs_no_trust(tmp_path):
    skops.io.dump(linear_model.LogisticRegression(max_iter=500).fit(X, Y), tmp_path / "m.skops")
    assert graph.inputs(convert.read_model(tmp_path / "m.skops"))[0].shape == (-1, 4)


REFUSED = {  # an estimator that cannot come in -> why
    "not fitted": (linear_model.LogisticRegression(), "is not fitted"),
    "no estimator": ({"a": 1}, "no estimator of scikit-learn"),
    "nothing to say of new rows": (cluster.DBSCAN().fit(X), "describes the rows it was fitted on"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_is_no_fitted_predictor_is_refused(case, tmp_path):
    estimator, says = REFUSED[case]
    joblib.dump(estimator, tmp_path / "m.joblib")
    with pytest.raises(UnsupportedModel, match=says):
        convert.read_model(tmp_path / "m.joblib", trust=True)


@pytest.mark.parametrize("suffix", sorted(set(convert.SUFFIXES) - {".keras", ".h5", ".hdf5"}))
@pytest.mark.parametrize("content", [b"", b"hello", bytes(range(256)) * 8])
def test_a_file_that_is_no_model_is_refused_in_one_line_whatever_its_name(suffix, content, tmp_path):
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(UnsupportedModel, match=rf"m\{suffix}") as caught:
        convert.read_model(path, trust=True)
    assert "\n" not in str(caught.value)


def test_a_truncated_onnx_file_is_refused_at_any_length(tmp_path):
    weight = onnx.numpy_helper.from_array(np.ones((2, 2), np.float32), "w")
    whole = a_graph(helper.make_node("MatMul", ["x", "w"], ["y"]), weights=[weight]).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole)
    assert "agrees with the file" in " ".join(convert.read_model(path).notes)
    for length in range(0, len(whole) - 1, 7):
        path.write_bytes(whole[:length])
        with pytest.raises(EdgeMLError) as caught:
            convert.read_model(path)
        assert "\n" not in str(caught.value)


def test_a_custom_operator_is_refused_by_name(tmp_path):
    onnx.save(a_graph(helper.make_node("Magic", ["x"], ["y"], domain="my.own"), domain="my.own"), tmp_path / "m.onnx")
    with pytest.raises(UnsupportedModel, match=r"my\.own:Magic, which stock onnxruntime does not carry"):
        convert.read_model(tmp_path / "m.onnx")


def test_an_opset_newer_than_boards_load_is_rewritten_with_a_note(tmp_path):
    onnx.save(a_graph(opset=22), tmp_path / "m.onnx")
    model = convert.read_model(tmp_path / "m.onnx")
    assert any("opset 22 rewritten as 21" in note for note in model.notes)
    assert Session(model.data).run({"x": np.float32([[-1, 2]])})["y"].tolist() == [[0, 2]]


def test_weights_listed_as_inputs_are_fixed_with_a_note(tmp_path):
    weight = onnx.numpy_helper.from_array(np.float32([[1, 0], [0, 2]]), "w")
    listed = helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2])
    onnx.save(
        a_graph(helper.make_node("MatMul", ["x", "w"], ["y"]), inputs=[listed], weights=[weight]), tmp_path / "m.onnx"
    )
    model = convert.read_model(tmp_path / "m.onnx")
    assert [spec.name for spec in graph.inputs(model)] == ["x"]
    assert "1 weights were listed as inputs: fixed to their values" in model.notes


def test_a_zipmap_output_becomes_a_matrix(tmp_path):
    zipped = helper.make_node("ZipMap", ["p"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    proto = a_graph(helper.make_node("Softmax", ["x"], ["p"], axis=1), zipped, domain="ai.onnx.ml")
    proto.graph.output[0].CopyFrom(
        helper.make_value_info(
            "y",
            helper.make_sequence_type_proto(
                helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
            ),
        )
    )
    onnx.save(proto, tmp_path / "m.onnx")
    model = convert.read_model(tmp_path / "m.onnx")
    assert Session(model.data).run({"x": np.zeros((3, 2), np.float32)})["y"].shape == (3, 2)
    assert "ZipMap" in " ".join(model.notes)


def test_missing_files_and_unknown_suffixes_are_named(tmp_path):
    with pytest.raises(NotFound, match="no model at"):
        convert.read_model(tmp_path / "m.onnx")
    (tmp_path / "m.pt").touch()
    with pytest.raises(UnsupportedModel, match=r"no reader for \.pt"):
        convert.read_model(tmp_path / "m.pt")
    with pytest.raises(UnsupportedModel, match=r"a folder without saved_model\.pb"):
        convert.read_model(tmp_path)


def test_the_table_of_doors_is_light_and_every_door_stands():
    code = "import sys; import edgeml.convert; print({'sklearn', 'onnx', 'tensorflow', 'skl2onnx'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
    assert set(convert.SUFFIXES.values()) < convert.ROOMS.keys()
