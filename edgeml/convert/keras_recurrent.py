"""Keras's LSTM, GRU and SimpleRNN as the operators of ONNX, with a mask or without one.

A mask may leave out any steps, at the start as well as at the end; the operators know a number of steps only. So the
steps that count are brought to the front, in their order, and afterwards every step is given what the last one that
counted before it answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import TensorProto

from edgeml.convert.keras_writer import Writer

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (0, 1, 2), "SimpleRNN": (0,)}  # of ONNX, as Keras numbers them
_OPERATORS = {"LSTM": "LSTM", "GRU": "GRU", "SimpleRNN": "RNN"}


def recurrent(w: Writer, layer: Any) -> str:
    """Time first, gates in ONNX's order, and one bias: Keras has no second one but in a GRU that resets after."""
    kind = type(layer).__name__
    kernel, inner, *bias = w.weights
    weights = [_by_gate(w, name, kind=kind, units=int(layer.units)) for name in (kernel, inner)]
    weights.append(_bias(w, bias[0], kind=kind, layer=layer) if bias else "")
    options: dict[str, Any] = {"hidden_size": int(layer.units)}
    if kind == "GRU":
        options["linear_before_reset"] = int(layer.reset_after)
    x = w.op("Transpose", w.x, perm=[1, 0, 2])
    if w.mask:
        return _masked(w, layer, x, operator=_OPERATORS[kind], weights=weights, options=options)
    if layer.go_backwards:
        options["direction"] = "reverse"
    every, last = w.op(_OPERATORS[kind], x, *weights, outputs=2, **options)[:2]
    if not layer.return_sequences:
        return str(w.op("Squeeze", last, w.const([0])))
    rows = w.op("Transpose", w.op("Squeeze", every, w.const([1])), perm=[1, 0, 2])
    return _reversed(w, rows, axis=1) if layer.go_backwards else str(rows)  # in the order in which Keras walked


def _masked(w: Writer, layer: Any, x: str, *, operator: str, weights: list[str], options: dict[str, Any]) -> str:
    mask = w.op("Cast", w.op("Transpose", w.mask, perm=[1, 0]), to=TensorProto.INT64)  # (steps, rows)
    if layer.go_backwards:
        x, mask = _reversed(w, x, axis=0), _reversed(w, mask, axis=0)
    count = w.op("CumSum", mask, w.const(0))  # of the steps so far
    whole = w.op("ReduceSum", mask, w.const([0]), keepdims=0)
    length = w.op("Cast", whole, to=TensorProto.INT32)
    every, last = w.op(operator, _front(w, x, mask), *weights, length, outputs=2, **options)[:2]
    if not layer.return_sequences:
        return str(w.op("Squeeze", last, w.const([0])))
    before = w.op("Max", w.op("Sub", count, w.const(1)), w.const(0))
    answers = _picked(w, w.op("Squeeze", every, w.const([1])), before)
    some = mask if layer.zero_output_for_mask else w.op("Min", count, w.const(1))  # before the first step: zeros
    some = w.op("Unsqueeze", w.op("Cast", some, to=TensorProto.FLOAT), w.const([2]))
    return str(w.op("Transpose", w.op("Mul", answers, some), perm=[1, 0, 2]))


def _front(w: Writer, x: str, mask: str) -> str:
    """Return x (steps, rows, n) with the steps that count first, in their order."""
    steps = w.op("Gather", w.op("Shape", mask), w.const([0]))
    place = w.op("Range", w.const(0), w.op("Squeeze", steps), w.const(1))
    score = w.op("Sub", w.op("Mul", mask, steps), w.op("Unsqueeze", place, w.const([1])))
    return _picked(w, x, w.op("TopK", score, steps, outputs=2, axis=0)[1])


def _picked(w: Writer, x: str, steps: str) -> str:
    """Return, of x (steps, rows, n), for every step and row the step that `steps` (steps, rows) names."""
    shape = w.op("Shape", x)
    rows = w.op("Squeeze", w.op("Gather", shape, w.const([1])))
    row = w.op("Range", w.const(0), rows, w.const(1))
    flat = w.op("Reshape", x, w.op("Concat", w.const([-1]), w.op("Gather", shape, w.const([2])), axis=0))
    return str(w.op("Gather", flat, w.op("Add", w.op("Mul", steps, rows), row), axis=0))


def _reversed(w: Writer, x: str, *, axis: int) -> str:
    return str(w.op("Slice", x, w.const([-1]), w.const([np.iinfo(np.int32).min]), w.const([axis]), w.const([-1])))


def _by_gate(w: Writer, name: str, *, kind: str, units: int) -> str:
    """Return (1, gates * units, n) of Keras's (n, gates * units)."""
    turned = w.op("Transpose", name, perm=[1, 0])
    return str(w.op("Unsqueeze", _sorted(w, turned, kind=kind, units=units, axis=0), w.const([0])))


def _bias(w: Writer, name: str, *, kind: str, layer: Any) -> str:
    """Return (1, 2 * gates * units): of the inputs, then of the state."""
    count = len(_GATES[kind]) * int(layer.units)
    if kind == "GRU" and layer.reset_after:  # (2, 3 units), in the operator's order already
        return str(w.op("Reshape", name, w.const([1, 2 * count])))
    ordered = w.op("Unsqueeze", _sorted(w, name, kind=kind, units=int(layer.units), axis=0), w.const([0]))
    return str(w.op("Concat", ordered, w.const(np.zeros((1, count)), np.float32), axis=1))


def _sorted(w: Writer, name: str, *, kind: str, units: int, axis: int) -> str:
    order = _GATES[kind]
    if order == tuple(range(len(order))):
        return name
    places = np.concatenate([np.arange(units) + gate * units for gate in order])
    return str(w.op("Gather", name, w.const(places), axis=axis))


def is_plain(layer: Any) -> bool:
    cell = layer.cell
    usual = {"LSTM": ("tanh", "sigmoid"), "GRU": ("tanh", "sigmoid"), "SimpleRNN": ("tanh", None)}[type(layer).__name__]
    gates = getattr(cell, "recurrent_activation", None)
    named = (cell.activation.__name__, gates.__name__ if gates else None)
    return named == usual and not layer.stateful and not layer.return_state


def weights_of(layer: Any) -> Sequence[Any]:
    cell = layer.cell
    return [cell.kernel, cell.recurrent_kernel, *([cell.bias] if cell.use_bias else [])]
