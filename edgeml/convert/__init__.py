"""Every door by which a model enters as ONNX.

    FittedModel -> to_onnx -> OnnxModel        file -> read_model -> OnnxModel <- from_keras <- a live model

Both converters beneath can answer wrongly without an exception, so each conversion is compared with its source, row
by row, before it is handed on. A framework is imported when its door is opened.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeml.artifacts import FittedModel, OnnxModel
from edgeml.errors import MissingExtra, NotFound, UnsupportedModel

ROOMS = {
    "sklearn": "edgeml.convert.sklearn",
    "sklearn file": "edgeml.convert.sklearn_file",
    "keras": "edgeml.convert.keras",
    "onnx": "edgeml.convert.onnx_file",
    "booster": "edgeml.convert.boosters",
}
SUFFIXES = {
    ".onnx": "onnx",
    ".keras": "keras",
    ".h5": "keras",
    ".hdf5": "keras",
    ".joblib": "sklearn file",
    ".pkl": "sklearn file",
    ".pickle": "sklearn file",
    ".skops": "sklearn file",
    ".txt": "booster",  # LightGBM
    ".json": "booster",  # XGBoost
    ".ubj": "booster",
}
EXTRAS = {"tensorflow": "tensorflow", "keras": "tensorflow", "tf2onnx": "tensorflow"}  # package -> extra
QUIET = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}  # TensorFlow reads them once, as it is imported
SAVED_MODEL = "saved_model.pb"  # the file that makes a folder a SavedModel


def to_onnx(fitted: FittedModel) -> OnnxModel:
    """Return the whole fitted pipeline, preprocessing included, as one graph.

    Raises UnsupportedModel when it has no converter and VerificationError when the graph answers otherwise.
    """
    model: OnnxModel = open_room("sklearn").to_onnx(fitted)
    return model


def read_model(path: Path, *, trust: bool = False, runtimes: Sequence[str] = (), opset: int | None = None) -> OnnxModel:
    """Return the model in the file (or SavedModel folder) at `path`, in the newest opset all `runtimes` load.

    `runtimes` are versions of onnxruntime, the oldest supported one if none is given; `opset` asks for another.

    `trust` allows pickles, which run code as they are read. Raises NotFound, UnsupportedModel, MissingExtra, or
    VerificationError when the graph answers otherwise than its source.
    """
    try:
        there = path.exists()
    except PermissionError as error:
        raise NotFound(
            f"{path} cannot be looked for: permission denied on its folder; change who may enter it"
        ) from error
    if not there:
        raise NotFound(f"no model at {path}: check the path")
    room = "keras" if path.is_dir() and (path / SAVED_MODEL).is_file() else SUFFIXES.get(path.suffix.lower())
    if room is None or (path.is_dir() and room != "keras"):
        what = "a folder without saved_model.pb" if path.is_dir() else f"no reader for {path.suffix or 'no suffix'}"
        raise UnsupportedModel(f"{path}: {what}; there is {', '.join(SUFFIXES)} and SavedModel folders")
    read: Callable[..., OnnxModel] = open_room(room).read
    return fit_runtimes(read(path, trust=trust), runtimes, opset=opset)


def fit_runtimes(
    model: OnnxModel, runtimes: Sequence[str], *, opset: int | None = None, keep: bool = False
) -> OnnxModel:
    """Return `model` in the newest opset that every onnxruntime of `runtimes` loads, its answers unchanged.

    With `keep` a model that they all load already stays as it is.
    Raises UnsupportedModel when it cannot be written so that they load it.
    """
    fitted: OnnxModel = open_room("onnx").fit(model, runtimes, opset=opset, keep=keep)
    return fitted


def from_keras(model: Any, *, name: str = "", trainable: bool = False) -> OnnxModel:
    """Return a live Keras model as a graph: the door for classes and layers of your own.

    With `trainable` every float32 variable is a constant of the graph called by its path (`dense/kernel`), zero biases
    and normalizations included, and `edgeml.autodiff.training_step` trains those that are trainable in Keras.

    Raises UnsupportedModel for what ONNX cannot say, MissingExtra without TensorFlow, and VerificationError when the
    graph answers otherwise.
    """
    converted: OnnxModel = open_room("keras").from_model(model, name=name, trainable=trainable)
    return converted


def from_sklearn(estimator: Any, widths: Mapping[str, int], *, source: str) -> OnnxModel:
    """Return a fitted scikit-learn estimator over inputs of these widths (`numeric`: columns) as a graph.

    Raises UnsupportedModel when a step of it has no converter.
    """
    converted: OnnxModel = open_room("sklearn").convert(estimator, widths, source=source)
    return converted


def open_room(name: str) -> Any:
    """Return the module behind a door of ROOMS; raise MissingExtra when its framework is not installed."""
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)
    try:
        return importlib.import_module(ROOMS[name])
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise  # a bug of ours, not a missing extra
        raise MissingExtra(f"{name} models need {error.name}: pip install 'edgeml[{extra}]'") from error
