"""VJP rules of LSTM, GRU and RNN (ONNX operator specification, equations of each): backpropagation through time.

The layer is computed anew, by a Scan that keeps the gates of every step, and takes the operator's place. Only what is
truly one step after the other stands in a Scan: x W' of all steps comes before, and the gradients of the weights, over
all steps, behind, each as one product.

    dpre: gradient of the gates before their activations; dx = dpre W, dW = dpre' x, dR = dpre' h[t-1], db = sum dpre
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto, numpy_helper

from edgeml.autodiff.builder import GraphBuilder, attributes
from edgeml.autodiff.direction import Cell, Direction, Walk
from edgeml.autodiff.gates import activations_of
from edgeml.autodiff.gru import gru, rnn
from edgeml.autodiff.lstm import lstm
from edgeml.autodiff.rules import Grads, vjp_all

CELLS: dict[str, Cell] = {"LSTM": lstm, "GRU": gru, "RNN": rnn}
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_GRADIENTS = ("w", "r", "b", "", "h0", "c0", "peepholes")  # of the inputs behind X


@dataclass(frozen=True)
class _Layer:
    """The node, its inputs and what arrives, time first; and the steps that each row has, or ""."""

    g: GraphBuilder
    node: NodeProto
    x: str
    inputs: tuple[str, ...]  # eight, "" for those that are not there
    dys: tuple[str, ...]  # of Y (T, D, B, H), Y_h and Y_c
    lengths: str
    mask: str  # (T, B, 1)

    @property
    def batch_first(self) -> bool:
        return bool(attributes(self.node).get("layout", 0))

    @property
    def states_on(self) -> int:
        """The axis of the directions in initial and last states."""
        return 1 if self.batch_first else 0

    def backwards(self, index: int) -> bool:
        way = attributes(self.node).get("direction", b"forward").decode()
        return way == "reverse" or index == 1

    def turned(self, name: str) -> str:
        """Return a sequence (T, B, ...) backwards, of each row the steps that it has."""
        g = self.g
        if self.lengths:
            turned = g.op("ReverseSequence", name, self.lengths, batch_axis=1, time_axis=0)
        else:
            turned = g.op("Slice", name, g.ints([-1]), g.ints([-(2**31)]), g.ints([0]), g.ints([-1]))
        _same(g, turned, name)
        return turned


@vjp_all(*CELLS, refuses="activations that fall where alpha is below 0")
def recurrent(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
    """Return the gradients of X, W, R, B, sequence_lens, initial_h, initial_c and P."""
    layer = _read(g, node, dys)
    directions = 2 if attributes(node).get("direction") == b"bidirectional" else 1
    walks = [CELLS[node.op_type](g, _direction(layer, index)) for index in range(directions)]
    _take_its_place(layer, walks)
    dxs = [layer.turned(w.found.x) if layer.backwards(index) else w.found.x for index, w in enumerate(walks)]
    x = dxs[0] if directions == 1 else g.op("Add", *dxs)
    grads: list[str | None] = [g.op("Transpose", x, perm=[1, 0, 2]) if layer.batch_first else x]
    for name in _GRADIENTS[: len(node.input) - 1]:
        parts = [getattr(walk.found, name) for walk in walks] if name else [""]
        axis = layer.states_on if name in ("h0", "c0") else 0
        grads.append(_stacked(g, parts, axis=axis) if all(parts) else None)
    return tuple(grads)


def _read(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> _Layer:
    inputs = (*node.input, *[""] * 8)[:8]
    arriving = [name or "" for name in (*dys, None, None, None)[:3]]
    x = inputs[0]
    if attributes(node).get("layout", 0):
        x = g.op("Transpose", x, perm=[1, 0, 2])
        g.dtypes[x] = g.dtypes[inputs[0]]
        arriving[0] = arriving[0] and g.op("Transpose", arriving[0], perm=[1, 2, 0, 3])
    lengths = mask = ""
    if inputs[4]:
        lengths = g.op("Cast", inputs[4], to=TensorProto.INT64)
        steps = g.op("Gather", g.op("Shape", x), g.const(0, dtype=np.int64))
        number = g.op("Range", g.const(0, dtype=np.int64), steps, g.const(1, dtype=np.int64))
        mask = g.op("Less", g.op("Unsqueeze", number, g.ints([1, 2])), g.op("Unsqueeze", lengths, g.ints([0, 2])))
        g.dtypes[mask] = TensorProto.BOOL
    return _Layer(g, node, x, inputs, tuple(arriving), lengths, mask)


def _direction(layer: _Layer, index: int) -> Direction:
    g, node, options = layer.g, layer.node, attributes(layer.node)
    hidden, gates = int(options["hidden_size"]), GATES[node.op_type]
    _, w, r, bias, _, h0, c0, peepholes = layer.inputs
    x = layer.turned(layer.x) if layer.backwards(index) else layer.x
    zero = g.op("ConstantOfShape", g.dims(layer.x, (1, 2), hidden), value=_zero(g, layer.x))
    axis = layer.states_on
    starts = [_one(g, name, index, axis=axis) if name else zero for name in (h0, c0, *layer.dys[1:])]
    g.dtypes |= dict.fromkeys(starts, g.dtypes[layer.x])
    bw, br = ("", "")
    if bias:
        bw, br = g.ops("Split", _one(g, bias, index), g.ints([gates * hidden] * 2), outputs=2, axis=0)
    dy = _one(g, layer.dys[0], index, axis=1) if layer.dys[0] else ""
    dy = layer.turned(dy) if dy and layer.backwards(index) else dy
    if dy and layer.mask:
        dy = g.op("Where", layer.mask, dy, g.const(0, like=layer.x))
    sizes = g.shapes.get(w, (None,))
    return Direction(
        x=x,
        w=_one(g, w, index),
        r=_one(g, r, index),
        bw=bw,
        br=br,
        peepholes=_one(g, peepholes, index) if peepholes else "",
        h0=starts[0],
        c0=starts[1],
        mask=layer.mask,
        dy=dy,
        dh=starts[2],
        dc=starts[3],
        hidden=hidden,
        inputs=sizes[-1] if isinstance(sizes[-1], int) else None,
        gates=gates,
        activations=activations_of(node)[index],
        clip=float(options.get("clip", 0.0)),
        reset_last=bool(options.get("linear_before_reset", 0)),
        coupled=bool(options.get("input_forget", 0)),
    )


def _take_its_place(layer: _Layer, walks: Sequence[Walk]) -> None:
    """Let the outputs of the node come from `walks`, which compute them anyway."""
    g, outputs = layer.g, (*layer.node.output, "", "", "")[:3]
    steps = []
    for index, walk in enumerate(walks):
        every = walk.every
        if layer.mask:
            every = g.op("Where", layer.mask, every, g.const(0, like=layer.x))
        steps.append(layer.turned(every) if layer.backwards(index) else every)
    every = _stacked(g, steps, axis=1)
    if layer.batch_first:
        every = g.op("Transpose", every, perm=[2, 0, 1, 3])
    h = _stacked(g, [walk.h for walk in walks], axis=layer.states_on)
    made = {outputs[0]: every, outputs[1]: h}
    if outputs[2]:
        made[outputs[2]] = _stacked(g, [walk.c for walk in walks], axis=layer.states_on)
    made.pop("", None)
    if not set(made.values()) & set(g.instead.values()):  # an equal layer is not made twice
        g.instead |= made


def _one(g: GraphBuilder, name: str, index: int, *, axis: int = 0) -> str:
    return g.op("Gather", name, g.const(index, dtype=np.int64), axis=axis)


def _stacked(g: GraphBuilder, names: Sequence[str], *, axis: int) -> str:
    where = g.ints([axis])
    parts = [g.op("Unsqueeze", name, where) for name in names]
    return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=axis)


def _same(g: GraphBuilder, name: str, other: str) -> None:
    """Note that `name` has the type and the shape of `other`."""
    if other in g.dtypes:
        g.dtypes[name] = g.dtypes[other]
    if other in g.shapes:
        g.shapes[name] = g.shapes[other]


def _zero(g: GraphBuilder, like: str) -> TensorProto:
    return numpy_helper.from_array(np.zeros(1, g.numpy_type(like)))
