"""What a fleet learns by sums beside what scikit-learn learns from the pooled rows, for every family of the table.

    python benchmarks/exact_statistics.py

Ten devices hold uneven shares of scikit-learn's own data sets: one has no rows, one a single one. Each runs the
task graphs through its own session; nothing but their element-wise sum goes into the study. scikit-learn gets
the same float32 numbers, pooled, in float64. Writes results/exact_statistics.json and .md next to this file, and
puts the table into docs/learn.md.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import (
    cluster,
    datasets,
    decomposition,
    discriminant_analysis,
    impute,
    linear_model,
    naive_bayes,
    preprocessing,
)
from sklearn.feature_extraction.text import TfidfTransformer

from edgeml.artifacts import Task
from edgeml.tasks import study
from edgeml.tasks.statistics import FAMILIES, Cooccurrence
from edgeml_runtime.measure import environment
from edgeml_runtime.session import Session

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs/learn.md"
DEVICES = 10
NEWTON = {"solver": "newton-cholesky", "tol": 1e-12, "max_iter": 30}
LOADERS: dict[str, Callable[..., Any]] = {
    "diabetes": datasets.load_diabetes,
    "breast_cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
    "digits": datasets.load_digits,
}
CASES: list[tuple[Any, str]] = [
    (linear_model.Ridge(), "diabetes"),
    (linear_model.LinearRegression(), "diabetes"),
    (linear_model.Lasso(alpha=0.5, tol=1e-13, max_iter=10**6), "diabetes"),
    (linear_model.ElasticNet(alpha=0.3, tol=1e-13, max_iter=10**6), "diabetes"),
    (linear_model.LogisticRegression(**NEWTON), "breast_cancer"),
    (linear_model.LogisticRegression(**NEWTON), "wine"),
    (linear_model.PoissonRegressor(**NEWTON), "diabetes"),
    (linear_model.GammaRegressor(**NEWTON), "diabetes"),
    (preprocessing.StandardScaler(), "breast_cancer"),
    (preprocessing.MinMaxScaler(), "breast_cancer"),
    (preprocessing.MaxAbsScaler(), "breast_cancer"),
    (preprocessing.RobustScaler(), "breast_cancer"),
    (impute.SimpleImputer(strategy="median"), "breast_cancer"),
    (preprocessing.KBinsDiscretizer(encode="ordinal"), "breast_cancer"),
    (decomposition.PCA(10), "digits"),
    (naive_bayes.GaussianNB(), "digits"),
    (naive_bayes.MultinomialNB(), "digits"),
    (naive_bayes.BernoulliNB(binarize=8), "digits"),
    (discriminant_analysis.LinearDiscriminantAnalysis(), "digits"),
    (discriminant_analysis.QuadraticDiscriminantAnalysis(reg_param=0.1), "wine"),
    (cluster.KMeans(10, n_init=1, tol=0), "digits"),
    (TfidfTransformer(), "digits"),
    (Cooccurrence("ease"), "digits"),
]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    family: str
    data: str
    rows: int
    features: int
    rounds: int
    bytes_up: int  # per device, of the round that sends most
    graph_bytes: int  # of the largest graph
    difference: float  # the largest of all learned attributes, relative to the largest number of each
    stated: float


def shares(n: int) -> list[np.ndarray]:
    """Return which rows each device has: none, one, and the squares of 1, 2, 3... of the rest."""
    order = np.random.default_rng(0).permutation(n)
    sizes = np.arange(1, DEVICES - 1) ** 2
    cuts = 1 + np.cumsum(sizes)[:-1] * (n - 1) // sizes.sum()
    return [order[:0], order[:1], *np.split(order[1:], cuts - 1)]


def answers(task: Task, held: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the sums over the devices that have rows."""
    session = Session(task.data)
    wanted = {spec.name for spec in session.inputs}
    sent = [
        session.run({**task.parameters, **{name: array for name, array in rows.items() if name in wanted}})
        for rows in held
        if len(rows["x"])
    ]
    return {name: np.asarray(np.sum([one[name] for one in sent], axis=0, dtype=np.float64)) for name in task.outputs}


def pooled(estimator: Any, x: np.ndarray, y: np.ndarray) -> Any:
    """Return what scikit-learn, or for co-occurrence numpy, makes of all rows."""
    if isinstance(estimator, Cooccurrence):
        present = (x != 0).astype(np.float64)
        model = linear_model.LinearRegression(fit_intercept=False).fit(x, x)
        model.coef_ = estimator.of(present.T @ present).T
        return model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return type(estimator)(**estimator.get_params()).fit(x, y)


def difference(found: Any, expected: Any) -> float:
    """Return the largest difference, relative to the largest number expected."""
    if np.asarray(expected).dtype == object:
        return max(difference(mine, theirs) for mine, theirs in zip(found, expected, strict=True))
    mine, theirs = np.asarray(found, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    return float(np.abs(mine - theirs).max() / max(float(np.abs(theirs).max()), 1e-300))


def compare(estimator: Any, data: str) -> Row:
    """Fit `estimator` over the devices and on the pooled rows."""
    name = type(estimator).__name__
    family = FAMILIES[name]
    options = {"scaled": False} if data == "diabetes" else {}
    x, y = LOADERS[data](return_X_y=True, **options)
    x = x.astype(np.float32)
    if isinstance(estimator, cluster.KMeans):
        estimator.set_params(init=x[:: len(x) // 10][:10].astype(np.float64))
    target = y.astype(np.int64 if family.target == "classes" else np.float64)
    held = [{"x": x[index], "target": target[index]} for index in shares(len(x))]
    classes = tuple(range(int(y.max()) + 1)) if family.target == "classes" else ()
    inquiry, up, graph = study(estimator, features=x.shape[1], classes=classes), 0, 0
    while not inquiry.done:
        task = inquiry.task()
        sums = answers(task, held)
        up, graph = max(up, sum(array.nbytes for array in sums.values())), max(graph, len(task.data))
        inquiry = inquiry.take(sums)
    found, expected = inquiry.result(), pooled(estimator, x.astype(np.float64), y)
    gap = max(difference(getattr(found, key), getattr(expected, key)) for key in family.learned)
    return Row(name, data, len(x), x.shape[1], inquiry.rounds, up, graph, gap, family.precision)


def table(rows: list[Row]) -> str:
    """Return the table in Markdown."""
    lines = [
        "| estimator | data, rows x features | rounds | bytes up per device and round | graph, bytes "
        "| difference to pooled scikit-learn | stated |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.family} | {row.data}, {row.rows:,} x {row.features} | {row.rounds} | {row.bytes_up:,} "
        f"| {row.graph_bytes:,} | {row.difference:.1e} | {row.stated:g} |"
        for row in rows
    ]
    return "\n".join(lines)


def with_table(page: str, new: str) -> str:
    """Return `page` with `new` in place of the table that has the same head."""
    lines = page.splitlines()
    start = lines.index(new.splitlines()[0])
    end = next((i for i in range(start, len(lines)) if not lines[i].startswith("|")), len(lines))
    return "\n".join([*lines[:start], *new.splitlines(), *lines[end:]]) + "\n"


def main() -> None:
    rows = [compare(estimator, data) for estimator, data in CASES]
    missing = FAMILIES.keys() - {row.family for row in rows}
    assert not missing, f"no case for {missing}"
    RESULTS.mkdir(exist_ok=True)
    document = {"environment": environment(), "devices": DEVICES, "rows": [vars(row) for row in rows]}
    (RESULTS / "exact_statistics.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    text = (
        f"{DEVICES} devices with uneven shares, one with no rows and one with a single one; float64 sums of float32 "
        f"rows.\nThe difference is the largest of all learned attributes, relative to the largest number of each.\n\n"
        f"{table(rows)}\n\n"
        f"`Cooccurrence` is compared with the same formula in numpy. Bytes are those of the round that sends most, "
        f"uncompressed.\n"
    )
    (RESULTS / "exact_statistics.md").write_text(text, encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(rows)), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
