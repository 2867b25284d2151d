"""Pipelines fitted on a frame of numbers and words, as people save them."""

import joblib
import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn import ensemble, linear_model, neural_network, svm, tree
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from edgeml import convert, graph
from edgeml_runtime.session import Session

NUMBERS, WORDS = ["Age", "Fare", "SibSp"], ["Sex", "Embarked"]
HEADS = {
    "logistic": linear_model.LogisticRegression(max_iter=500),
    "tree": tree.DecisionTreeClassifier(max_depth=5, random_state=0),
    "forest": ensemble.RandomForestClassifier(20, random_state=0),
    "boosting": ensemble.HistGradientBoostingClassifier(max_iter=20),
    "gradient boosting": ensemble.GradientBoostingClassifier(n_estimators=20),
    "network": neural_network.MLPClassifier((16,), max_iter=60, random_state=0),
    "support vectors": svm.LinearSVC(),
}


def the_frame(real_data) -> tuple[pd.DataFrame, np.ndarray]:
    frame = pd.read_csv(real_data("titanic") / "titanic.csv")
    target = frame["Survived"].to_numpy()
    return frame[[*NUMBERS, *WORDS, "Name"]].astype(dict.fromkeys(NUMBERS, np.float32)), target


def a_pipeline(head):
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    words = make_pipeline(
        SimpleImputer(strategy="most_frequent"), OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    )
    return make_pipeline(ColumnTransformer([("numbers", numbers, NUMBERS), ("words", words, WORDS)]), head)


@pytest.mark.parametrize("head", HEADS)
def test_a_mixed_frame_comes_in_over_two_inputs_with_its_columns_named(head, real_data, tmp_path):
    frame, target = the_frame(real_data)
    model = a_pipeline(HEADS[head]).fit(frame, target)
    joblib.dump(model, tmp_path / "m.joblib")
    read = convert.read_model(tmp_path / "m.joblib", trust=True)
    assert [(spec.name, spec.shape) for spec in graph.inputs(read)] == [("numeric", (-1, 3)), ("categorical", (-1, 2))]
    assert [feature.name for feature in read.features] == [*NUMBERS, *WORDS]
    feeds = {
        "numeric": frame[NUMBERS].to_numpy(np.float32),
        "categorical": frame[WORDS].fillna("").to_numpy(dtype=object),
    }
    found = Session(read.data).run(feeds)
    if "scores" in found:
        assert np.allclose(found["scores"][:, 0], model.decision_function(frame), atol=1e-4)
    else:
        assert np.allclose(found["probabilities"], model.predict_proba(frame), atol=1e-5)


def test_skops_holds_one_too(real_data, tmp_path):
    frame, target = the_frame(real_data)
    skops.io.dump(a_pipeline(HEADS["logistic"]).fit(frame, target), tmp_path / "m.skops")
    assert len(convert.read_model(tmp_path / "m.skops").features) == 5
