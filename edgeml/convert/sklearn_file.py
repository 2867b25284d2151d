"""A fitted scikit-learn estimator from a file: .skops, or a pickle that the user trusts.

    model.skops | model.joblib | model.pkl -> read -> OnnxModel over one input `numeric`

A pickle runs code as it is read, so it needs the user's word; skops reads only types that it knows to be harmless.
The file holds no rows, so agreement is checked on seeded random ones, missing values among them where the estimator
takes them.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import skops.io
from onnx import TensorProto, helper
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from skops.io.exceptions import UnsupportedTypeException, UntrustedTypesFoundException

from edgeml import graph
from edgeml.artifacts import Answers, OnnxModel
from edgeml.convert import parity
from edgeml.convert.dress import ROWS
from edgeml.convert.sklearn import convert, steps_of
from edgeml.errors import UnsupportedModel, UserError
from edgeml_runtime.wire.manifest import LABEL, NUMERIC, PROBABILITIES

SKOPS = ".skops"
DAMAGED = (pickle.UnpicklingError, EOFError, zipfile.BadZipFile, KeyError, ValueError, IndexError, OSError, MemoryError)
TOLERANCE = 1e-4  # on probabilities: random rows lie far from the ones that were learned from
MISSING_SHARE = 0.1  # of the random values, where the estimator takes NaN


def read(path: Path, *, trust: bool = False) -> OnnxModel:
    """Return the estimator in the file at `path` as a graph from `numeric` (n, n_features_in_).

    Raises UserError for a pickle without `trust`, UnsupportedModel for anything but a fitted classifier or regressor
    over numbers, and VerificationError when the graph answers otherwise.
    """
    notes: list[str] = []
    estimator = _load(path, trust=trust, notes=notes)
    width = _checked(estimator, path.name)
    for step in steps_of(estimator):
        if isinstance(step, VotingClassifier):
            step.flatten_transform = False  # concerns `transform` alone, and skl2onnx refuses True
    source = hashlib.sha256(path.read_bytes()).hexdigest()
    model = convert(estimator, {NUMERIC: width}, source=source)
    if is_classifier(estimator) and list(estimator.classes_) != list(range(len(estimator.classes_))):
        model = _labels_by_index(model)
        notes.append(f"label is an index into the classes {', '.join(str(c) for c in estimator.classes_[:20])}")
    rows = _random_rows(estimator, width)
    agreed = parity.compare(model, {NUMERIC: rows}, _answers(estimator, rows), tolerance=TOLERANCE)
    return OnnxModel(model.data, source, (*model.notes, *notes, f"{agreed.sentence('scikit-learn')}, random ones"))


def _load(path: Path, *, trust: bool, notes: list[str]) -> Any:
    if path.suffix.lower() != SKOPS and not trust:
        raise UserError(
            f"{path.name} is a pickle, which runs code as it is read: give --trust if you made it, or save it as .skops"
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            estimator = skops.io.load(path) if path.suffix.lower() == SKOPS else joblib.load(path)
        except UntrustedTypesFoundException as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(
                f"{path.name} holds types that skops does not trust: {reason}; keep to scikit-learn's own"
            ) from error
        except (ModuleNotFoundError, AttributeError) as error:
            raise UnsupportedModel(
                f"{path.name} needs code that is not here: {error}; install it, or keep to scikit-learn"
            ) from error
        except (*DAMAGED, UnsupportedTypeException) as error:
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UnsupportedModel(
                f"{path.name} is no estimator that can be read, or cut short: {reason}; save it again"
            ) from error
    versions = [w for w in caught if issubclass(w.category, InconsistentVersionWarning)]
    notes += [" ".join(str(versions[0].message).split())[:160]] if versions else []
    return estimator


def _checked(estimator: Any, name: str) -> int:
    """Return the number of columns that `estimator` takes; raise UnsupportedModel unless it can be converted."""
    kind = type(estimator).__name__
    if not isinstance(estimator, BaseEstimator) or not (is_classifier(estimator) or is_regressor(estimator)):
        raise UnsupportedModel(f"{name} holds a {kind}, which is no classifier or regressor of scikit-learn")
    if not hasattr(estimator, "n_features_in_"):
        raise UnsupportedModel(f"{name}: this {kind} is not fitted, or does not take a matrix of numbers; fit it first")
    if is_classifier(estimator) and not hasattr(estimator, "predict_proba"):
        raise UnsupportedModel(
            f"{name}: this {kind} gives no probabilities; wrap it in CalibratedClassifierCV and fit again"
        )
    if is_classifier(estimator) and isinstance(estimator.classes_, list):
        raise UnsupportedModel(
            f"{name}: this {kind} predicts {len(estimator.classes_)} targets at once; save one model per target"
        )
    return int(estimator.n_features_in_)


def _labels_by_index(model: OnnxModel) -> OnnxModel:
    """Return the graph with `label` taken from the probabilities, as an index instead of a class."""
    proto = graph.load(model)
    for node in proto.graph.node:
        node.output[:] = ["class" if name == LABEL else name for name in node.output]
    proto.graph.node.append(helper.make_node("ArgMax", [PROBABILITIES], [LABEL], axis=1, keepdims=0))
    label = next(value for value in proto.graph.output if value.name == LABEL)
    label.CopyFrom(helper.make_tensor_value_info(LABEL, TensorProto.INT64, [ROWS]))
    return graph.serialize(proto, source=model.source, notes=model.notes)


def _answers(estimator: Any, rows: np.ndarray) -> Answers:
    if is_classifier(estimator):
        scores = np.asarray(estimator.predict_proba(rows), dtype=np.float64)
        own = np.searchsorted(estimator.classes_, estimator.predict(rows))
        return Answers(own.astype(np.int64), scores)
    return Answers(None, np.asarray(estimator.predict(rows), dtype=np.float64).reshape(len(rows), -1))


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
