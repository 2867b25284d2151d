"""Numpy programs of real, converted models answer like their graphs, or say which operator they have no rule for."""

import dataclasses

import numpy as np
import pytest

from edgeml.artifacts import FP32, Answers, Rows, Skipped, Variant
from edgeml.convert.sklearn import convert
from edgeml.quantize import quantize
from edgeml.verify import run_answers, verify
from edgeml_runtime.session import OPERATORS, Session
from edgeml_runtime.wire.manifest import CATEGORICAL, NUMERIC, PLAIN
from tests import networks
from tests.convert.estimators import fitted

SERVED = (
    *("LogisticRegression", "Ridge", "Lasso", "LinearSVC", "SGDClassifier", "LinearDiscriminantAnalysis", "GaussianNB"),
    *("DecisionTreeClassifier", "RandomForestClassifier", "RandomForestRegressor", "ExtraTreesClassifier"),
    *("GradientBoostingClassifier", "HistGradientBoostingClassifier", "HistGradientBoostingRegressor"),
    *("MLPClassifier", "MLPRegressor", "KNeighborsClassifier", "StandardScaler", "MinMaxScaler", "Normalizer"),
    *("OrdinalEncoder", "SimpleImputer", "PCA", "PolynomialFeatures", "IsolationForest"),
)


def a_program(model):
    _, made = quantize(model, Rows({}), [PLAIN])
    return made


@pytest.mark.parametrize("name", SERVED)
def test_a_program_answers_like_the_graph_of_an_estimator(name):
    case = fitted(name)
    feed = CATEGORICAL if case.rows.ndim == 1 else NUMERIC
    rows = case.rows.reshape(len(case.rows), -1)
    model = convert(case.estimator, {feed: rows.shape[1]}, source=name)
    made = a_program(model)
    assert isinstance(made, Variant), made
    for some in (rows, rows[:1]):
        feeds = {feed: some.astype(np.float32 if feed == NUMERIC else object)}
        graph, program = Session(model.data).run(feeds), Session(made.model.data).run(feeds)
        assert graph.keys() == program.keys()
        for output, wanted in graph.items():
            got = program[output]
            assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype), output
            if wanted.dtype.kind == "f":
                np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4 * max(1, np.abs(wanted).max()))
            else:
                assert (got == wanted).all()


@pytest.mark.parametrize("model", [networks.an_mlp(), networks.a_forest(), networks.a_regressor()])
def test_the_gate_passes_a_program_as_it_passes_float_and_refuses_a_wrong_one(model):
    made = a_program(model)
    session, task = Session(model.data), "classification" if len(Session(model.data).outputs) > 1 else "regression"
    spec = session.inputs[0]
    rows = Rows({spec.name: np.random.default_rng(0).random((40, *spec.shape[1:]), dtype=np.float32)})
    source = run_answers(model, rows, task)
    assert verify(made, rows, source, metric=None, task=task).passed
    shifted = Answers(source.labels, source.scores + 0.01)
    assert not verify(made, rows, shifted, metric=None, task=task).passed
    assert not verify(dataclasses.replace(made, recipe=FP32), rows, shifted, metric=None, task=task).passed


def test_an_operator_without_a_rule_is_named_with_the_way_out():
    made = a_program(networks.a_conv_net())
    assert isinstance(made, Skipped) and made.recipe == PLAIN
    assert "no rule for the operator Conv: take a linear model, trees or a small network" in made.reason
    assert "Conv" not in OPERATORS
