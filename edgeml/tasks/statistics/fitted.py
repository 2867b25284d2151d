"""From sums to an estimator: a copy of the unfitted one, with the attributes that `fit` would have set."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from edgeml.errors import DataError
from edgeml.tasks.program import Columns

IMPOSSIBLE = "the sums are such as no rows could have given; look for devices that answer with made-up numbers"


def fitted(estimator: Any, columns: Columns, **attributes: Any) -> Any:
    """Return `estimator` as its own `fit` leaves it: with `attributes` ending in `_` and its number of features.

    Raises DataError when one of them is NaN: only sums that no rows could have given lead there.
    """
    for name, value in attributes.items():
        if isinstance(value, float | np.ndarray) and np.asarray(value).dtype.kind == "f" and np.isnan(value).any():
            raise DataError(f"{name} of {type(estimator).__name__} is no number: {IMPOSSIBLE}")
    made = copy.deepcopy(estimator)
    made.n_features_in_ = columns.features
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def class_array(columns: Columns, seen: np.ndarray | None = None) -> np.ndarray:
    """Return the classes of the target as scikit-learn's `classes_`, those at the indices `seen` if given."""
    classes = np.array(columns.classes)
    return classes if seen is None else classes[seen]
