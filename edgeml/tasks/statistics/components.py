"""PCA from second moments: the eigenvectors of the covariance matrix."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeml.errors import DataError, UserError
from edgeml.tasks.program import Columns
from edgeml.tasks.statistics.discriminant import descending
from edgeml.tasks.statistics.fitted import fitted
from edgeml.tasks.statistics.moments import Moments, moments
from edgeml.tasks.study import Answer, Question


def pca(estimator: Any, columns: Columns) -> Question:
    """Return the study of PCA, its signs fixed as scikit-learn fixes them: the largest weight is positive."""
    wanted = estimator.n_components
    if isinstance(wanted, str):
        raise UserError(f"PCA(n_components={wanted!r}): give a number of components, or a share of the variance")

    def finish(known: Moments) -> Answer:
        n = int(known.rows)
        most = min(n, columns.features)
        if wanted is not None and not 0 <= wanted <= most:
            raise DataError(f"PCA(n_components={wanted}) of {n} rows and {columns.features} features: at most {most}")
        values, vectors = descending(known.scatter / (n - 1))
        values, components = np.maximum(values, 0.0)[:most], vectors.T[:most]
        largest = np.argmax(np.abs(components), axis=1)
        components = components * np.sign(components[np.arange(most), largest])[:, np.newaxis]
        ratio = values / values.sum()
        kept = _kept(wanted, ratio)
        rest = values[kept:]
        made = fitted(
            estimator,
            columns,
            mean_=known.mean,
            components_=components[:kept],
            explained_variance_=values[:kept],
            explained_variance_ratio_=ratio[:kept],
            singular_values_=np.sqrt(values[:kept] * (n - 1)),
            noise_variance_=float(rest.mean()) if len(rest) else 0.0,
            n_components_=kept,
            n_samples_=n,
        )
        return Answer(made, known.notes())

    return moments(columns, "PCA", least=2, then=finish)


def _kept(wanted: float | None, ratio: np.ndarray) -> int:
    if wanted is None:
        return len(ratio)
    if 0 < wanted < 1:
        return int(np.searchsorted(np.cumsum(ratio), wanted, side="right")) + 1
    return int(wanted)
