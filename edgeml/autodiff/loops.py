"""Loops made ready for differentiation: each one of a known number of turns becomes a Scan that reads only its inputs.

A Loop's number of turns is known before it starts when its condition is a constant truth; its counter becomes a
sequence; so it is when counters and constants alone decide it. What a body reads from outside becomes a state that no
turn changes, so that bodies can be copied, moved and differentiated on their own. Loops that stop by what they compute
from the inputs stay as they are: they have no gradient here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from edgeml.autodiff.builder import attributes
from edgeml.autodiff.countable import turns_of
from edgeml.autodiff.fold import fold

PREFIX = "ad.turn"


@dataclass
class _Scope:
    """One graph while its loops are taken apart: what is constant in it, and a count for fresh names."""

    constants: dict[str, np.ndarray]
    count: Iterator[int]
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    def fresh(self, stem: str) -> str:
        return f"{PREFIX}{next(self.count)}.{stem}"


def close(model: ModelProto) -> None:
    """Write the loops of `model`, and those inside them, as Scans whose bodies read nothing but their inputs.

    Of a branch whose condition follows from constants and shapes, what it comes to takes its place.
    """
    lift_constants(model.graph)
    fold(model)
    _close(model.graph, {}, iter(range(10**9)))


def body_of(node: NodeProto) -> GraphProto:
    """Return the graph that a loop repeats: itself, not a copy."""
    found: GraphProto = next(attribute.g for attribute in node.attribute if attribute.name == "body")
    return found


def free_names(graph: GraphProto) -> list[str]:
    """Return the names that `graph` reads and does not have, those of graphs inside it included."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    found: dict[str, None] = {}
    for node in graph.node:
        inner = [name for attribute in node.attribute for g in _graphs(attribute) for name in free_names(g)]
        found |= dict.fromkeys(name for name in (*node.input, *inner) if name not in own)
        own.update(node.output)
    return [*found, *(value.name for value in graph.output if value.name not in own)]


def renamed(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors of `graph` other names, in the graphs inside it too."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                renamed(inner, names)
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names.get(value.name, value.name)


def all_names(graph: GraphProto) -> list[str]:
    """Return every name that is made in `graph` or in a graph inside it."""
    found = [value.name for value in (*graph.input, *graph.initializer)]
    for node in graph.node:
        found += [name for name in node.output if name]
        for attribute in node.attribute:
            for inner in _graphs(attribute):
                found += all_names(inner)
    return found


def lift_constants(graph: GraphProto) -> None:
    """Turn the Constant nodes of numbers into initializers."""
    kept = []
    for node in graph.node:
        value = constant_value(node)
        if value is None:
            kept.append(node)
        else:
            graph.initializer.append(numpy_helper.from_array(value, node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)


def constant_value(node: NodeProto) -> np.ndarray | None:
    """Return the value of a Constant node of numbers, or None for any other node."""
    for name, value in attributes(node).items() if node.op_type == "Constant" else ():
        if name == "value":
            return numpy_helper.to_array(value)
        if name in ("value_float", "value_floats", "value_int", "value_ints"):
            return np.array(value, dtype=np.float32 if "float" in name else np.int64)
    return None


def _graphs(attribute: AttributeProto) -> Iterable[GraphProto]:
    return [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs


def _close(graph: GraphProto, around: Mapping[str, np.ndarray], count: Iterator[int]) -> None:
    lift_constants(graph)
    constants = {**around, **{t.name: numpy_helper.to_array(t) for t in graph.initializer}}
    scope = _Scope(constants, count)
    nodes: list[NodeProto] = []
    for node in _decided(graph, scope):
        if node.op_type in ("Loop", "Scan"):
            _close(body_of(node), constants, count)
            if node.op_type == "Loop":
                _count(node, nodes, scope)
            if node.op_type == "Scan" or _counted(node, scope):
                nodes += _closed(node, scope)
                continue
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in scope.extra.items())


def _decided(graph: GraphProto, scope: _Scope) -> Iterator[NodeProto]:
    """Yield the nodes of `graph`, each If of a constant condition as the nodes of its branch."""
    for node in graph.node:
        if node.op_type != "If" or node.input[0] not in scope.constants:
            yield node
            continue
        taken = "then_branch" if scope.constants[node.input[0]] else "else_branch"
        branch = GraphProto()
        branch.CopyFrom(next(attribute.g for attribute in node.attribute if attribute.name == taken))
        turn = scope.fresh("")
        renamed(branch, {name: turn + name for name in all_names(branch)})
        lift_constants(branch)
        scope.constants |= {tensor.name: numpy_helper.to_array(tensor) for tensor in branch.initializer}
        scope.extra |= {tensor.name: numpy_helper.to_array(tensor) for tensor in branch.initializer}
        yield from _decided(branch, scope)
        for value, name in zip(branch.output, node.output, strict=True):
            yield helper.make_node("Identity", [value.name], [name])


def _count(node: NodeProto, before: list[NodeProto], scope: _Scope) -> None:
    """Write the number of turns into a Loop whose condition hangs on counters and constants, in place of that."""
    body, constants = body_of(node), {**scope.constants, **scope.extra}
    turns = None if _counted(node, scope) else turns_of(node, body, before, constants=constants)
    if turns is not None:
        limit = scope.fresh("turns")
        scope.extra[limit] = np.array(turns, np.int64)
        node.input[0], node.input[1] = limit, ""
        body.output[0].name = body.input[1].name


def _counted(node: NodeProto, scope: _Scope) -> bool:
    """Return whether a Loop takes the number of turns it is given, whatever it computes."""
    body = body_of(node)
    start = scope.constants.get(node.input[1]) if node.input[1] else np.array(True)
    if not node.input[0] or start is None or not bool(start):
        return False
    makers = {node.output[0]: node.input[0] for node in body.node if node.op_type in ("Identity", "Cast")}
    last = body.output[0].name
    while last in makers:
        last = makers[last]
    inside = {t.name: numpy_helper.to_array(t) for t in body.initializer}
    truth = inside.get(last, scope.constants.get(last))
    return last == body.input[1].name or (truth is not None and bool(truth))


def _closed(node: NodeProto, scope: _Scope) -> list[NodeProto]:
    """Return a loop as a closed Scan, behind the nodes that make its counter."""
    before: list[NodeProto] = []
    if node.op_type == "Loop":
        before, node = _as_scan(node, scope)
    body, options = body_of(node), attributes(node)
    states = len(node.input) - options["num_scan_inputs"]
    _take_in(body, scope)
    outside = free_names(body)
    turn = scope.fresh("")
    renamed(body, {name: turn + name for name in (*all_names(body), *outside)})
    _own_outputs(body, turn)
    inputs, outputs = list(body.input), list(body.output)
    given = [helper.make_empty_tensor_value_info(turn + name) for name in outside]
    results = [helper.make_empty_tensor_value_info(f"{turn}{name}/kept") for name in outside]
    body.node.extend(helper.make_node("Identity", [a.name], [b.name]) for a, b in zip(given, results, strict=True))
    del body.input[:], body.output[:]
    body.input.extend([*inputs[:states], *given, *inputs[states:]])
    body.output.extend([*outputs[:states], *results, *outputs[states:]])
    taken, made = list(node.input), list(node.output)
    node.input[:] = [*taken[:states], *outside, *taken[states:]]
    node.output[:] = [*made[:states], *(f"{turn}{name}/last" for name in outside), *made[states:]]
    node.output[:] = [name or scope.fresh("unread") for name in node.output]
    return [*before, node]


def _as_scan(node: NodeProto, scope: _Scope) -> tuple[list[NodeProto], NodeProto]:
    """Return nodes that count the turns, and the Loop as a Scan over that count."""
    body = GraphProto()
    body.CopyFrom(body_of(node))
    turns, condition, *carried = list(body.input)
    truth = numpy_helper.from_array(np.array(True), condition.name)
    body.initializer.append(truth)
    outputs = list(body.output)[1:]
    del body.input[:], body.output[:]
    body.input.extend([*carried, turns])
    body.output.extend(outputs)
    flat, zero, one, counter, limit = (scope.fresh(stem) for stem in ("flat", "zero", "one", "counter", "limit"))
    scope.extra |= {flat: np.array([], np.int64), zero: np.array(0), one: np.array(1)}
    before = [
        helper.make_node("Reshape", [node.input[0], flat], [limit]),
        helper.make_node("Range", [zero, limit, one], [counter]),
    ]
    scan = helper.make_node("Scan", [*node.input[2:], counter], node.output, node.name, body=body, num_scan_inputs=1)
    return before, scan


def _take_in(body: GraphProto, scope: _Scope) -> None:
    """Give the body its own copy of the whole numbers and truths it reads: shapes, axes, places."""
    for name in free_names(body):
        value = scope.constants.get(name, scope.extra.get(name))
        if value is not None and value.dtype.kind not in "fO":
            body.initializer.append(numpy_helper.from_array(value, name))


def _own_outputs(body: GraphProto, turn: str) -> None:
    """Make every output of the body by a node of its own: no input and no tensor leaves it twice."""
    for index, value in enumerate(body.output):
        own = f"{turn}out.{index}"
        body.node.append(helper.make_node("Identity", [value.name], [own]))
        value.name = own
