"""The comparison with scikit-learn must notice labels that are wrong beside scores that are right."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_diabetes, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier

from edgeml.convert.sklearn import convert
from edgeml.convert.sklearn_parity import check
from edgeml.errors import UnsupportedModel, VerificationError


def shifted(data: bytes, classes: int) -> bytes:
    """Return the graph with every label one class further on."""
    proto = onnx.load_from_string(data)
    for node in proto.graph.node:
        node.input[:] = ["right" if name == "label" else name for name in node.input]
        node.output[:] = ["right" if name == "label" else name for name in node.output]
    numbers = {"one": np.array(1), "classes": np.array(classes)}
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())
    proto.graph.node.append(helper.make_node("Add", ["right", "one"], ["next"]))
    proto.graph.node.append(helper.make_node("Mod", ["next", "classes"], ["label"]))
    return proto.SerializeToString()


@pytest.mark.parametrize("estimator", [DecisionTreeClassifier(), RandomForestClassifier(10)], ids=lambda e: str(e)[:9])
def test_labels_shifted_by_one_are_noticed(estimator):
    rows, target = load_iris(return_X_y=True)
    rows = rows.astype(np.float32)
    model = convert(estimator.fit(rows, target), {"numeric": 4}, source="iris")
    assert check(model, estimator, rows).label_flips == 0
    with pytest.raises(VerificationError, match=r"flips 1\d\d labels"):
        check(replace(model, data=shifted(model.data, 3)), estimator, rows)


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (TransformedTargetRegressor(Ridge(), transformer=StandardScaler()), "give func and inverse_func"),
        (GridSearchCV(LogisticRegression(), {"C": [1.0]}, refit=False), "refit=True"),
    ],
    ids=["target", "search"],
)
def test_what_cannot_be_unwrapped_is_refused_with_the_way_out(estimator, reason):
    rows, target = load_diabetes(return_X_y=True)
    with pytest.raises(UnsupportedModel, match=reason):
        convert(estimator.fit(rows, target > 150), {"numeric": 10}, source="diabetes")
