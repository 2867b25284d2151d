"""A Keras model from a file, or a TensorFlow SavedModel, as one ONNX graph.

    model.keras | model.h5 | SavedModel folder -> read -> OnnxModel

By `tf2onnx.convert.from_function`, the one route that takes every kind of model. Inputs and outputs are called as
their Keras layers (or the SavedModel's signature) call them; agreement is checked on seeded random inputs.
"""

from __future__ import annotations

import hashlib
import logging
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from edgeml.artifacts import OnnxModel
from edgeml.convert import parity
from edgeml.convert.dress import dress
from edgeml.errors import UnsupportedModel, UserError
from edgeml_runtime.session import Session

OPSET = 18  # the newest that tf2onnx writes
RELATIVE_TOLERANCE = 1e-4  # of the largest value of an output
PROBE_ROWS = 8
PROBE_LENGTH = 7  # of an axis that the model leaves open, such as time steps
SERVING = "serving_default"


@dataclass(frozen=True)
class Traced:
    """A model as a function of flat tensors, with the names its maker gave them."""

    call: Callable[..., Any]
    specs: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    largest_index: int  # whole-number inputs stay below this


def read(path: Path, *, trust: bool = False) -> OnnxModel:
    """Return the model at `path`; `trust` allows Lambda layers, which are code of their maker.

    Raises UserError, UnsupportedModel, or VerificationError when the graph answers otherwise.
    """
    traced = _saved_model(path) if path.is_dir() else _keras_file(path, trust=trust)
    proto = _to_onnx(traced, path.name)
    names = dict(zip([value.name for value in proto.graph.output], traced.outputs, strict=True))
    _rename_inputs(proto, traced.inputs)
    model = dress(proto, source=_digest(path), outputs=names)
    feeds = _random_inputs(traced)
    wanted = [np.asarray(tensor) for tensor in _flat(traced.call(*[tf.constant(array) for array in feeds]))]
    found = Session(model.data).run(dict(zip(traced.inputs, feeds, strict=True)))
    agreed = parity.compare_tensors([found[name] for name in traced.outputs], wanted, relative=RELATIVE_TOLERANCE)
    return OnnxModel(model.data, model.source, (*model.notes, f"{agreed.sentence('Keras')}, random ones"))


def _keras_file(path: Path, *, trust: bool) -> Traced:
    if path.suffix.lower() == ".keras" and not zipfile.is_zipfile(path):
        raise UnsupportedModel(
            f"{path.name} ({path.stat().st_size:,} bytes) is no Keras model, or cut short: save it again"
        )
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # keras raises whatever its layers, h5py or zipfile raise
        reason = " ".join(str(error).split())[:200]
        if "safe_mode" in str(error) or "unsafe" in str(error).lower():
            raise UserError(f"{path.name} holds a Lambda layer, which is code: give --trust if you made it") from error
        raise UnsupportedModel(f"{path.name} is no Keras model that can be read, or cut short: {reason}") from error
    try:
        inputs, outputs = list(model.inputs or []), list(model.outputs or [])
    except AttributeError:  # a Sequential that was never built
        inputs, outputs = [], []
    if not inputs:
        raise UnsupportedModel(
            f"{path.name}: this model was never called, so its inputs are unknown; call it on data, then save"
        )
    _make_constants(model)
    specs = tuple(tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for tensor in inputs)
    indices = [layer.input_dim for layer in model._flatten_layers() if isinstance(layer, keras.layers.Embedding)]
    return Traced(
        call=lambda *tensors: model(list(tensors) if len(tensors) > 1 else tensors[0], training=False),
        specs=specs,
        inputs=_unique([tensor._keras_history.operation.name for tensor in inputs]),
        outputs=_unique([tensor._keras_history.operation.name for tensor in outputs]),
        largest_index=min(indices, default=0),
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
    return Traced(call, specs, names, outputs, largest_index=0)


def _to_onnx(traced: Traced, name: str) -> onnx.ModelProto:
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it cannot convert is refused by name below
    specs = [tf.TensorSpec(s.shape, s.dtype, name=f"edgeml_in_{i}") for i, s in enumerate(traced.specs)]
    function = tf.function(lambda *tensors: _flat(traced.call(*tensors)), input_signature=specs)
    try:
        proto, _ = tf2onnx.convert.from_function(
            function, input_signature=specs, opset=OPSET, custom_op_handlers=dict(HANDLERS)
        )
    except Exception as error:  # tf2onnx and TensorFlow have no common base class of errors
        raise UnsupportedModel(f"{name} does not convert: {' '.join(str(error).split())[:200]}") from error
    unknown = sorted({n.op_type for n in proto.graph.node if not n.domain and not onnx.defs.has(n.op_type, OPSET, "")})
    if unknown:
        raise UnsupportedModel(
            f"{name} uses TensorFlow's {', '.join(unknown)}, which ONNX cannot say: replace that layer"
        )
    converted: onnx.ModelProto = proto
    return converted


def _rename_inputs(proto: onnx.ModelProto, names: Sequence[str]) -> None:
    """Put the user's input names on the graph, in the order of the call."""
    inputs = {value.name.split(":")[0]: value.name for value in proto.graph.input}
    new = {inputs[f"edgeml_in_{i}"]: name for i, name in enumerate(names) if f"edgeml_in_{i}" in inputs}
    if foreign := set(inputs) - {f"edgeml_in_{i}" for i in range(len(names))}:
        raise UnsupportedModel(
            f"the model keeps {len(foreign)} constants outside its weights, as a Normalization layer of a SavedModel "
            f"does: save it as .keras"
        )
    if len(new) < len(names):
        raise UnsupportedModel(
            f"{len(names) - len(new)} of the inputs {', '.join(names)} are not used by the model: leave them out"
        )
    for node in proto.graph.node:
        node.output[:] = [f"{name}.inner" if name in names else name for name in node.output]
        node.input[:] = [new.get(name, f"{name}.inner" if name in names else name) for name in node.input]
    for value in proto.graph.input:
        value.name = new[value.name]


def _make_constants(model: Any) -> None:
    """Turn the statistics of Normalization layers into constants: as variables they convert to inputs nobody feeds."""
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.Normalization) and layer.mean is not None:
            layer.mean, layer.variance = np.asarray(layer.mean), np.asarray(layer.variance)


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


def _erfc(ctx: Any, node: Any, *_: Any) -> None:
    """erfc(x) = 1 - erf(x): the exact gelu uses it, and ONNX has no Erfc."""
    _one_and(ctx, node, "Erf", one_first=True)


def _expm1(ctx: Any, node: Any, *_: Any) -> None:
    """expm1(x) = exp(x) - 1: celu uses it, and ONNX has no Expm1."""
    _one_and(ctx, node, "Exp", one_first=False)


def _one_and(ctx: Any, node: Any, operator: str, *, one_first: bool) -> None:
    """Put 1 - operator(x), or operator(x) - 1, in place of a TensorFlow node."""
    shapes, dtypes, value, result = node.output_shapes, node.output_dtypes, node.input[0], node.output[0]
    ctx.remove_node(node.name)
    number = np.ones((), tf2onnx.utils.map_onnx_to_numpy_type(dtypes[0]))
    one = ctx.make_const(tf2onnx.utils.make_name(node.name), number).output[0]
    inner = ctx.make_node(operator, [value], shapes=shapes, dtypes=dtypes).output[0]
    pair = [one, inner] if one_first else [inner, one]
    ctx.make_node("Sub", pair, name=node.name, outputs=[result], shapes=shapes, dtypes=dtypes)


HANDLERS: dict[str, tuple[Callable[..., None], list[str]]] = {"Erfc": (_erfc, []), "Expm1": (_expm1, [])}


def _flat(answers: Any) -> list[Any]:
    return list(keras.tree.flatten(answers))


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, a number behind those that came before."""
    return tuple(name if name not in names[:i] else f"{name}_{i}" for i, name in enumerate(names))


def _digest(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = hashlib.sha256()
    for file in files:
        whole.update(hashlib.sha256(file.read_bytes()).digest())
    return whole.hexdigest()
