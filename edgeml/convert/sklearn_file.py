"""A fitted scikit-learn estimator from a file: .skops, or a pickle that the user trusts.

    model.skops | model.joblib | model.pkl -> read -> OnnxModel over one input, `numeric` or text in `categorical`

A pickle runs code as it is read, so it needs the user's word; skops reads only types that it knows to be harmless.
The file holds no rows, so agreement is checked on seeded random ones, missing values among them where the estimator
takes them.
"""

from __future__ import annotations

import hashlib
import importlib
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags

from edgeml.artifacts import OnnxModel
from edgeml.convert import parity
from edgeml.convert.sklearn import convert, convert_frame, steps_of
from edgeml.convert.sklearn_frame import frame_of, random_frame
from edgeml.convert.sklearn_parity import check
from edgeml.convert.sklearn_says import answers_of, classes_of
from edgeml.errors import UnsupportedModel, UserError
from edgeml_runtime.wire.manifest import CATEGORICAL, NUMERIC

SKOPS = ".skops"
READER_OF_SKOPS = "edgeml.convert.skops_file"  # importing it takes as long as converting a small model
DAMAGED = (pickle.UnpicklingError, EOFError, zipfile.BadZipFile, KeyError, ValueError, IndexError, OSError, MemoryError)
ODD_TEXTS = ("", " ", "größer als Zürich", "naïve café", "東京 タワー", "a-b_c d.e,f", "never 123 seen!", "x" * 400)
MISSING_SHARE = 0.1  # of the random values, where the estimator takes NaN


def read(path: Path, *, trust: bool = False) -> OnnxModel:
    """Return the estimator in the file at `path` as a graph from `numeric` (n, n_features_in_).

    A pipeline that starts with a vectorizer of text becomes one from `categorical` (n, 1), one over a frame one from
    `numeric` and `categorical`, with the columns as its features.

    Raises UserError for a pickle without `trust`, UnsupportedModel for anything but a fitted estimator of numbers or
    of one text, and VerificationError when the graph answers otherwise.
    """
    notes: list[str] = []
    rows: Any
    estimator = _load(path, trust=trust, notes=notes)
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    if frame := frame_of(estimator):
        model = convert_frame(estimator, frame, source=source)
        rows, feeds = random_frame(frame, parity.MAX_ROWS)
    else:
        text, width = _checked(estimator, path.name)
        name = CATEGORICAL if text else NUMERIC
        model = convert(estimator, {name: width}, source=source)
        asked = _random_texts(estimator) if text else _random_rows(estimator, width)
        rows, feeds = asked, {name: asked.reshape(len(asked), -1)}
    agreed = check(model, estimator, rows, feeds=feeds)
    classes = tuple(str(one) for one in classes_of(estimator) or ())
    if classes and classes != tuple(str(index) for index in range(len(classes))):
        notes.append(f"label is an index into the classes {', '.join(classes[:20])}")
    notes = [*model.notes, *notes, f"{agreed.sentence('scikit-learn')}, random ones"]
    return OnnxModel(model.data, source, tuple(notes), features=model.features, classes=classes)


def _load(path: Path, *, trust: bool, notes: list[str]) -> Any:
    skops = path.suffix.lower() == SKOPS
    if not skops and not trust:
        raise UserError(
            f"{path.name} is a pickle, which runs code as it is read: give --trust if you made it, or save it as .skops"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator = importlib.import_module(READER_OF_SKOPS).load(path, trust=trust) if skops else joblib.load(path)
        except (ModuleNotFoundError, AttributeError) as error:
            raise UnsupportedModel(
                f"{path.name} needs code that is not here: {error}; install it, or keep to scikit-learn"
            ) from error
        except DAMAGED as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UnsupportedModel(
                f"{path.name} is no estimator that can be read, or cut short: {reason}; save it again"
            ) from error
    versions = [w for w in caught if issubclass(w.category, InconsistentVersionWarning)]
    notes += [" ".join(str(versions[0].message).split())[:160]] if versions else []
    return estimator


def _checked(estimator: Any, name: str) -> tuple[bool, int]:
    """Return whether `estimator` takes text and how many columns; raise UnsupportedModel unless it can be converted."""
    kind = type(estimator).__name__
    if not isinstance(estimator, BaseEstimator):
        raise UnsupportedModel(f"{name} holds a {kind}, which is no estimator of scikit-learn")
    first = estimator.steps[0][1] if isinstance(estimator, Pipeline) else estimator
    if isinstance(first, CountVectorizer) and hasattr(first, "vocabulary_"):
        answers_of(estimator)
        return True, 1
    if not hasattr(estimator, "n_features_in_"):
        raise UnsupportedModel(f"{name}: this {kind} is not fitted, or does not take a matrix of numbers; fit it first")
    answers_of(estimator)
    return False, int(estimator.n_features_in_)


def _random_texts(estimator: Any) -> np.ndarray:
    """Return seeded texts: words it knows, in upper case too, and texts that it cannot know."""
    vectorizer = next(step for step in steps_of(estimator) if isinstance(step, CountVectorizer))
    words, rng = sorted(vectorizer.vocabulary_), np.random.default_rng(0)
    known = [" ".join(rng.choice(words, size=8)) for _ in range(parity.MAX_ROWS)]
    return np.array([*known, *(text.upper() for text in known[:32]), *ODD_TEXTS], dtype=object)


def _random_rows(estimator: Any, width: int) -> np.ndarray:
    """Return seeded rows about where the estimator was fitted, as far as its first scaler tells."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(parity.MAX_ROWS, width))
    scalers = [step for step in steps_of(estimator) if isinstance(step, StandardScaler)]
    if (
        scalers
        and scalers[0].n_features_in_ == width
        and scalers[0].scale_ is not None
        and scalers[0].mean_ is not None
    ):
        rows = rows * scalers[0].scale_ + scalers[0].mean_
    if get_tags(estimator).input_tags.allow_nan:
        rows[rng.random(rows.shape) < MISSING_SHARE] = np.nan
    return rows.astype(np.float32)
