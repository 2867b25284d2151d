"""A fitted scikit-learn pipeline as one ONNX graph, preprocessing included.

    FittedModel -> to_onnx -> OnnxModel, in agreement with its pipeline on up to 256 training rows

skl2onnx does most of the work; what it gets wrong is cured in `sklearn_trees`, here, and by our own converter in
`sklearn_mlp`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from skl2onnx import convert_sklearn
from skl2onnx._supported_operators import sklearn_operator_name_map
from skl2onnx.common._registration import get_converter
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.base import is_classifier
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from edgeml import graph
from edgeml.artifacts import FittedModel, OnnxModel
from edgeml.convert import parity, sklearn_algebra, sklearn_functions, sklearn_mlp, sklearn_scores, sklearn_trees
from edgeml.convert.dress import dress
from edgeml.convert.sklearn_frame import Frame, over_two_inputs
from edgeml.convert.sklearn_instead import DEFAULT, INSTEAD, way_out
from edgeml.convert.sklearn_outputs import finish_outputs
from edgeml.convert.sklearn_says import INLIER, answers_of, classes_of
from edgeml.convert.sklearn_wrappers import unwrapped
from edgeml.errors import UnsupportedModel
from edgeml_runtime.wire.manifest import CATEGORICAL, NUMERIC, SCORES

for room in (sklearn_mlp, sklearn_trees, sklearn_algebra, sklearn_functions, sklearn_scores):
    room.register()
INPUTS = {NUMERIC: FloatTensorType, CATEGORICAL: StringTensorType}
BY_INDEX = (MLPClassifier, *sklearn_scores.BY_INDEX)  # our own converters answer with the index already
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
    """Return a fitted estimator over inputs of these widths as a graph with the outputs of `answers_of`.

    A classifier's labels become indices into its classes. Raises UnsupportedModel when a step has no converter.
    """
    plain = unwrapped(estimator)
    return _finished(
        _skl2onnx(plain, [(name, INPUTS[name]([None, width])) for name, width in widths.items()]), estimator, source
    )


def convert_frame(estimator: Any, frame: Frame, *, source: str) -> OnnxModel:
    """Return an estimator fitted on a frame as a graph over `numeric` and `categorical`, with its features named."""
    proto = over_two_inputs(
        frame,
        lambda columns: _skl2onnx(unwrapped(estimator), [(name, INPUTS[kind]([None, 1])) for name, kind in columns]),
    )
    return replace(_finished(proto, estimator, source), features=frame.features())


def _finished(proto: onnx.ModelProto, estimator: Any, source: str) -> OnnxModel:
    names = [says.name for says in answers_of(estimator)]
    given = [output.name for output in proto.graph.output]
    if set(names) == {SCORES, INLIER}:
        names = [INLIER, SCORES]  # the order of skl2onnx
    if len(given) < len(names):
        raise UnsupportedModel(f"{type(estimator).__name__} gives {len(given)} outputs, expected {', '.join(names)}")
    for extra in proto.graph.output[len(names) :]:
        proto.graph.output.remove(extra)
    classes = None if isinstance(_last(unwrapped(estimator)), BY_INDEX) else classes_of(estimator)
    finish_outputs(proto, dict(zip(names, given, strict=False)), classes)
    return dress(proto, source=source, outputs={old: new for new, old in zip(names, given, strict=False)})


def _last(estimator: Any) -> Any:
    return _last(estimator.steps[-1][1]) if isinstance(estimator, Pipeline) else estimator


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
        if isinstance(error, UnsupportedModel):
            raise
        if missing := re.search(r"shape calculator for type '<class '[\w.]*?(\w+)'>", str(error)):
            raise UnsupportedModel(f"no converter for {missing[1]}: {INSTEAD.get(missing[1], DEFAULT)}") from error
        raise UnsupportedModel(
            f"no way to ONNX for this {type(estimator).__name__}: {way_out(estimator)} ({reason})"
        ) from error
    converted: onnx.ModelProto = proto
    return converted


def _options(step: Any) -> list[dict[str, Any]]:
    if isinstance(step, StandardScaler):
        return [{"div": "div"}]  # multiplying by the inverse moves values across the thresholds of trees
    if isinstance(step, CountVectorizer):
        return [{"locale": "C"}]  # onnxruntime refuses a graph whose locale the machine does not have
    if isinstance(step, Pipeline) or not is_classifier(step):
        return []
    if type(step) not in sklearn_operator_name_map:
        return []  # skl2onnx says so itself
    allowed = get_converter(sklearn_operator_name_map[type(step)]).get_allowed_options() or {}
    wanted = {"zipmap": False, "raw_scores": True} if not hasattr(step, "predict_proba") else {"zipmap": False}
    return [{name: value for name, value in wanted.items() if name in allowed}]


def steps_of(estimator: Any) -> list[Any]:
    """Return the estimator and every step inside it."""
    inside: list[Any] = []
    if isinstance(estimator, Pipeline):
        inside = [step for _, step in estimator.steps]
    elif hasattr(estimator, "transformers_"):
        inside = [step for _, step, _ in estimator.transformers_]
    kept = [step for step in inside if not isinstance(step, str)]
    return [estimator, *(found for step in kept for found in steps_of(step))]
