"""Every estimator of scikit-learn, fitted on real data: what the contract of the converters is held against."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.base import is_classifier, is_outlier_detector, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier, VotingClassifier
from sklearn.feature_extraction.text import TfidfTransformer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GridSearchCV
from sklearn.multiclass import OneVsRestClassifier
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, PowerTransformer, StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from sklearn.utils import all_estimators, get_tags

ROWS = 240
LOGISTIC, RIDGE = LogisticRegression(max_iter=300), Ridge()
TREE = DecisionTreeClassifier(max_depth=4, random_state=0)
PAIR = [("a", LOGISTIC), ("b", TREE)]
REGRESSORS = [("a", RIDGE), ("b", DecisionTreeRegressor(max_depth=4, random_state=0))]

ARGUMENTS: dict[str, dict[str, Any]] = {
    "BaggingClassifier": {"estimator": TREE, "n_estimators": 5},
    "ClassifierChain": {"estimator": LOGISTIC},
    "ColumnTransformer": {"transformers": [("a", "passthrough", [0, 1]), ("b", LogisticRegression, [2])]},
    "DictionaryLearning": {"n_components": 4, "max_iter": 20},
    "FeatureUnion": {"transformer_list": []},
    "FixedThresholdClassifier": {"estimator": LOGISTIC, "threshold": 0.3},
    "FrozenEstimator": {"estimator": LOGISTIC},
    "GridSearchCV": {"estimator": LOGISTIC, "param_grid": {"C": [0.1, 1.0]}},
    "LocalOutlierFactor": {"novelty": True},
    "MiniBatchDictionaryLearning": {"n_components": 4, "max_iter": 20},
    "MultiOutputClassifier": {"estimator": LOGISTIC},
    "MultiOutputRegressor": {"estimator": RIDGE},
    "OneVsOneClassifier": {"estimator": LOGISTIC},
    "OneVsRestClassifier": {"estimator": LOGISTIC},
    "OutputCodeClassifier": {"estimator": LOGISTIC},
    "PLSRegression": {"n_components": 1},
    "RFE": {"estimator": LOGISTIC},
    "RFECV": {"estimator": LOGISTIC},
    "RandomizedSearchCV": {"estimator": LOGISTIC, "param_distributions": {"C": [0.1, 1.0]}, "n_iter": 2},
    "RegressorChain": {"estimator": RIDGE},
    "SelectFromModel": {"estimator": LOGISTIC},
    "SelfTrainingClassifier": {"estimator": LOGISTIC},
    "SequentialFeatureSelector": {"estimator": LOGISTIC, "n_features_to_select": 2},
    "StackingClassifier": {"estimators": PAIR},
    "StackingRegressor": {"estimators": REGRESSORS},
    "TunedThresholdClassifierCV": {"estimator": LOGISTIC},
    "VotingClassifier": {"estimators": PAIR, "voting": "soft"},
    "VotingRegressor": {"estimators": REGRESSORS},
    "RadiusNeighborsClassifier": {"radius": 50.0},
    "RadiusNeighborsRegressor": {"radius": 50.0},
    "RadiusNeighborsTransformer": {"radius": 50.0},
    "MLPClassifier": {"max_iter": 80, "hidden_layer_sizes": (16,)},
    "MLPRegressor": {"max_iter": 80, "hidden_layer_sizes": (16,)},
    "GaussianRandomProjection": {"n_components": 3},
    "SparseRandomProjection": {"n_components": 3},
    "NMF": {"n_components": 3},
    "MiniBatchNMF": {"n_components": 3},
    "SimpleImputer": {"add_indicator": True},
    "OrdinalEncoder": {"handle_unknown": "use_encoded_value", "unknown_value": -1},
    "OneHotEncoder": {"handle_unknown": "ignore"},
}
BINARY = {"FixedThresholdClassifier", "TunedThresholdClassifierCV"}
TEXTS = {"CountVectorizer", "HashingVectorizer", "TfidfVectorizer"}
MANY_TARGETS = {"MultiTaskElasticNet", "MultiTaskElasticNetCV", "MultiTaskLasso", "MultiTaskLassoCV"}
MANY_TARGETS |= {"MultiOutputRegressor", "RegressorChain", "CCA", "PLSCanonical", "PLSRegression", "PLSSVD"}
MANY_LABELS = {"MultiOutputClassifier", "ClassifierChain"}
WITH_MISSING = {"SimpleImputer", "KNNImputer", "MissingIndicator"}
OF_LABELS = {"LabelBinarizer", "LabelEncoder", "MultiLabelBinarizer"}
SENTENCES = [
    "The battery lasts all day.",
    "Not worth the price!",
    "Works great, would buy again",
    "It broke after two days...",
    "great sound and great battery",
    "the worst phone I had",
]


@dataclass(frozen=True)
class Case:
    """A fitted estimator and rows to ask it about."""

    name: str
    estimator: Any
    rows: np.ndarray  # float32 (n, f), NaN among them where the estimator takes them; str (n,) for texts


def names() -> list[str]:
    """Return the name of every estimator of this scikit-learn."""
    return [name for name, _ in all_estimators()]


def fitted(name: str) -> Case:
    """Return the estimator called `name` fitted on real rows; scikit-learn's own errors pass through."""
    kind = dict(all_estimators())[name]
    estimator = _special(name, kind) or kind(**_arguments(name, kind))
    rows, target = _data(name, estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if name in OF_LABELS:
            estimator.fit(target if name != "MultiLabelBinarizer" else [[1, 2], [3]])
        elif name == "DictVectorizer":
            estimator.fit([{"a": 1.0}, {"b": 2.0}])
        else:
            estimator.fit(rows, target) if target is not None else estimator.fit(rows)
    return Case(name, estimator, _asked(estimator, rows))


def _arguments(name: str, kind: Any) -> dict[str, Any]:
    given = dict(ARGUMENTS.get(name, {}))
    known = kind._get_param_names() if hasattr(kind, "_get_param_names") else []
    if "n_estimators" in known and "n_estimators" not in given:
        given["n_estimators"] = 20
    if "random_state" in known:
        given["random_state"] = 0
    return given


def _special(name: str, kind: Any) -> Any:
    made = {
        "Pipeline": lambda: make_pipeline(StandardScaler(), LOGISTIC),
        "FeatureUnion": lambda: kind([("a", StandardScaler()), ("b", MinMaxScaler())]),
        "ColumnTransformer": lambda: kind([("a", StandardScaler(), [0, 1]), ("b", "passthrough", [2])]),
        "SparseCoder": lambda: kind(np.eye(4)),
        "FrozenEstimator": lambda: kind(LogisticRegression(max_iter=300).fit(*datasets.load_iris(return_X_y=True))),
        "FunctionTransformer": lambda: kind(np.log1p),
        "TransformedTargetRegressor": lambda: kind(RIDGE, func=np.log1p, inverse_func=np.expm1),
    }
    return made[name]() if name in made else None


def _data(name: str, estimator: Any) -> tuple[np.ndarray, np.ndarray | None]:
    if name in TEXTS:
        return np.array(SENTENCES * 5, dtype=object), None
    rng = np.random.default_rng(0)
    if is_regressor(estimator) or name in ("TransformedTargetRegressor", "PLSSVD", "CCA"):
        rows, target = datasets.load_diabetes(return_X_y=True)
        rows = np.asarray(rows * 20, np.float32)
        target = np.asarray(target, np.float64)
        if name in ("GammaRegressor", "PoissonRegressor", "TweedieRegressor"):
            target = target / 100
        if name == "IsotonicRegression":
            rows = rows[:, 2:3]
    else:
        rows, target = datasets.load_iris(return_X_y=True)
        rows, target = np.asarray(rows, np.float32), np.asarray(target)
    index = rng.permutation(len(rows))[:ROWS]
    rows, target = rows[index], target[index]
    if name in BINARY:
        target = (target == 2).astype(np.int64)
    if name in MANY_TARGETS:
        target = np.stack([target, target**0.5], axis=1)
    if name in MANY_LABELS:
        target = np.stack([target > 0, target > 1], axis=1).astype(np.int64)
    if name == "CategoricalNB":
        rows = np.floor(rows).astype(np.float32)
    if name == "KernelCenterer":
        rows = (rows @ rows.T).astype(np.float32)
    if name in WITH_MISSING:
        rows = np.where(rng.random(rows.shape) < 0.1, np.nan, rows).astype(np.float32)
    return rows, target


def _asked(estimator: Any, rows: np.ndarray) -> np.ndarray:
    if rows.dtype == object:
        return np.array([*SENTENCES, "", "GREAT battery", "unknown words only", "größer als Zürich"], dtype=object)
    rng = np.random.default_rng(1)
    if len(rows) == rows.shape[1]:
        return rows[:32]
    near = rows + rng.normal(0, 0.1, rows.shape).astype(np.float32) * np.nanstd(rows, axis=0).astype(np.float32)
    near = np.abs(near) if not np.nanmin(rows) < 0 else near
    asked = np.concatenate([rows, near]).astype(np.float32)
    if get_tags(estimator).input_tags.allow_nan:
        asked[rng.random(asked.shape) < 0.1] = np.nan
    return asked


def _iris(classes: int = 3, *, missing: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rows, target = datasets.load_iris(return_X_y=True)
    rows = np.asarray(rows, np.float32)[target >= 3 - classes]
    if missing:
        rows[np.random.default_rng(2).random(rows.shape) < 0.1] = np.nan
    return rows, target[target >= 3 - classes]


def _categories() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    rows = np.column_stack([rng.integers(0, 12, 400), rng.normal(size=400)]).astype(np.float32)
    return rows, ((rows[:, 0] % 3 == 1) ^ (rows[:, 1] > 0.5)).astype(np.int64)


def _counts() -> tuple[np.ndarray, np.ndarray]:
    rows = np.random.default_rng(4).poisson(1.0, (60, 6)).astype(np.float32)
    return rows, np.zeros(60)


def _named() -> tuple[np.ndarray, np.ndarray]:
    rows, target = _iris()
    return rows, np.array(["setosa", "versicolor", "virginica"], dtype=object)[target]


Data = Callable[[], tuple[np.ndarray, np.ndarray]]
VARIANTS: dict[str, tuple[Any, Data]] = {  # what went wrong without an exception, and what people build of parts
    "KNeighborsClassifier, distance weights": (KNeighborsClassifier(weights="distance"), _iris),
    "KNeighborsRegressor, distance weights": (KNeighborsRegressor(weights="distance"), _iris),
    "LinearDiscriminantAnalysis, two classes": (LinearDiscriminantAnalysis(), lambda: _iris(2)),
    "SVC, two classes, no probabilities": (SVC(), lambda: _iris(2)),
    "CalibratedClassifierCV, isotonic": (CalibratedClassifierCV(LOGISTIC, method="isotonic"), _iris),
    "CalibratedClassifierCV of LinearSVC": (CalibratedClassifierCV(LinearSVC()), _iris),
    "LinearSVC in a pipeline": (make_pipeline(StandardScaler(), LinearSVC()), _iris),
    "HistGradientBoosting, native categories": (
        HistGradientBoostingClassifier(categorical_features=[0], max_iter=20),
        _categories,
    ),
    "RandomForest that learned from NaN": (
        RandomForestClassifier(20, random_state=0),
        lambda: _iris(missing=True),
    ),
    "StandardScaler and RandomForest": (
        make_pipeline(StandardScaler(), RandomForestClassifier(20, random_state=0)),
        _iris,
    ),
    "OneVsRestClassifier on raw digits": (
        OneVsRestClassifier(LogisticRegression(max_iter=300)),
        lambda: tuple(
            np.asarray(a[:400], t)
            for a, t in zip(datasets.load_digits(return_X_y=True), (np.float32, np.int64), strict=True)
        ),
    ),
    "VotingClassifier, hard": (VotingClassifier(PAIR), _iris),
    "class names as labels": (LogisticRegression(max_iter=300), _named),
    "class names, nearest neighbours": (KNeighborsClassifier(), _named),
    "GridSearchCV of a pipeline": (
        GridSearchCV(make_pipeline(PowerTransformer(), LOGISTIC), {"logisticregression__C": [0.1, 1.0]}),
        _iris,
    ),
    "TfidfVectorizer that learned non-ASCII words": (
        TfidfVectorizer(),
        lambda: (np.array(["größer als Zürich", "kleiner als Köln", "größer"] * 4, dtype=object), np.zeros(12)),
    ),
    "TfidfVectorizer over ASCII words": (
        TfidfVectorizer(token_pattern="[a-zA-Z0-9_]{2,}"),
        lambda: (np.array(["größer als Zürich", "small and big", "big"] * 4, dtype=object), np.zeros(12)),
    ),
    "TfidfVectorizer of logarithms": (
        TfidfVectorizer(token_pattern="[a-zA-Z0-9_]{2,}", sublinear_tf=True),
        lambda: (np.array(["big big big", "small and big and slow", "slow slow"] * 4, dtype=object), np.zeros(12)),
    ),
    **{
        f"TfidfTransformer of logarithms, norm {norm}, {'with' if idf else 'without'} idf": (
            TfidfTransformer(norm=norm, use_idf=idf, sublinear_tf=True),
            _counts,
        )
        for norm, idf in (("l2", True), ("l1", False), (None, True))
    },
}


def variant(name: str) -> Case:
    """Return the entry of VARIANTS called `name`, fitted."""
    estimator, data = VARIANTS[name]
    rows, target = data()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        estimator.fit(rows, target)
    return Case(name, estimator, _asked(estimator, rows))


def kind_of(estimator: Any) -> str:
    """Return what the table calls the estimator."""
    if is_classifier(estimator):
        return "classifier"
    if is_regressor(estimator):
        return "regressor"
    if is_outlier_detector(estimator):
        return "outlier detector"
    return "clusterer" if hasattr(estimator, "fit_predict") and not hasattr(estimator, "transform") else "transformer"
