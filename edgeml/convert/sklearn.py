"""A fitted scikit-learn pipeline as one ONNX graph, preprocessing included.

    FittedModel -> to_onnx -> OnnxModel, in agreement with its pipeline on up to 256 training rows

skl2onnx does most of the work; what it gets wrong is cured in `sklearn_trees`, here, and by our own converter in
`sklearn_mlp`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.base import is_classifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from edgeml import graph
from edgeml.artifacts import FittedModel, OnnxModel
from edgeml.convert import parity, sklearn_mlp, sklearn_trees
from edgeml.convert.dress import dress
from edgeml.errors import UnsupportedModel
from edgeml_runtime.wire.manifest import CATEGORICAL, LABEL, NUMERIC, PREDICTION, PROBABILITIES

sklearn_mlp.register()
sklearn_trees.register()
INPUTS = {NUMERIC: FloatTensorType, CATEGORICAL: StringTensorType}
OPSETS = {"": graph.MAX_OPSET, "ai.onnx.ml": 3}
OLDER_OPSETS = {"": 17, "ai.onnx.ml": 3}  # what a few converters, isolation forests among them, still ask for


def to_onnx(fitted: FittedModel) -> OnnxModel:
    """Return `fitted` as a graph with inputs `numeric` and `categorical`, those that its table has.

    Raises UnsupportedModel when a step has no converter and VerificationError when the graph answers otherwise.
    """
    train = fitted.dataset.train
    count = min(len(train), parity.MAX_ROWS)
    rows = train.take(np.linspace(0, len(train) - 1, count).astype(np.int64))  # spread: files come sorted by class
    widths = {name: array.shape[1] for name, array in rows.inputs.items()}
    model = convert(fitted.pipeline.sklearn, widths, source=fitted.digest)
    agreed = parity.compare(model, rows.inputs, fitted.pipeline.answers(rows))
    return OnnxModel(model.data, model.source, (*model.notes, agreed.sentence("scikit-learn")))


def convert(estimator: Any, widths: Mapping[str, int], *, source: str) -> OnnxModel:
    """Return a fitted estimator over inputs of these widths as a graph.

    Raises UnsupportedModel when a step has no converter.
    """
    types = [(name, INPUTS[name]([None, width])) for name, width in widths.items()]
    names = [LABEL, PROBABILITIES] if is_classifier(estimator) else [PREDICTION]
    proto = _skl2onnx(estimator, types)
    given = [output.name for output in proto.graph.output]
    if len(given) != len(names):
        raise UnsupportedModel(f"{type(estimator).__name__} gives {len(given)} outputs, expected {', '.join(names)}")
    return dress(proto, source=source, outputs=dict(zip(given, names, strict=True)))


def _skl2onnx(estimator: Any, types: list[tuple[str, Any]]) -> onnx.ModelProto:
    options = {id(step): option for step in steps_of(estimator) for option in _options(step)}
    # without a name of ours the graph gets a random one, and equal models would have unequal digests
    given = {"name": type(estimator).__name__, "initial_types": types, "options": options}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of attributes that skl2onnx reads: no word for the user
            try:
                proto = convert_sklearn(estimator, target_opset=OPSETS, **given)
            except RuntimeError:  # among others: this converter does not know so new an opset
                proto = convert_sklearn(estimator, target_opset=OLDER_OPSETS, **given)
    except Exception as error:  # skl2onnx has no base class of errors, and raises NameError and IndexError too
        reason = " ".join(str(error).split())[:160]
        raise UnsupportedModel(f"no way to ONNX for this {type(estimator).__name__}: {reason}") from error
    converted: onnx.ModelProto = proto
    return converted


def _options(step: Any) -> list[dict[str, Any]]:
    if isinstance(step, StandardScaler):
        return [{"div": "div"}]  # multiplying by the inverse moves values across the thresholds of trees
    return [{"zipmap": False}] if is_classifier(step) else []


def steps_of(estimator: Any) -> list[Any]:
    """Return the estimator and every step inside it."""
    inside: list[Any] = []
    if isinstance(estimator, Pipeline):
        inside = [step for _, step in estimator.steps]
    elif hasattr(estimator, "transformers_"):
        inside = [step for _, step, _ in estimator.transformers_]
    kept = [step for step in inside if not isinstance(step, str)]
    return [estimator, *(found for step in kept for found in steps_of(step))]
