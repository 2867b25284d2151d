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
import tf2onnx

MARK = "edgeml_layer_"
_NUMBER = re.compile(rf"{MARK}(\d+)")
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "SimpleRNN": (0,)}  # of ONNX, as Keras numbers them
_OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}


@dataclass(frozen=True)
class Mark:
    """A layer, the weights it was given in order, and what writes its operator."""

    layer: Any
    write: Callable[[_Writer, Mark], str]


@contextlib.contextmanager
def standing_in(model: Any) -> Iterator[dict[str, tuple[Callable[..., None], list[Any]]]]:
    """Let layers of `model` stand for their operators within; yield tf2onnx's handlers for the marks."""
    marks: list[Mark] = []
    layers = [layer for layer in model._flatten_layers() if type(layer) in WRITERS and WRITERS[type(layer)][0](layer)]
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
        asked = [value for key, value in options.items() if key in ("mask", "initial_state")]
        if args or any(value is not None for value in asked):
            return plain(inputs, *args, **options)
        given = [keras.ops.convert_to_tensor(weight) for weight in weights(layer)]
        name = f"{MARK}{len(marks)}"
        marks.append(Mark(layer, write))
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
        writer = _Writer(ctx, node)
        ctx.remove_node(node.name)
        made = mark.write(writer, mark)
        ctx.make_node("Identity", [made], outputs=[writer.result], shapes=writer.shapes, dtypes=writer.dtypes)

    return write


class _Writer:
    """Writes ONNX nodes into tf2onnx's graph in place of one mark."""

    def __init__(self, ctx: Any, node: Any) -> None:
        self.ctx, self.stem = ctx, node.name
        self.x, *self.weights = list(node.input)
        self.rank = len(ctx.get_shape(self.x))
        self.shapes, self.dtypes, self.result = node.output_shapes, node.output_dtypes, node.output[0]

    def op(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Return the output of a new node, or the list of them."""
        name = tf2onnx.utils.make_name(self.stem)
        made = self.ctx.make_node(
            operator, list(inputs), attr=attributes, output_count=outputs, name=name, dtypes=self.dtypes * outputs
        )
        return made.output[0] if outputs == 1 else list(made.output)

    def const(self, value: Any, dtype: Any = np.int64) -> str:
        name = tf2onnx.utils.make_name(self.stem)
        return str(self.ctx.make_const(name, np.asarray(value, dtype)).output[0])


def _batch_normalization(w: _Writer, mark: Mark) -> str:
    """Channels second for the operator and back; scale and bias that the layer has not are ones and zeros."""
    layer = mark.layer
    given = iter(w.weights)
    size = layer.moving_mean.shape[0]
    scale = next(given) if layer.scale else w.const(np.ones(size), np.float32)
    bias = next(given) if layer.center else w.const(np.zeros(size), np.float32)
    last = layer.axis in (-1, w.rank - 1) and w.rank > 2
    x = w.op("Transpose", w.x, perm=[0, w.rank - 1, *range(1, w.rank - 1)]) if last else w.x
    options: dict[str, Any] = {"epsilon": float(layer.epsilon), "momentum": float(layer.momentum)}
    y = w.op("BatchNormalization", x, scale, bias, *given, **options)
    return str(w.op("Transpose", y, perm=[0, *range(2, w.rank), 1]) if last else y)


def _layer_normalization(w: _Writer, mark: Mark) -> str:
    layer = mark.layer
    return str(w.op("LayerNormalization", w.x, *w.weights, axis=-1, epsilon=float(layer.epsilon)))


def _recurrent(w: _Writer, mark: Mark) -> str:
    """Time first, gates in ONNX's order, and one bias: Keras has no second one but in a GRU that resets after."""
    layer, kind = mark.layer, type(mark.layer).__name__
    kernel, inner, *bias = w.weights
    weights = [_by_gate(w, name, kind=kind, units=int(layer.units)) for name in (kernel, inner)]
    if bias:
        weights.append(_bias(w, bias[0], kind=kind, layer=layer))
    x = w.op("Transpose", w.x, perm=[1, 0, 2])
    options: dict[str, Any] = {"hidden_size": int(layer.units)}
    if kind == "GRU":
        options["linear_before_reset"] = int(layer.reset_after)
    if layer.go_backwards:
        options["direction"] = "reverse"
    every, last = w.op(_OPERATORS[kind], x, *weights, outputs=2, **options)[:2]
    if not layer.return_sequences:
        return str(w.op("Squeeze", last, w.const([0])))
    rows = w.op("Transpose", w.op("Squeeze", every, w.const([1])), perm=[1, 0, 2])
    if layer.go_backwards:  # Keras gives the steps in the order in which it walked
        rows = w.op("Slice", rows, w.const([-1]), w.const([np.iinfo(np.int32).min]), w.const([1]), w.const([-1]))
    return str(rows)


def _by_gate(w: _Writer, name: str, *, kind: str, units: int) -> str:
    """Return (1, gates * units, n) of Keras's (n, gates * units)."""
    turned = w.op("Transpose", name, perm=[1, 0])
    return str(w.op("Unsqueeze", _sorted(w, turned, kind=kind, units=units, axis=0), w.const([0])))


def _bias(w: _Writer, name: str, *, kind: str, layer: Any) -> str:
    """Return (1, 2 * gates * units): of the inputs, then of the state."""
    count = len(_GATES[kind]) * int(layer.units)
    if kind == "GRU" and layer.reset_after:  # (2, 3 units), in the operator's order already
        return str(w.op("Reshape", name, w.const([1, 2 * count])))
    ordered = w.op("Unsqueeze", _sorted(w, name, kind=kind, units=int(layer.units), axis=0), w.const([0]))
    return str(w.op("Concat", ordered, w.const(np.zeros((1, count)), np.float32), axis=1))


def _sorted(w: _Writer, name: str, *, kind: str, units: int, axis: int) -> str:
    order = _GATES[kind]
    if order == tuple(range(len(order))):
        return name
    places = np.concatenate([np.arange(units) + gate * units for gate in order])
    return str(w.op("Gather", name, w.const(places), axis=axis))


def _plain_cell(layer: Any) -> bool:
    cell = layer.cell
    usual = {"LSTM": ("tanh", "sigmoid"), "GRU": ("tanh", "sigmoid"), "SimpleRNN": ("tanh", None)}[type(layer).__name__]
    gates = getattr(cell, "recurrent_activation", None)
    named = (cell.activation.__name__, gates.__name__ if gates else None)
    return named == usual and not layer.stateful and not layer.return_state


def _of_cell(layer: Any) -> Sequence[Any]:
    cell = layer.cell
    return [cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else [])]


def _of_batch(layer: Any) -> Sequence[Any]:
    own = [layer.gamma if layer.scale else None, layer.beta if layer.center else None]
    return [*(weight for weight in own if weight is not None), layer.moving_mean, layer.moving_variance]


WRITERS: dict[type, tuple[Callable[[Any], bool], Callable[[Any], Sequence[Any]], Callable[[_Writer, Mark], str]]] = {
    keras.layers.BatchNormalization: (lambda layer: True, _of_batch, _batch_normalization),
    keras.layers.LayerNormalization: (
        lambda layer: layer.axis in (-1, [-1]) and layer.scale and layer.center and not layer.rms_scaling,
        lambda layer: [layer.gamma, layer.beta],
        _layer_normalization,
    ),
    **dict.fromkeys((keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN), (_plain_cell, _of_cell, _recurrent)),
}
