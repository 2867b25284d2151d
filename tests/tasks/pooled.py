"""For every family of the table: an estimator, rows on which its training is well posed, and scikit-learn's own fit."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    ElasticNet,
    GammaRegressor,
    Lasso,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
)
from sklearn.naive_bayes import BernoulliNB, GaussianNB, MultinomialNB
from sklearn.preprocessing import KBinsDiscretizer, MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from edgeml.tasks.program import Columns
from edgeml.tasks.statistics import Cooccurrence
from tests.tasks.fleet import Rows

LOADERS = {
    "diabetes": functools.partial(load_diabetes, scaled=False),
    "breast_cancer": load_breast_cancer,
    "wine": load_wine,
    "iris": load_iris,
    "digits": load_digits,
}


@functools.cache
def rows_of(data: str) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 features and the targets of one of scikit-learn's own data sets."""
    x, y = LOADERS[data](return_X_y=True)
    return x.astype(np.float32), y


@dataclass(frozen=True)
class Case:
    """A family on real rows."""

    estimator: Any
    data: str
    columns: int = 64  # the first ones of the data set
    large: bool = False  # about an origin of a million: what a sum of squares about zero would not survive

    holes: bool = False  # every eleventh number is missing

    @property
    def features(self) -> np.ndarray:
        x = rows_of(self.data)[0][:, : self.columns]
        if self.holes:
            x = np.where(np.arange(x.size).reshape(x.shape) % 11 == 3, np.float32(np.nan), x)
        return x + np.float32(1e4) if self.large else x

    def rows(self, target: str) -> Rows:
        """Return the rows as a device holds them."""
        given = {"x": self.features}
        if target:
            given["target"] = rows_of(self.data)[1].astype(np.int64 if target == "classes" else np.float64)
        return given

    def shape(self, target: str) -> Columns:
        x, y = rows_of(self.data)
        classes = tuple(range(int(y.max()) + 1)) if target == "classes" else ()
        return Columns(min(x.shape[1], self.columns), classes=classes)

    def pooled(self, target: str) -> Any:
        """Return what scikit-learn makes of the same numbers, all in one place and in float64."""
        x, estimator = self.features.astype(np.float64), self.estimator
        if isinstance(estimator, Cooccurrence):
            present = (x != 0).astype(np.float64)
            fitted = LinearRegression(fit_intercept=False).fit(x[:50], x[:50])
            fitted.coef_, fitted.intercept_ = estimator.of(present.T @ present).T, np.zeros(x.shape[1])
            return fitted
        if isinstance(estimator, LogisticRegression | PoissonRegressor | GammaRegressor):
            options = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 30}
            estimator = type(estimator)(**{**estimator.get_params(), **options})
        return type(estimator)(**estimator.get_params()).fit(x, self.rows(target)["target"] if target else None)


def centres(data: str, k: int) -> np.ndarray:
    """Return `k` rows of `data`, spread over it."""
    x = rows_of(data)[0]
    return x[:: len(x) // k][:k].astype(np.float64)


CASES: dict[str, list[Case]] = {
    "Ridge": [
        Case(Ridge(0.5), "diabetes"),
        Case(Ridge(2.0, fit_intercept=False), "diabetes"),
        Case(Ridge(1.0), "diabetes", large=True),
    ],
    "LinearRegression": [
        Case(LinearRegression(), "diabetes"),
        Case(LinearRegression(fit_intercept=False), "diabetes"),
    ],
    "Lasso": [
        Case(Lasso(alpha=0.5, tol=1e-13, max_iter=10**6), "diabetes"),
        Case(Lasso(alpha=0.1, positive=True, fit_intercept=False, tol=1e-13, max_iter=10**6), "wine"),
    ],
    "ElasticNet": [Case(ElasticNet(alpha=0.3, l1_ratio=0.3, tol=1e-13, max_iter=10**6), "diabetes")],
    "LogisticRegression": [
        Case(LogisticRegression(C=0.1), "breast_cancer"),
        Case(LogisticRegression(class_weight="balanced"), "wine"),
        Case(LogisticRegression(fit_intercept=False), "iris"),
        Case(LogisticRegression(C=0.01), "digits", columns=16),
    ],
    "PoissonRegressor": [
        Case(PoissonRegressor(), "diabetes"),
        Case(PoissonRegressor(alpha=0.1, fit_intercept=False), "iris"),
    ],
    "GammaRegressor": [Case(GammaRegressor(), "diabetes"), Case(GammaRegressor(alpha=0.01), "diabetes")],
    "StandardScaler": [Case(StandardScaler(), "wine"), Case(StandardScaler(), "iris", large=True)],
    "MinMaxScaler": [Case(MinMaxScaler(), "wine"), Case(MinMaxScaler(feature_range=(-1, 3)), "digits", columns=20)],
    "MaxAbsScaler": [Case(MaxAbsScaler(), "wine"), Case(MaxAbsScaler(), "digits", columns=20)],
    "SimpleImputer": [
        Case(SimpleImputer(), "wine", holes=True),
        Case(SimpleImputer(strategy="median"), "wine", holes=True),
        Case(SimpleImputer(strategy="constant", fill_value=-3), "iris", holes=True),
    ],
    "RobustScaler": [
        Case(RobustScaler(), "wine"),
        Case(RobustScaler(quantile_range=(5, 90), unit_variance=True), "diabetes"),
    ],
    "KBinsDiscretizer": [
        Case(KBinsDiscretizer(4, encode="ordinal"), "wine"),
        Case(KBinsDiscretizer(3, encode="onehot-dense", quantile_method="linear"), "diabetes"),
        Case(KBinsDiscretizer(5, encode="ordinal", strategy="uniform"), "iris"),
    ],
    "PCA": [Case(PCA(3), "wine"), Case(PCA(0.9, whiten=True), "digits"), Case(PCA(), "iris")],
    "GaussianNB": [Case(GaussianNB(), "digits"), Case(GaussianNB(priors=[0.2, 0.3, 0.5]), "iris", large=True)],
    "MultinomialNB": [Case(MultinomialNB(alpha=0.5), "digits"), Case(MultinomialNB(fit_prior=False), "digits")],
    "BernoulliNB": [Case(BernoulliNB(binarize=7.5), "digits"), Case(BernoulliNB(), "digits")],
    "LinearDiscriminantAnalysis": [
        Case(LinearDiscriminantAnalysis(), "wine"),
        Case(LinearDiscriminantAnalysis(), "breast_cancer"),
        Case(LinearDiscriminantAnalysis(n_components=2), "digits"),
    ],
    "QuadraticDiscriminantAnalysis": [
        Case(QuadraticDiscriminantAnalysis(), "iris"),
        Case(QuadraticDiscriminantAnalysis(reg_param=0.1), "wine"),
    ],
    "KMeans": [
        Case(KMeans(10, init=centres("digits", 10), n_init=1, tol=0), "digits"),
        Case(KMeans(3, init=centres("wine", 3), n_init=1), "wine"),
    ],
    "TfidfTransformer": [
        Case(TfidfTransformer(), "digits"),
        Case(TfidfTransformer(smooth_idf=False, sublinear_tf=True), "iris"),
    ],
    "Cooccurrence": [Case(Cooccurrence(weights), "digits") for weights in ("count", "cosine", "ease")],
}
