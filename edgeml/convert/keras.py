"""A Keras model, live or from a file, or a TensorFlow SavedModel, as one ONNX graph.

    model.keras | model.h5 | SavedModel folder -> read -> OnnxModel <- from_model <- a live model

Inputs and outputs are called as their Keras layers (or the SavedModel's signature) call them; agreement is checked on
seeded random inputs, several rows at once and one alone.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from onnx import ModelProto

from edgeml.artifacts import OnnxModel
from edgeml.convert import parity
from edgeml.convert.dress import dress
from edgeml.convert.keras_layers import RECURRENT, standing_in
from edgeml.convert.keras_trace import Traced, flat, to_proto
from edgeml.convert.keras_trainable import trainable_proto
from edgeml.errors import UnsupportedModel, UserError
from edgeml_runtime.session import Session

RELATIVE_TOLERANCE = 1e-4  # of the largest value of an output
HALF_TOLERANCE = 5e-3  # where layers compute in float16 or bfloat16: their rounding differs from machine to machine
PROBE_ROWS = 8
KEEPING = ("dead",)  # passes that leave every weight as it is
PROBE_LENGTH = 7  # of an axis that the model leaves open, such as time steps
SERVING = "serving_default"
CUSTOM = re.compile(r"Could not locate (?:class|function) '([^']+)'|Unknown (?:layer|\w+): '?(\w+)'?")


def read(path: Path, *, trust: bool = False) -> OnnxModel:
    """Return the model at `path`; `trust` allows Lambda layers, which are code of their maker.

    Raises UserError, UnsupportedModel, or VerificationError when the graph answers otherwise.
    """
    if path.is_dir():
        traced = _saved_model(path)
        return _converted(traced, to_proto(traced, path.name), source=_digest(path))
    model = _load(path, trust=trust)
    traced = _network(model, path.name)
    return _converted(traced, _plain_proto(model, traced, path.name), source=_digest(path))


def from_model(model: Any, *, name: str = "", trainable: bool = False) -> OnnxModel:
    """Return a live Keras model, of any class and with any layers of its own, as a graph; raises as `read` does.

    With `trainable` every variable is a constant of the graph under its own name.
    """
    weights = hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in model.get_weights()))
    name = name or model.name
    traced = _network(model, name)
    proto = (trainable_proto if trainable else _plain_proto)(model, traced, name)
    return _converted(traced, proto, source=weights.hexdigest(), only=KEEPING if trainable else None)


def _plain_proto(model: Any, traced: Traced, name: str) -> ModelProto:
    """Return the graph of `model`, its recurrent layers as the operators that they are."""
    with standing_in(model, kinds=RECURRENT) as handlers:
        return to_proto(replace(traced, handlers=handlers), name)


def _converted(traced: Traced, proto: ModelProto, *, source: str, only: Sequence[str] | None = None) -> OnnxModel:
    """Return the graph cleaned up and compared with its source; `only` names the passes that may touch it."""
    names = dict(zip([value.name for value in proto.graph.output], traced.outputs, strict=True))
    model = dress(proto, source=source, outputs=names, only=only)
    session, feeds = Session(model.data), _random_inputs(traced)
    tolerance = HALF_TOLERANCE if traced.half else RELATIVE_TOLERANCE
    agreed = [
        parity.compare_tensors(
            [session.run(dict(zip(traced.inputs, part, strict=True)))[output] for output in traced.outputs],
            [np.asarray(tensor) for tensor in flat(traced.call(*[tf.constant(array) for array in part]))],
            relative=tolerance,
        )
        for part in (feeds, [array[:1] for array in feeds])
    ]
    notes = [f"{agreed[0].sentence('Keras')}, random ones, and on one alone"]
    if traced.half:
        notes.append(f"computes in half precision: up to {tolerance:g} of the largest value may differ from Keras")
    return replace(model, notes=(*model.notes, *notes))


def _load(path: Path, *, trust: bool) -> Any:
    if path.suffix.lower() == ".keras" and not zipfile.is_zipfile(path):
        raise UnsupportedModel(
            f"{path.name} ({path.stat().st_size:,} bytes) is no Keras model, or cut short: save it again"
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # keras raises whatever its layers, h5py or zipfile raise
        reason = " ".join(str(error).split())
        if "safe_mode" in reason or "unsafe" in reason.lower():
            raise UserError(f"{path.name} holds a Lambda layer, which is code: give --trust if you made it") from error
        if custom := CUSTOM.search(reason):
            raise UnsupportedModel(
                f"{path.name} holds {custom[1] or custom[2]}, code of its maker that is not in the file: "
                f"save it by model.export as a SavedModel, or convert it live with edgeml.convert.from_keras"
            ) from error
        raise UnsupportedModel(
            f"{path.name} is no Keras model that can be read, or cut short: {reason[:200]}"
        ) from error


def _network(model: Any, name: str) -> Traced:
    layers = list(model._flatten_layers())
    indices = [layer.input_dim for layer in layers if isinstance(layer, keras.layers.Embedding)]
    half = any(str(getattr(layer, "compute_dtype", "")) in ("float16", "bfloat16") for layer in layers)
    inputs, outputs = _ends(model)
    return Traced(
        call=lambda *tensors: model(list(tensors) if len(tensors) > 1 else tensors[0], training=False),
        specs=tuple(tf.TensorSpec([None, *shape], dtype) for _, shape, dtype in inputs) or _refuse(name),
        inputs=_unique([end for end, _, _ in inputs]),
        outputs=_unique(outputs),
        largest_index=min(indices, default=0),
        half=half,
    )


def _ends(model: Any) -> tuple[list[tuple[str, tuple[int | None, ...], Any]], list[str]]:
    """Return name, shape without rows and type of each input, and the names of the outputs."""
    try:
        inputs, outputs = list(model.inputs or []), list(model.outputs or [])
    except AttributeError:  # a Sequential that was never built, or a class of its own
        inputs, outputs = [], []
    if inputs:
        named = [tensor._keras_history.operation.name for tensor in inputs]
        shapes = [tuple(tensor.shape[1:]) for tensor in inputs]
        dtypes = [tensor.dtype for tensor in inputs]
        return list(zip(named, shapes, dtypes, strict=True)), [t._keras_history.operation.name for t in outputs]
    shape = getattr(model, "_build_shapes_dict", None)
    known = [value for value in (shape or {}).values() if isinstance(value, tuple)]
    if len(known) != 1 or not model.built:
        return [], []
    answer = model(tf.zeros([1, *(size or PROBE_LENGTH for size in known[0][1:])]), training=False)
    names = [f"output_{number}" for number in range(len(flat(answer)))]
    return [("input", tuple(known[0][1:]), model.compute_dtype)], names if len(names) > 1 else ["output"]


def _refuse(name: str) -> Any:
    raise UnsupportedModel(
        f"{name}: this model was never called, so its inputs are unknown; call it on data, then save"
    )


def _saved_model(path: Path) -> Traced:
    try:
        loaded = tf.saved_model.load(str(path))
    except (OSError, ValueError, RuntimeError, KeyError, tf.errors.OpError) as error:
        raise UnsupportedModel(
            f"{path.name} is no SavedModel that can be read: {' '.join(str(error).split())[:200]}"
        ) from error
    if SERVING not in loaded.signatures:
        there = ", ".join(loaded.signatures) or "none"
        raise UnsupportedModel(
            f"{path.name} has no signature {SERVING} (it has {there}): save it with keras model.export"
        )
    signature = loaded.signatures[SERVING]
    given = signature.structured_input_signature[1]
    names = tuple(sorted(given))  # a SavedModel keeps no order of its own
    ends = tuple(sorted(signature.structured_outputs))

    def call(*tensors: Any) -> list[Any]:
        _ = loaded  # a signature holds its variables weakly
        answers = signature(**dict(zip(names, tensors, strict=True)))
        return [answers[name] for name in ends]

    specs = tuple(tf.TensorSpec(spec.shape, spec.dtype) for spec in (given[name] for name in names))
    outputs = _unique([f"{name}_out" if name in names else name for name in ends])
    return Traced(call, specs, names, outputs)


def _random_inputs(traced: Traced) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    arrays = []
    for spec in traced.specs:
        first, *rest = list(spec.shape)
        shape = (first or PROBE_ROWS, *(size or PROBE_LENGTH for size in rest))
        dtype = spec.dtype.as_numpy_dtype
        whole = traced.largest_index > 0 and (np.issubdtype(dtype, np.integer) or len(shape) == 2)
        drawn = rng.integers(0, traced.largest_index, shape) if whole else rng.normal(size=shape)
        arrays.append(np.asarray(drawn).astype(dtype))
    return arrays


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, a number behind those that came before."""
    return tuple(name if name not in names[:i] else f"{name}_{i}" for i, name in enumerate(names))


def _digest(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
