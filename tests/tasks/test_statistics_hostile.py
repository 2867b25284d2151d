"""Rows as devices really have them: missing numbers, constant columns, classes that nobody has, ties, huge values."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from sklearn.linear_model import GammaRegressor, LogisticRegression, PoissonRegressor, Ridge
from sklearn.naive_bayes import GaussianNB, MultinomialNB
from sklearn.preprocessing import KBinsDiscretizer, MinMaxScaler, RobustScaler, StandardScaler

from edgeml.errors import DataError
from edgeml.tasks import study
from edgeml.tasks.program import Columns
from edgeml.tasks.statistics import FAMILIES
from edgeml.tasks.statistics.order import Method, quantiles
from edgeml.tasks.study import Answer, Inquiry
from tests.tasks.fleet import conclude, split, sums
from tests.tasks.pooled import CASES, rows_of

TWO_ROUNDS = ["Ridge", "Lasso", "PCA", "StandardScaler", "GaussianNB"]
TWO_ROUNDS += ["LinearDiscriminantAnalysis", "QuadraticDiscriminantAnalysis"]
HOLES = [(2, 1, np.nan), (17, 0, np.inf), (90, 3, -np.inf), (17, 2, np.nan)]


def close(found: Any, pooled: Any, *names: str) -> None:
    for name in names:
        assert np.allclose(getattr(found, name), getattr(pooled, name), rtol=1e-9, atol=1e-9, equal_nan=True), name


@pytest.mark.parametrize("name", ["Ridge", "PCA", "GaussianNB", "LinearDiscriminantAnalysis", "LogisticRegression"])
def test_rows_with_missing_numbers_are_left_out_and_counted(name: str) -> None:
    x, y = rows_of("wine")
    holes = x.copy()
    for row, column, hole in HOLES:
        holes[row, column] = hole
    target = y.astype(np.float64 if name == "Ridge" else np.int64)
    target[5] = np.nan if name == "Ridge" else -1
    rows = {"x": holes} if name == "PCA" else {"x": holes, "target": target}
    left = {2, 17, 90} if name == "PCA" else {2, 5, 17, 90}
    whole = np.array([i for i in range(len(x)) if i not in left])
    estimator = CASES[name][0].estimator
    if name == "LogisticRegression":
        estimator = LogisticRegression(C=0.01, solver="newton-cholesky", tol=1e-12)
    done = conclude(study(estimator, features=13, classes=(0, 1, 2)), split(rows))
    pooled = type(estimator)(**estimator.get_params()).fit(x[whole].astype(np.float64), y[whole])
    close(done.result(), pooled, *FAMILIES[name].learned)
    assert f"{len(left)} rows were left out" in done.notes[0]


@pytest.mark.parametrize("estimator", [StandardScaler(), MinMaxScaler(), RobustScaler()], ids=str)
def test_scalers_pass_over_missing_numbers_as_scikit_learn_does(estimator: Any) -> None:
    x = rows_of("wine")[0].copy()
    x[::7, 2], x[3, 5], x[:, 8] = np.nan, np.nan, 4.5
    found = conclude(study(estimator, features=13), split({"x": x})).result()
    close(found, estimator.fit(x.astype(np.float64)), *FAMILIES[type(estimator).__name__].learned)
    assert np.allclose(found.transform(x), estimator.transform(x), equal_nan=True)


@pytest.mark.parametrize("name", ["Ridge", "LinearRegression", "PCA", "GaussianNB", "LinearDiscriminantAnalysis"])
def test_constant_and_copied_columns_give_what_they_give_scikit_learn(name: str) -> None:
    x, y = rows_of("iris")
    x = np.column_stack([x, np.full(len(x), 7), x[:, 0], 1000 * x[:, 1]]).astype(np.float32)
    estimator = {"PCA": PCA(4), "Ridge": Ridge(0.1)}.get(name, CASES[name][0].estimator)
    estimator = GaussianNB() if name == "GaussianNB" else estimator
    rows = {"x": x} if name == "PCA" else {"x": x, "target": y if FAMILIES[name].target == "classes" else y / 1.0}
    found = conclude(study(estimator, features=7, classes=(0, 1, 2)), split(rows)).result()
    pooled = type(estimator)(**estimator.get_params()).fit(x.astype(np.float64), y)
    same = {"LinearDiscriminantAnalysis": ("means_", "coef_", "intercept_")}.get(name, FAMILIES[name].learned)
    for attribute in same:
        assert np.allclose(getattr(found, attribute), getattr(pooled, attribute), rtol=1e-6, atol=1e-6), attribute


@pytest.mark.parametrize(
    "name",
    [
        "Ridge",
        "Lasso",
        "PCA",
        "StandardScaler",
        "GaussianNB",
        "LinearDiscriminantAnalysis",
        "QuadraticDiscriminantAnalysis",
    ],
)
def test_two_rounds_are_exact_for_the_devices_that_answer_the_second(name: str) -> None:
    family, case = FAMILIES[name], CASES[name][0]
    shape, fleet = case.shape(family.target), split(case.rows(family.target))
    stay = [rows for number, rows in enumerate(fleet) if number != 7]
    asked = study(case.estimator, features=shape.features, classes=shape.classes)
    found = conclude(asked.take(sums(asked.task(), fleet)), stay).result()
    whole = conclude(study(case.estimator, features=shape.features, classes=shape.classes), stay).result()
    close(found, whole, *family.learned)


def test_newton_ends_at_the_minimum_of_the_devices_that_take_part_at_the_end() -> None:
    x, y = rows_of("wine")
    fleet = split({"x": x, "target": y})
    asked = study(LogisticRegression(C=0.01), features=13, classes=(0, 1, 2))
    for _ in range(4):
        asked = asked.take(sums(asked.task(), fleet))
    found = conclude(asked, fleet[:9]).result()
    alone = conclude(study(LogisticRegression(C=0.01), features=13, classes=(0, 1, 2)), fleet[:9]).result()
    assert np.allclose(found.coef_, alone.coef_, atol=1e-8)


def test_a_class_of_constant_features_is_refused_with_a_way_out() -> None:
    x, y = rows_of("iris")
    rows = {"x": np.column_stack([x, np.ones(len(x), np.float32)]), "target": y}
    with pytest.raises(DataError, match="class 0 do not vary in all 5 features: give reg_param"):
        conclude(study(QuadraticDiscriminantAnalysis(), features=5, classes=(0, 1, 2)), split(rows))


@pytest.mark.parametrize(
    "estimator",
    [
        GaussianNB(),
        MultinomialNB(),
        LinearDiscriminantAnalysis(),
        QuadraticDiscriminantAnalysis(),
        LogisticRegression(solver="newton-cholesky", tol=1e-12),
    ],
    ids=str,
)
def test_classes_that_no_device_has_are_not_learned_and_said(estimator: Any) -> None:
    x, y = rows_of("iris")
    names = ("setosa", "lost", "versicolor", "virginica", "never")
    index = np.array([0, 2, 3])[y]
    done = conclude(study(estimator, features=4, classes=names), split({"x": x, "target": index}))
    pooled = estimator.fit(x.astype(np.float64), np.array(names)[index])
    assert done.result().classes_.tolist() == pooled.classes_.tolist()
    assert np.allclose(done.result().predict_proba(x), pooled.predict_proba(x.astype(np.float64)), atol=1e-7)
    assert done.notes == ("no device has rows of lost, never: the model knows the other classes only",)


@pytest.mark.parametrize("name", ["LinearDiscriminantAnalysis", "LogisticRegression"])
def test_one_class_on_all_devices_is_nothing_to_tell(name: str) -> None:
    rows = {"x": rows_of("iris")[0], "target": np.ones(150, np.int64)}
    with pytest.raises(DataError, match="are of 'on': there is nothing to tell"):
        conclude(study(name, features=4, classes=("off", "on")), split(rows))


@pytest.mark.parametrize("name", FAMILIES)
def test_rows_of_nothing_but_holes_say_how_many_there_were(name: str) -> None:
    family, case = FAMILIES[name], CASES[name][0]
    rows = dict(case.rows(family.target))
    rows["x"] = np.full_like(rows["x"], np.nan)
    with pytest.raises(DataError, match=r"0 usable rows on all devices|have no number on any device"):
        shape = case.shape(family.target)
        conclude(study(case.estimator, features=shape.features, classes=shape.classes), split(rows))


def test_perfectly_told_classes_without_a_penalty_end_with_advice_or_a_model() -> None:
    rows = {"x": np.arange(40, dtype=np.float32).reshape(-1, 1), "target": np.repeat([0, 1], 20)}
    done = conclude(study(LogisticRegression(C=1e9), features=1, classes=(0, 1)), split(rows))
    assert (done.result().predict(rows["x"]) == rows["target"]).all()


@pytest.mark.parametrize("estimator", [PoissonRegressor(), GammaRegressor()], ids=str)
def test_targets_that_a_distribution_cannot_have_are_left_out(estimator: Any) -> None:
    x, y = rows_of("diabetes")
    wrong = y.copy()
    wrong[[4, 8, 200]] = [-1, -7, np.inf]
    done = conclude(study(estimator, features=10), split({"x": x, "target": wrong}))
    kept = np.isfinite(wrong) & (wrong > 0)
    pooled = type(estimator)(solver="newton-cholesky", tol=1e-12, max_iter=30)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        close(done.result(), pooled.fit(x[kept].astype(np.float64), y[kept]), "coef_", "intercept_")
    assert "3 rows were left out" in done.notes[0]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
@settings(max_examples=12)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([1e-300, 1.0, 1e6, 1e300]), sign=st.booleans())
def test_sums_that_no_rows_could_have_given_end_in_an_error_or_in_numbers(
    name: str, seed: int, size: float, sign: bool
) -> None:
    shape = CASES[name][0].shape(FAMILIES[name].target)
    current = study(CASES[name][0].estimator, features=shape.features, classes=shape.classes)
    rng = np.random.default_rng(seed)
    try:
        for _ in range(4):
            if current.done:
                break
            of = current.task().outputs
            made = {key: size * rng.normal(size=dims) for key, (_dtype, dims) in of.items()}
            current = current.take(made if sign else {key: np.abs(value) for key, value in made.items()})
    except DataError:
        return
    if current.done:
        learned = [np.asarray(getattr(current.result(), key)) for key in FAMILIES[name].learned]
        assert not any(np.isnan(value).any() for value in learned if value.dtype.kind == "f")


NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=25)
@given(
    arrays(np.float32, st.tuples(st.integers(1, 60), st.just(2)), elements=NUMBERS),
    st.lists(st.floats(0, 1), min_size=1, max_size=4),
    st.sampled_from(["linear", "averaged_inverted_cdf", "inverted_cdf"]),
)
def test_quantiles_of_any_numbers_are_numpys_to_the_last_bit(x: np.ndarray, levels: list[float], how: Method) -> None:
    asked = quantiles(Columns(2), "test", levels=levels, method=how, then=lambda _n, found: Answer(found))
    found = conclude(Inquiry("statistics", asked), split({"x": x})).result()
    expected = np.quantile(x.astype(np.float64), levels, axis=0, method=how).T
    assert np.array_equal(found, expected)


def test_quantiles_of_float64_take_more_rounds_and_are_as_exact() -> None:
    x = np.random.default_rng(1).normal(size=(500, 3)) * [1e-300, 1, 1e300]
    asked = quantiles(Columns(3, dtype="float64"), "test", levels=[0, 0.3, 1], then=lambda _n, found: Answer(found))
    done = conclude(Inquiry("statistics", asked), split({"x": x}))
    assert np.array_equal(done.result(), np.quantile(x, [0, 0.3, 1], axis=0).T)
    assert done.rounds <= 10


def test_bins_of_a_constant_column_are_one() -> None:
    x = np.column_stack([np.arange(30), np.full(30, 2)]).astype(np.float32)
    done = conclude(study(KBinsDiscretizer(3, encode="ordinal"), features=2), split({"x": x}))
    assert done.result().n_bins_.tolist() == [3, 1] and done.notes == ("column 1 is constant and becomes 0",)
    assert done.result().transform(x)[:, 1].tolist() == [0] * 30
