"""What to federate in place of an estimator whose training is no sum over devices."""

from __future__ import annotations

_TREES = (
    "a tree splits on all rows at once, and trees grown on each device are another model; "
    "HistGradientBoosting grows its trees by agreed histograms, which are sums, as linear models' statistics are"
)
_ROWS = (
    "it keeps the rows themselves, and they do not leave a device; "
    "LogisticRegression, LinearDiscriminantAnalysis and GaussianNB need sums only"
)
_KERNEL = "its support vectors are rows, and they do not leave a device; LogisticRegression and Ridge need sums only"
_NETWORK = "networks are trained in rounds of averaging (edgeml.tasks.training), close to pooled training and not equal"
_SPARSE = "its path of penalties is not federated; Lasso and ElasticNet with one alpha are"
INSTEAD: tuple[tuple[str, str], ...] = (  # part of a class name -> why not, and what
    ("Forest", _TREES),
    ("ExtraTree", _TREES),
    ("DecisionTree", _TREES),
    ("AdaBoost", _TREES),
    ("Bagging", _TREES),
    ("GradientBoosting", _TREES),
    ("XGB", _TREES),
    ("LGBM", _TREES),
    ("Neighbors", _ROWS),
    ("NearestCentroid", _ROWS),
    ("LocalOutlier", _ROWS),
    ("GaussianProcess", _ROWS),
    ("SVC", _KERNEL),
    ("SVR", _KERNEL),
    ("SVM", _KERNEL),
    ("Kernel", _KERNEL),
    ("MLP", _NETWORK),
    ("SGD", _NETWORK),
    ("Perceptron", _NETWORK),
    ("Lasso", _SPARSE),
    ("ElasticNet", _SPARSE),
    ("DBSCAN", "it compares rows of different devices; KMeans from agreed centres needs sums only"),
    ("Agglomerative", "it compares rows of different devices; KMeans from agreed centres needs sums only"),
)
DEFAULT = "its training is not known as a sum over devices; a network is trained by edgeml.tasks.training"


def instead_of(name: str) -> str:
    """Return why the estimator of this class name is not federated exactly, and what is."""
    return next((advice for part, advice in INSTEAD if part.lower() in name.lower()), DEFAULT)
