"""Where tables come from: one entry per kind of source.

"data/*.csv" | "sklearn:digits" -> read_source -> Table
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn import datasets

from edgeml.data import fingerprint
from edgeml.data.table import Table, read_table, stack
from edgeml.errors import DataError, NotFound
from edgeml.project import Read

TARGET = "target"  # what the target column of a scikit-learn data set is called here
SKLEARN_SETS: dict[str, Callable[..., object]] = {
    "breast_cancer": datasets.load_breast_cancer,
    "diabetes": datasets.load_diabetes,
    "digits": datasets.load_digits,
    "iris": datasets.load_iris,
    "wine": datasets.load_wine,
}


def read_files(source: str, folder: Path, read: Read) -> Table:
    """Return the rows of the files that `source` names, under each other."""
    return stack([read_table(path, read) for path in fingerprint.files_of(source, folder)])


def read_sklearn(source: str, folder: Path, read: Read) -> Table:
    """Return a data set that scikit-learn carries, with its target (class names, if it has any) as column `target`."""
    name = source.removeprefix(fingerprint.SKLEARN)
    if name not in SKLEARN_SETS:
        raise NotFound(
            f"{source}: no such data set; there is {', '.join(fingerprint.SKLEARN + s for s in SKLEARN_SETS)}"
        )
    bunch: dict[str, np.ndarray] = SKLEARN_SETS[name]()  # type: ignore[assignment]
    frame = pd.DataFrame(bunch["data"], columns=[str(feature) for feature in bunch["feature_names"]])
    names = bunch.get("target_names")
    values = bunch["target"] if names is None else np.array([str(names[i]) for i in bunch["target"]], dtype=object)
    frame[TARGET] = pd.Series(values, dtype=object if names is not None else np.float64)
    return Table(frame, np.arange(1, len(frame) + 1), (source,), fixed=True)


SOURCES: dict[str, Callable[[str, Path, Read], Table]] = {
    ".csv": read_files,
    ".txt": read_files,
    ".tsv": read_files,
    fingerprint.SKLEARN: read_sklearn,
}


def read_source(given: str | Sequence[str], folder: Path, read: Read) -> Table:
    """Return the table of every source in `given`; raise DataError for a kind that is not in SOURCES."""
    return stack([SOURCES[_kind(source)](source, folder, read) for source in fingerprint.sources_of(given)])


def _kind(source: str) -> str:
    suffix = Path(source.removesuffix(".gz")).suffix.lower()
    kind = fingerprint.SKLEARN if source.startswith(fingerprint.SKLEARN) else suffix
    if kind not in SOURCES:
        raise DataError(
            f"{source}: no reader for {kind or 'a name without a suffix'}; there is {', '.join(SOURCES)} (and .gz)"
        )
    return kind
