"""The table of estimators that a fleet fits exactly, and the door to it."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from edgeml.errors import UnsupportedModel, UserError
from edgeml.tasks import boosting
from edgeml.tasks.front import Front
from edgeml.tasks.program import Columns, Target
from edgeml.tasks.statistics import (
    bayes,
    clusters,
    components,
    counts,
    discriminant,
    generalized,
    imputer,
    linear,
    scalers,
)
from edgeml.tasks.statistics.instead import instead_of
from edgeml.tasks.statistics.pipelines import PIPELINE, acting, pipeline
from edgeml.tasks.study import Answer, Inquiry, Question


@dataclass(frozen=True)
class Family:
    """One estimator: `begin` writes its first question; options it neither honours nor may ignore are refused."""

    module: str  # that has the class
    begin: Callable[[Any, Columns], Question | Answer]
    learned: tuple[str, ...]  # the attributes that must equal those of scikit-learn on the pooled rows
    precision: float  # by how much they may differ, relative to the largest number of each
    rounds: str
    target: Target = ""
    honours: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()  # how a solver goes about it, not where it arrives


_LINEAR, _SCALE, _BAYES = "sklearn.linear_model", "sklearn.preprocessing", "sklearn.naive_bayes"
_SOLVER = ("copy", "copy_X", "copy_x", "max_iter", "n_jobs", "random_state", "solver", "tol", "verbose", "warm_start")
_DESCENT = (*_SOLVER, "precompute", "selection")
_FITTED_LINE = ("coef_", "intercept_")
_DISCRIMINANT = "sklearn.discriminant_analysis"
FAMILIES: Mapping[str, Family] = {
    "Ridge": Family(_LINEAR, linear.ridge, _FITTED_LINE, 1e-11, "2", "values", ("alpha", "fit_intercept"), _SOLVER),
    "LinearRegression": Family(
        _LINEAR, linear.linear_regression, _FITTED_LINE, 1e-11, "2", "values", ("fit_intercept",), _SOLVER
    ),
    "Lasso": Family(
        _LINEAR, linear.sparse, _FITTED_LINE, 1e-10, "2", "values", ("alpha", "fit_intercept", "positive"), _DESCENT
    ),
    "ElasticNet": Family(
        _LINEAR,
        linear.sparse,
        _FITTED_LINE,
        1e-10,
        "2",
        "values",
        ("alpha", "l1_ratio", "fit_intercept", "positive"),
        _DESCENT,
    ),
    "LogisticRegression": Family(
        _LINEAR,
        generalized.logistic,
        _FITTED_LINE,
        1e-11,
        "6 to 12",
        "classes",
        ("C", "fit_intercept", "class_weight"),
        _SOLVER,
    ),
    "PoissonRegressor": Family(
        _LINEAR, generalized.poisson, _FITTED_LINE, 1e-11, "6 to 9", "counts", ("alpha", "fit_intercept"), _SOLVER
    ),
    "GammaRegressor": Family(
        _LINEAR, generalized.gamma, _FITTED_LINE, 1e-11, "6 to 9", "positive", ("alpha", "fit_intercept"), _SOLVER
    ),
    "StandardScaler": Family(
        _SCALE,
        scalers.standard_scaler,
        ("mean_", "var_", "scale_"),
        1e-13,
        "2",
        honours=("with_mean", "with_std"),
        ignores=_SOLVER,
    ),
    "MaxAbsScaler": Family(
        _SCALE,
        scalers.max_abs_scaler,
        ("max_abs_", "scale_"),
        0.0,
        "4 to 5 (float32)",
        honours=("clip",),
        ignores=_SOLVER,
    ),
    "SimpleImputer": Family(
        "sklearn.impute",
        imputer.simple_imputer,
        ("statistics_",),
        1e-13,
        "1 (mean), 4 to 5 (median), 0 (constant)",
        honours=("strategy", "fill_value", "keep_empty_features"),
        ignores=_SOLVER,
    ),
    "MinMaxScaler": Family(
        _SCALE,
        scalers.min_max_scaler,
        ("data_min_", "data_max_", "data_range_", "scale_", "min_"),
        0.0,
        "4 to 5 (float32)",
        honours=("feature_range", "clip"),
        ignores=_SOLVER,
    ),
    "RobustScaler": Family(
        _SCALE,
        scalers.robust_scaler,
        ("center_", "scale_"),
        0.0,
        "4 to 5 (float32)",
        honours=("quantile_range", "unit_variance", "with_centering", "with_scaling"),
        ignores=_SOLVER,
    ),
    "KBinsDiscretizer": Family(
        _SCALE,
        scalers.k_bins,
        ("bin_edges_", "n_bins_"),
        0.0,
        "4 to 5 (float32)",
        honours=("n_bins", "encode", "strategy", "quantile_method", "dtype"),
        ignores=("subsample", "random_state"),
    ),
    "PCA": Family(
        "sklearn.decomposition",
        components.pca,
        ("mean_", "components_", "explained_variance_", "explained_variance_ratio_", "singular_values_"),
        1e-11,
        "2",
        honours=("n_components", "whiten"),
        ignores=(*_SOLVER, "svd_solver", "iterated_power", "n_oversamples", "power_iteration_normalizer"),
    ),
    "GaussianNB": Family(
        _BAYES,
        bayes.gaussian_nb,
        ("theta_", "var_", "class_prior_"),
        1e-13,
        "2",
        "classes",
        ("priors", "var_smoothing"),
    ),
    "MultinomialNB": Family(
        _BAYES,
        bayes.multinomial_nb,
        ("feature_count_", "feature_log_prob_", "class_log_prior_"),
        1e-13,
        "1",
        "classes",
        ("alpha", "force_alpha", "fit_prior", "class_prior"),
    ),
    "BernoulliNB": Family(
        _BAYES,
        bayes.bernoulli_nb,
        ("feature_count_", "feature_log_prob_", "class_log_prior_"),
        1e-13,
        "1",
        "classes",
        ("alpha", "binarize", "force_alpha", "fit_prior", "class_prior"),
    ),
    "LinearDiscriminantAnalysis": Family(
        _DISCRIMINANT,
        discriminant.lda,
        ("means_", "priors_", "coef_", "intercept_", "explained_variance_ratio_"),
        1e-11,
        "2",
        "classes",
        ("priors", "n_components", "tol"),
    ),
    "QuadraticDiscriminantAnalysis": Family(
        _DISCRIMINANT,
        discriminant.qda,
        ("means_", "priors_", "scalings_"),
        1e-11,
        "2",
        "classes",
        ("priors", "reg_param", "store_covariance", "tol"),
    ),
    "KMeans": Family(
        "sklearn.cluster",
        clusters.k_means,
        ("cluster_centers_", "inertia_"),
        1e-13,
        "as many as scikit-learn's iterations, and 1",
        honours=("init", "max_iter", "n_clusters", "tol"),
        ignores=("algorithm", "copy_x", "n_init", "random_state", "verbose"),
    ),
    "TfidfTransformer": Family(
        "sklearn.feature_extraction.text",
        counts.tfidf,
        ("idf_",),
        1e-15,
        "1",
        honours=("norm", "smooth_idf", "sublinear_tf", "use_idf"),
    ),
    "Cooccurrence": Family(counts.__name__, counts.cooccurrence, ("coef_",), 0.0, "1"),
}


def study(
    what: Any,
    *,
    features: int = 0,
    classes: Sequence[object] = (),
    front: Front | None = None,
    name: str = "x",
    dtype: Literal["float32", "float64"] = "float32",
) -> Inquiry:
    """Return the study that fits `what`, an unfitted scikit-learn estimator or the name of one, over a fleet.

    Devices hold rows of (rows, `features`) under `name`, the model's own input, and for what learns from targets
    `target`: int64 (rows,) indices into `classes`, or float64 (rows,) values. With a `front`, rows enter as its model
    takes them, and `what` is fitted on the features that it makes. The result is a fitted estimator.

    A Pipeline of them is fitted step by step. Raises UnsupportedModel when a training is no sum over devices,
    UserError when an option of it is not federated.
    """
    width = front.features if front else features
    if front and features not in (0, width):
        raise UserError(f"{features} features, and the front makes {width}: leave features out")
    return begin(what, Columns(width, name=name, dtype=dtype, classes=tuple(classes), front=front))


def begin(estimator: Any, columns: Columns) -> Inquiry:
    """Return the study that fits `estimator` on rows like `columns`; see `study`."""
    estimator = _checked(estimator, columns)
    return Inquiry("statistics", _first(estimator, columns))


def _first(estimator: Any, columns: Columns) -> Question | Answer:
    if type(estimator).__name__ == PIPELINE:
        return pipeline(estimator, columns, begin=_first)
    if type(estimator).__name__ in boosting.KINDS:
        return boosting.question(estimator, columns)
    return FAMILIES[type(estimator).__name__].begin(estimator, columns)


def _checked(estimator: Any, columns: Columns) -> Any:
    """Return a copy of `estimator`, or the one of that name; raise UnsupportedModel or UserError for what is none."""
    name = estimator if isinstance(estimator, str) else type(estimator).__name__
    if name == PIPELINE:
        for step in acting(estimator):
            _checked(step, columns)
        return copy.deepcopy(estimator)
    if name in boosting.KINDS:
        estimator = _made(estimator, "sklearn.ensemble")
        boosting.checked(estimator, columns)
        return estimator
    if name not in FAMILIES:
        known = ", ".join((*FAMILIES, *boosting.KINDS))
        raise UnsupportedModel(f"{name} is not federated exactly: {instead_of(name)}; exact are {known}")
    family = FAMILIES[name]
    estimator = _made(estimator, family.module)
    if hasattr(estimator, "get_params"):
        _check_options(estimator, type(estimator), family)
    if family.target == "classes" and len(columns.classes) < 2:
        raise UserError(f"{name} tells classes apart: name at least two; there are {len(columns.classes)}")
    return estimator


def _made(estimator: Any, module: str) -> Any:
    """Return a copy of `estimator`, or one of that name in `module` with its defaults."""
    if isinstance(estimator, str):
        return getattr(importlib.import_module(module), estimator)()
    return copy.deepcopy(estimator)


def _check_options(estimator: Any, kind: Any, family: Family) -> None:
    try:
        estimator._validate_params()  # what scikit-learn's own fit would refuse
    except ValueError as error:
        raise UserError(f"scikit-learn refuses this {kind.__name__}: {error}") from error
    default = kind().get_params(deep=False)
    for option, value in estimator.get_params(deep=False).items():
        free = option in family.honours or option in family.ignores
        if not free and repr(value) != repr(default[option]):
            raise UserError(
                f"{kind.__name__}({option}={value!r}): this option is not federated; leave it at {default[option]!r} "
                f"(federated are {', '.join(family.honours) or 'none'})"
            )
