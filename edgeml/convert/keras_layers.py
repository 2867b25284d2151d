"""Keras layers that ONNX has one operator for, written as that operator whatever TensorFlow computes them by.

Normalizations come out of TensorFlow as a dozen sums and products, recurrent layers as loops: neither trains well.
While a model is traced, `standing_in` puts a mark in place of such a layer, and gives tf2onnx what writes its operator.

    layer -> mark (a PyFunc of input and weights) -> BatchNormalization | LayerNormalization | LSTM | GRU | RNN
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from edgeml.convert.keras_recurrent import is_plain, recurrent, weights_of
from edgeml.convert.keras_writer import Writer

RECURRENT = (keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
MARK = "edgeml_layer_"
_NUMBER = re.compile(rf"{MARK}(\d+)")


@dataclass(frozen=True)
class Mark:
    """A layer, what writes its operator, and whether its inputs end with a mask of the steps that count."""

    layer: Any
    write: Callable[[Writer, Any], str]
    masked: bool = False


@contextlib.contextmanager
def standing_in(
    model: Any, *, kinds: Sequence[type] = ()
) -> Iterator[dict[str, tuple[Callable[..., None], list[Any]]]]:
    """Let layers of `model`, or those of `kinds`, stand for their operators; yield tf2onnx's handlers for the marks."""
    marks: list[Mark] = []
    layers = [layer for layer in model._flatten_layers() if type(layer) in (kinds or WRITERS)]
    layers = [layer for layer in layers if WRITERS[type(layer)][0](layer)]
    for layer in layers:
        object.__setattr__(layer, "call", _marked(layer, marks))
    try:
        yield {"PyFunc": (_writing(marks), [])}
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def _marked(layer: Any, marks: list[Mark]) -> Callable[..., Any]:
    _, weights, write = WRITERS[type(layer)]
    plain = layer.call

    def call(inputs: Any, *args: Any, **options: Any) -> Any:
        mask = options.get("mask")
        if args or options.get("initial_state") is not None or (mask is not None and type(layer) not in RECURRENT):
            return plain(inputs, *args, **options)
        given = [keras.ops.convert_to_tensor(weight) for weight in weights(layer)]
        given += [mask] if mask is not None else []
        name = f"{MARK}{len(marks)}"
        marks.append(Mark(layer, write, mask is not None))
        made = tf.numpy_function(_never, [inputs, *given], inputs.dtype, name=name)
        return tf.ensure_shape(made, layer.compute_output_shape(tuple(inputs.shape)))

    return call


def _never(*_: Any) -> Any:
    raise AssertionError("a mark is converted, never run")


def _writing(marks: list[Mark]) -> Callable[..., None]:
    """Return tf2onnx's handler of marks."""

    def write(ctx: Any, node: Any, *_: Any) -> None:
        found = _NUMBER.search(node.name)
        if not found:
            raise ValueError(f"{node.name}: Python code has no operator")
        mark = marks[int(found[1])]
        writer = Writer(ctx, node, masked=mark.masked)
        ctx.remove_node(node.name)
        made = mark.write(writer, mark.layer)
        ctx.make_node("Identity", [made], outputs=[writer.result], shapes=writer.shapes, dtypes=writer.dtypes)

    return write


def _batch_normalization(w: Writer, layer: Any) -> str:
    """Channels second for the operator and back; scale and bias that the layer has not are ones and zeros."""
    given = iter(w.weights)
    size = layer.moving_mean.shape[0]
    scale = next(given) if layer.scale else w.const(np.ones(size), np.float32)
    bias = next(given) if layer.center else w.const(np.zeros(size), np.float32)
    last = layer.axis in (-1, w.rank - 1) and w.rank > 2
    x = w.op("Transpose", w.x, perm=[0, w.rank - 1, *range(1, w.rank - 1)]) if last else w.x
    options: dict[str, Any] = {"epsilon": float(layer.epsilon), "momentum": float(layer.momentum)}
    y = w.op("BatchNormalization", x, scale, bias, *given, **options)
    return str(w.op("Transpose", y, perm=[0, *range(2, w.rank), 1]) if last else y)


def _layer_normalization(w: Writer, layer: Any) -> str:
    return str(w.op("LayerNormalization", w.x, *w.weights, axis=-1, epsilon=float(layer.epsilon)))


def _of_batch(layer: Any) -> Sequence[Any]:
    own = [layer.gamma if layer.scale else None, layer.beta if layer.center else None]
    return [*(weight for weight in own if weight is not None), layer.moving_mean, layer.moving_variance]


WRITERS: dict[type, tuple[Callable[[Any], bool], Callable[[Any], Sequence[Any]], Callable[[Writer, Any], str]]] = {
    keras.layers.BatchNormalization: (lambda layer: True, _of_batch, _batch_normalization),
    keras.layers.LayerNormalization: (
        lambda layer: layer.axis in (-1, [-1]) and layer.scale and layer.center and not layer.rms_scaling,
        lambda layer: [layer.gamma, layer.beta],
        _layer_normalization,
    ),
    **dict.fromkeys(RECURRENT, (is_plain, weights_of, recurrent)),
}
