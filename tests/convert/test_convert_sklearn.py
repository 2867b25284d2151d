"""Every estimator becomes a graph that answers as its pipeline does, missing values included."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml

from edgeml import convert, data, graph, train
from edgeml.artifacts import FittedModel, Rows
from edgeml.convert import parity
from edgeml.errors import VerificationError
from edgeml.project import Search, parse_project
from edgeml.train.pipelines import fit_pipeline
from edgeml_runtime.session import Session

MIXED = {  # task -> file, target; both with numbers, categories and missing values
    "classification": ("titanic/titanic.csv", "Survived"),
    "regression": ("titanic/titanic.csv", "Fare"),
}


def fitted_on(source: object, target: str | None, estimator: str) -> FittedModel:
    section = {"train": str(source), **({"target": target} if target else {})}
    dataset = data.load(parse_project(yaml.safe_dump({"name": "c", "data": section}), folder=Path("/")))
    return train.fit(dataset, Search(estimators=[estimator], trials=1, folds=2))


def with_more_missing(rows: Rows) -> Rows:
    """Return the rows with a third of the cells blanked, and some categories that were never seen."""
    rng = np.random.default_rng(0)
    inputs = {name: array.copy() for name, array in rows.inputs.items()}
    inputs["numeric"][rng.random(inputs["numeric"].shape) < 0.3] = np.nan
    if "categorical" in inputs:
        blank = rng.random(inputs["categorical"].shape)
        inputs["categorical"][blank < 0.2] = ""
        inputs["categorical"][blank > 0.9] = "never seen"
    return Rows(inputs, rows.target)


@pytest.mark.parametrize("task", sorted(MIXED))
@pytest.mark.parametrize("estimator", sorted(train.ESTIMATORS))
def test_every_estimator_agrees_with_its_graph_on_rows_it_never_saw(task, estimator, real_data):
    name, target = MIXED[task]
    fitted = fitted_on(real_data(name), target, estimator)
    model = convert.to_onnx(fitted)
    for rows in (fitted.dataset.test, with_more_missing(fitted.dataset.test)):
        agreed = parity.compare(model, rows.inputs, train.answers(fitted, rows))
        assert agreed.rows == len(rows)
    assert "agrees with scikit-learn on 256 rows" in model.notes[-1]
    assert model.source == fitted.digest


@pytest.mark.parametrize("estimator", sorted(train.ESTIMATORS))
def test_every_graph_keeps_to_the_conventions(estimator, real_data):
    fitted = fitted_on(real_data("penguins/penguins.csv"), "species", estimator)
    model = convert.to_onnx(fitted)
    assert convert.to_onnx(fitted).digest == model.digest, "equal models must be one blob, one release"
    session = Session(model.data)
    assert [(s.name, s.dtype, s.shape) for s in session.inputs] == [
        ("numeric", "float32", (-1, 4)),
        ("categorical", "string", (-1, 2)),
    ]
    assert [(s.name, s.dtype, s.shape) for s in session.outputs] == [
        ("label", "int64", (-1,)),
        ("probabilities", "float32", (-1, 3)),
    ]
    proto = onnx.load_from_string(model.data)
    domains = [opset.domain for opset in proto.opset_import]
    assert len(set(domains)) == len(domains)
    assert max(opset.version for opset in proto.opset_import) <= 21
    assert proto.ir_version <= 10
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in [*proto.graph.input, *proto.graph.output]} == {"rows"}


@pytest.mark.parametrize("source, tail", [("iris", ["Gemm", "Softmax"]), ("breast_cancer", ["Gemm", "Mul", "Softmax"])])
def test_a_network_is_gemm_and_softmax_with_named_weights(source, tail):
    fitted = fitted_on(f"sklearn:{source}", None, "mlp")
    model = convert.to_onnx(fitted)
    operators = [node.op_type for node in graph.load(model).graph.node]
    assert operators[-len(tail) - 3 :] == ["Gemm", "Relu", *tail, "ArgMax"]
    network = fitted.pipeline.sklearn.steps[-1][1]
    weights = graph.initializers(model)
    for i, (weight, bias) in enumerate(zip(network.coefs_, network.intercepts_, strict=True)):
        assert np.array_equal(weights[f"layer{i}.weight"], weight.astype(np.float32))
        assert np.array_equal(weights[f"layer{i}.bias"], bias.astype(np.float32))


def test_a_network_for_numbers_answers_in_the_units_of_its_target():
    fitted = fitted_on("sklearn:diabetes", None, "mlp")
    outputs = Session(convert.to_onnx(fitted).data).run(fitted.dataset.test.inputs)
    assert outputs["prediction"].shape == (len(fitted.dataset.test), 1)
    assert 50 < outputs["prediction"].mean() < 250


@pytest.mark.parametrize("activation", ["relu", "tanh", "logistic", "identity"])
def test_every_activation_of_a_network_converts(activation):
    dataset = fitted_on("sklearn:iris", None, "linear").dataset
    built = train.ESTIMATORS["mlp"].build("classification", {"hidden_layer_sizes": (5, 4)}, 0)
    built.set_params(activation=activation, max_iter=20)
    entry = dataclasses.replace(train.ESTIMATORS["mlp"], build=lambda *_: built)
    pipeline = fit_pipeline(entry, {}, dataset.train, task="classification", classes=3, seed=0)
    convert.to_onnx(FittedModel(pipeline, "mlp", dataset, (), "digest"))


def test_float32_rows_on_a_threshold_of_boosting_fall_on_the_same_side():
    rng = np.random.default_rng(3)
    x = np.nextafter(np.float32(1), np.float32(2)) + np.arange(2, dtype=np.float32) * np.float32(2**-23)
    rows = Rows({"numeric": rng.choice(x, (200, 1))}, None)
    rows = Rows(rows.inputs, (rows.inputs["numeric"][:, 0] > x[0]).astype(np.int64))
    dataset = dataclasses.replace(fitted_on("sklearn:breast_cancer", None, "linear").dataset, train=rows)
    entry = train.ESTIMATORS["boosting"]
    pipeline = fit_pipeline(entry, entry.first, rows, task="classification", classes=2, seed=0)
    assert np.array_equal(pipeline.answers(rows).labels, rows.target)
    convert.to_onnx(FittedModel(pipeline, "boosting", dataset, (), "digest"))


def test_a_graph_that_answers_otherwise_is_refused_with_the_numbers():
    fitted = fitted_on("sklearn:iris", None, "mlp")
    model = convert.to_onnx(fitted)
    moved = {"layer1.bias": graph.initializers(model)["layer1.bias"][::-1].copy() + np.float32([3, 0, 0])}
    rows = fitted.dataset.test
    with pytest.raises(VerificationError, match=r"on 30 rows by \d.* and flips \d+ labels: nothing was written"):
        parity.compare(graph.set_initializers(model, moved), rows.inputs, train.answers(fitted, rows))
