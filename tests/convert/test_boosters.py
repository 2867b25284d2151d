"""LightGBM and XGBoost files against the packages that wrote them."""

import lightgbm
import numpy as np
import pytest
import xgboost
from sklearn import datasets

from edgeml import convert, graph
from edgeml.errors import EdgeMLError, UnsupportedModel
from edgeml_runtime.session import Session

X, Y = datasets.load_iris(return_X_y=True)
X = X.astype(np.float32)
TARGETS = {"binary": (Y == 2).astype(int), "multiclass": Y, "positive": X[:, 0] + 1.0}
RNG = np.random.default_rng(0)
ASKED = np.concatenate([X, X + RNG.normal(0, 0.3, X.shape)]).astype(np.float32)
ASKED[RNG.random(ASKED.shape) < 0.1] = np.nan

LIGHTGBM = {
    "binary": ("binary", {}),
    "binary, dart": ("binary", {"boosting": "dart", "sigmoid": 0.7}),
    "multiclass": ("multiclass", {"num_class": 3}),
    "regression": ("positive", {}),
    "poisson": ("positive", {"objective": "poisson"}),
    "tweedie": ("positive", {"objective": "tweedie"}),
}
XGBOOST = {
    "binary": ("binary", {"objective": "binary:logistic"}),
    "binary, dart": ("binary", {"objective": "binary:logistic", "booster": "dart", "rate_drop": 0.3}),
    "random forest": ("binary", {"objective": "binary:logistic", "num_parallel_tree": 3, "subsample": 0.7}),
    "multiclass": ("multiclass", {"objective": "multi:softprob", "num_class": 3}),
    "regression": ("positive", {}),
    "gamma": ("positive", {"objective": "reg:gamma"}),
    "poisson": ("positive", {"objective": "count:poisson"}),
}


def agrees(path, wanted):
    model = convert.read_model(path)
    found = Session(model.data).run({"numeric": ASKED})
    scores = found.get("probabilities", found.get("prediction"))
    if wanted.ndim == 1 and "probabilities" in found:
        wanted = np.stack([1 - wanted, wanted], axis=1)
    assert np.abs(scores.reshape(wanted.shape) - wanted).max() < 2e-6 * max(1.0, np.abs(wanted).max())
    if "label" in found:
        assert (found["label"] == wanted.argmax(axis=1)).all()
    assert graph.inputs(model)[0].shape == (-1, 4)
    assert any("trees; agrees with a walk through its trees on 256 rows" in note for note in model.notes)


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("case", LIGHTGBM)
def test_lightgbm_answers_the_same(case, missing, tmp_path):
    target, options = LIGHTGBM[case]
    kind = {"binary": "binary", "multiclass": "multiclass"}.get(target, "regression")
    rows = np.where(RNG.random(X.shape) < 0.1, np.nan, X) if missing else X
    given = {"objective": kind, "verbose": -1, "num_threads": 1, "min_data_in_leaf": 5, **options}
    booster = lightgbm.train(given, lightgbm.Dataset(rows, TARGETS[target]), 15)
    booster.save_model(tmp_path / "m.txt")
    agrees(tmp_path / "m.txt", np.asarray(booster.predict(ASKED)))


@pytest.mark.parametrize("suffix", ["json", "ubj"])
@pytest.mark.parametrize("case", XGBOOST)
def test_xgboost_answers_the_same(case, suffix, tmp_path):
    target, options = XGBOOST[case]
    booster = xgboost.train({"nthread": 1, **options}, xgboost.DMatrix(X, TARGETS[target]), 12)
    booster.save_model(tmp_path / f"m.{suffix}")
    agrees(tmp_path / f"m.{suffix}", np.asarray(booster.predict(xgboost.DMatrix(ASKED))))


def test_what_no_ensemble_can_say_is_refused_by_name(tmp_path):
    rows = np.column_stack([RNG.integers(0, 8, 300), RNG.normal(size=300)])
    target = (rows[:, 0] % 2 == 0).astype(int)
    data = lightgbm.Dataset(rows, target, categorical_feature=[0])
    lightgbm.train({"objective": "binary", "verbose": -1}, data, 5).save_model(tmp_path / "m.txt")
    with pytest.raises(UnsupportedModel, match="native categories: one-hot encode"):
        convert.read_model(tmp_path / "m.txt")
    xgboost.train({"booster": "gblinear"}, xgboost.DMatrix(X, Y), 2).save_model(tmp_path / "m.json")
    with pytest.raises(UnsupportedModel, match="gblinear is a linear model"):
        convert.read_model(tmp_path / "m.json")


@pytest.mark.parametrize("suffix", ["txt", "json", "ubj"])
def test_a_file_cut_short_anywhere_is_refused_in_one_line(suffix, tmp_path):
    path = tmp_path / f"m.{suffix}"
    if suffix == "txt":
        lightgbm.train({"objective": "binary", "verbose": -1}, lightgbm.Dataset(X, Y == 2), 3).save_model(path)
    else:
        xgboost.train({}, xgboost.DMatrix(X, Y), 3).save_model(path)
    whole = path.read_bytes()
    end = whole.index(b"end of trees") if suffix == "txt" else len(whole) - 1
    for length in range(0, end, max(1, end // 40)):
        path.write_bytes(whole[:length])
        with pytest.raises(EdgeMLError) as caught:
            convert.read_model(path)
        assert "\n" not in str(caught.value)
