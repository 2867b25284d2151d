"""A Loop over the steps of a sequence, taken apart: its sequence, its states, its step as a model of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeml.graph.passes.wiring import Wiring
from edgeml.graph.proto import subgraphs
from edgeml.graph.tensors import dims

Step = Callable[[np.ndarray, list[np.ndarray]], list[np.ndarray]]
SHAPE_OPERATORS = {
    "Shape",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Gather",
    "Cast",
    "Reshape",
    "ReduceMax",
    "Max",
    "Min",
    "Concat",
}


@dataclass(frozen=True)
class Recurrence:
    """A Loop whose step maps one entry of `sequence` (steps, n, d) and the states (n, u) to the next states."""

    loop: NodeProto
    body: GraphProto
    sequence: str
    entry: str  # the tensor of the body that holds the step's rows (n, d)
    states: tuple[str, ...]  # as the body receives them
    nexts: tuple[str, ...]  # as the body leaves them
    starts: tuple[str, ...]  # outside the loop
    last: tuple[int, ...]  # output of the loop with the final value of each state
    every: tuple[int, ...]  # outputs of the loop that collect the first state of every step
    constants: Mapping[str, np.ndarray]
    units: int


@dataclass(frozen=True)
class _Carried:
    """A value that goes around the loop."""

    start: str
    value: ValueInfoProto
    end: str
    output: int


def read_loop(wiring: Wiring, loop: NodeProto, shapes: Mapping[str, tuple[int, ...]]) -> Recurrence | None:
    """Return the recurrence that `loop` is, or None; `shapes` are those of the graph around it."""
    body = subgraphs(loop)[0]
    count = len(loop.input) - 2
    same = {node.output[0]: node.input[0] for node in body.node if node.op_type == "Identity"}
    carried = [
        _Carried(loop.input[2 + i], body.input[2 + i], _resolve(body.output[1 + i].name, same), i) for i in range(count)
    ]
    fixed = {one.value.name: one.start for one in carried if one.end == one.value.name}
    moving = [one for one in carried if one.end != one.value.name]
    states = [one for one in moving if _is_state(one.value)]
    counters = {body.input[0].name, *(one.value.name for one in moving if not _is_state(one.value))}
    entries = {
        (node.input[0], node.output[0])
        for node in body.node
        if node.op_type == "Gather" and node.input[1] in counters and node.input[0] not in {v.name for v in body.input}
    }
    if len(entries) != 1 or not states:
        return None
    ((sequence, entry),) = entries
    constants = _constants(wiring, body, fixed)
    sizes = {dims(one.value)[1] for one in states}  # type: ignore[index]
    scans = [(count + i, _resolve(value.name, same)) for i, value in enumerate(body.output[1 + count :])]
    states.sort(key=lambda one: all(name != one.end for _, name in scans))  # the state that is collected comes first
    found = Recurrence(
        loop=loop,
        body=body,
        sequence=sequence,
        entry=entry,
        states=tuple(one.value.name for one in states),
        nexts=tuple(one.end for one in states),
        starts=tuple(one.start for one in states),
        last=tuple(one.output for one in states),
        every=tuple(output for output, _ in scans),
        constants=constants,
        units=sizes.pop() if len(sizes) == 1 else 0,
    )
    plain = found.units > 0 and all(name == found.nexts[0] for _, name in scans)
    return (
        found
        if plain and _closed(found) and _outputs_known(wiring, found) and _all_steps(wiring, found, shapes)
        else None
    )


def step_of(found: Recurrence, opset: int) -> Step:
    """Return the step as a function of the entry (n, d) and the states (n, u)."""
    inputs = [found.entry, *found.states]
    nodes = [node for node in _needed(found) if node.output[0] != found.entry]
    graph = helper.make_graph(
        nodes,
        "step",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in found.nexts],
        [numpy_helper.from_array(value, name) for name, value in found.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    evaluator = ReferenceEvaluator(model)

    def step(entry: np.ndarray, states: list[np.ndarray]) -> list[np.ndarray]:
        return list(evaluator.run(None, dict(zip(inputs, [entry, *states], strict=True))))

    return step


def _needed(found: Recurrence) -> list[NodeProto]:
    """Return the nodes of the body that the next states depend on, in order."""
    wanted, nodes = set(found.nexts), []
    for node in reversed(found.body.node):
        if wanted.intersection(node.output) and node.output[0] != found.entry:
            nodes.append(node)
            wanted.update(node.input)
    return nodes[::-1]


def _closed(found: Recurrence) -> bool:
    """Whether the next states depend on the entry, the states and constants alone."""
    known = {found.entry, *found.states, *found.constants, ""}
    for node in _needed(found):
        if subgraphs(node) or not known.issuperset(node.input):
            return False
        known.update(node.output)
    return known.issuperset(found.nexts)


def _outputs_known(wiring: Wiring, found: Recurrence) -> bool:
    """Whether only the last states and the collected states are read from the loop."""
    known = {*found.last, *found.every}
    read = wiring.readers.keys() | wiring.outputs
    return all(index in known or name not in read for index, name in enumerate(found.loop.output))


def _all_steps(wiring: Wiring, found: Recurrence, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the loop takes every step: its limit is the constant length, or comes from shapes alone.

    That such a shape is this sequence's is left to the comparison with the source at the end of every door.
    """
    limit = wiring.constant(found.loop.input[0])
    if limit is not None:
        length = shapes.get(found.sequence, (-1,))[0]
        return length < 0 or length == int(limit.reshape(-1)[0])
    names = [found.loop.input[0]]
    while names:
        node = wiring.producer.get(names.pop())
        if node is None or node.op_type == "Shape":
            continue
        if node.op_type not in SHAPE_OPERATORS:
            return False
        names += [name for name in node.input if name and wiring.constant(name) is None]
    return True


def _constants(wiring: Wiring, body: GraphProto, fixed: Mapping[str, str]) -> dict[str, np.ndarray]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in body.initializer}
    for node in body.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        for name in node.input:
            if name and name not in found and (value := wiring.constant(fixed.get(name, name))) is not None:
                found[name] = value
    return found


def _resolve(name: str, same: Mapping[str, str]) -> str:
    while name in same:
        name = same[name]
    return name


def _is_state(value: ValueInfoProto) -> bool:
    shape = dims(value)
    return value.type.tensor_type.elem_type == TensorProto.FLOAT and shape is not None and len(shape) == 2


def infer_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return the shapes that inference finds, -1 for an open size."""
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    found = {value.name: dims(value) for value in [*inferred.value_info, *inferred.input, *inferred.output]}
    return {name: shape for name, shape in found.items() if shape is not None}
