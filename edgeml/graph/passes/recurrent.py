"""Loops that are a recurrent layer become one GRU, RNN or LSTM operator.

tf2onnx writes every Keras layer but the plain LSTM as a Loop. A loop is taken for a layer when its step, run on random
rows by the reference evaluator, gives what a cell of the ONNX specification (opset 14: GRU, RNN, LSTM) gives with the
loop's own weights: nothing is recognised by name. Agreement within 1e-5; anything else stays a loop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, helper, numpy_helper

from edgeml.graph.passes.cells import Cell, find_cell
from edgeml.graph.passes.loops import Recurrence, infer_shapes, read_loop, step_of
from edgeml.graph.passes.wiring import Wiring, remove

OLDEST_OPSET = 13  # Squeeze takes its axes as an input from here on
END = np.iinfo(np.int32).max


def recurrent(proto: ModelProto) -> list[str]:
    """Replace every Loop that is a recurrent layer by the operator of that layer, to 1e-5 of its answers."""
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        return []
    notes, shapes = [], infer_shapes(proto)
    for node in [node for node in proto.graph.node if node.op_type == "Loop"]:
        wiring = Wiring(proto.graph)
        found = read_loop(wiring, node, shapes)
        cell = find_cell(step_of(found, opset), found.constants, found.units) if found else None
        if found is None or cell is None:
            continue
        _replace(wiring, found, cell)
        notes.append(f"a loop became {cell.operator}, {found.units} units")
    return notes


@dataclass(frozen=True)
class _Names:
    every: str
    last: str
    carried: str


def _replace(wiring: Wiring, found: Recurrence, cell: Cell) -> None:
    graph, loop = wiring.graph, found.loop
    stem = loop.output[found.last[0]] or loop.name
    weights = [wiring.add(f"{stem}.{part}", array) for part, array in zip("WRB", cell.weights, strict=True)]
    names = _Names(f"{stem}.every", f"{stem}.last", f"{stem}.carried")
    axis = {number: wiring.add(f"{stem}.axis{number}", np.array([number], np.int64)) for number in (0, 1)}
    starts, nodes = [], []
    for number, state in enumerate(found.starts):
        if _is_zero(wiring, state):
            starts.append("")
            continue
        starts.append(f"{stem}.start{number}")
        nodes.append(helper.make_node("Unsqueeze", [state, axis[0]], [starts[-1]]))
    nodes.append(
        helper.make_node(
            cell.operator,
            _trimmed([found.sequence, *weights, "", *starts]),
            [names.every, names.last, *([names.carried] if cell.operator == "LSTM" else [])],
            name=f"{stem}.{cell.operator}",
            hidden_size=found.units,
            **cell.attributes,
        )
    )
    for final, name in zip(found.last, (names.last, names.carried), strict=False):
        if loop.output[final]:
            nodes.append(helper.make_node("Squeeze", [name, axis[0]], [loop.output[final]]))
    for output in found.every:
        nodes.append(helper.make_node("Squeeze", [names.every, axis[1]], [loop.output[output]]))
        _read_the_last(wiring, loop.output[output], names.last)
    _put_in_place(graph, loop, nodes)


def _put_in_place(graph: GraphProto, loop: NodeProto, nodes: list[NodeProto]) -> None:
    position = next(index for index, node in enumerate(graph.node) if node is loop or id(node) == id(loop))
    remove(graph, [loop])
    for offset, node in enumerate(nodes):
        graph.node.insert(position + offset, node)


def _read_the_last(wiring: Wiring, every: str, last: str) -> None:
    """Let slices of the last step, (1, n, u), read the operator's own last state."""
    for node in wiring.readers.get(every, []):
        if node.op_type != "Slice" or len(node.input) < 4 or node.output[0] in wiring.outputs:
            continue
        begin, end, axes = (wiring.constant(name) for name in node.input[1:4])
        steps = wiring.constant(node.input[4]) if len(node.input) > 4 else np.array([1])
        if any(value is None for value in (begin, end, axes, steps)):
            continue
        if (list(begin), list(axes), list(steps)) == ([-1], [0], [1]) and end[0] >= END:  # type: ignore[arg-type, index]
            node.op_type = "Identity"
            node.input[:] = [last]


def _is_zero(wiring: Wiring, name: str) -> bool:
    """Whether a start state is zero whatever the batch."""
    value = wiring.constant(name)
    if value is not None:
        return not np.any(value)
    node = wiring.producer.get(name)
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        return not node.attribute or not np.any(numpy_helper.to_array(node.attribute[0].t))
    if node.op_type == "Expand":
        filling = wiring.constant(node.input[0])
        return filling is not None and not np.any(filling)
    return False


def _trimmed(names: list[str]) -> list[str]:
    while names and not names[-1]:
        names = names[:-1]
    return names
