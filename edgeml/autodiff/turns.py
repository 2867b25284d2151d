"""VJP rule of Scan, and so of every Loop of a known number of turns (`loops.close` writes them as Scans).

Forwards each turn also keeps the states it began with. A second Scan walks backwards: it takes what a turn began with,
computes the turn again and hands on the gradients of the states. A state that no turn changes (a weight) collects its
gradient on the way, for the gradient of a copy is a sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.autodiff.backward import FLOATS, active_of, gradients, live
from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.loops import all_names, body_of, free_names, renamed
from edgeml.autodiff.rules import Grads, vjp_all
from edgeml.autodiff.shapes import Shape
from edgeml.errors import UnsupportedModel


@dataclass(frozen=True)
class _Turn:
    """One turn: its tensors as the body names them, with the directions of its sequences."""

    body: GraphProto
    states: tuple[str, ...]
    entries: tuple[str, ...]  # of the sequences it reads
    nexts: tuple[str, ...]
    elements: tuple[str, ...]  # of the sequences it writes
    reads: tuple[int, ...]
    writes: tuple[int, ...]

    def kept(self, index: int) -> bool:
        """Whether the state goes through every turn unchanged."""
        makers = {node.output[0]: node.input[0] for node in self.body.node if node.op_type == "Identity"}
        name = self.nexts[index]
        while name in makers:
            name = makers[name]
        return name == self.states[index]


@dataclass(frozen=True)
class _Adjoint:
    """The gradients inside one turn: for what, from what, and the builder that holds their nodes."""

    g: GraphBuilder
    states: tuple[int, ...]  # with a gradient
    entries: tuple[int, ...]
    seeds: dict[str, str]  # tensor of the turn -> its gradient
    found: dict[str, str | None]


@vjp_all("Scan", refuses="sequences on another axis than 0; branches inside; a number of turns that the values decide")
def scan(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
    turn = _turn(node)
    count = len(turn.states)
    written = [i for i in range(len(turn.elements)) if dys[count + i]]
    adjoint = _adjoint(g, node, turn, written=written)
    starts = [dys[i] or g.zeros(node.input[i]) for i in adjoint.states]
    grads: list[str | None] = [None] * len(node.input)
    made = _backwards(g, node, turn, adjoint=adjoint, starts=starts, arriving=[str(dys[count + i]) for i in written])
    for index, name in zip([*adjoint.states, *(count + i for i in adjoint.entries)], made, strict=True):
        grads[index] = name
    return tuple(grads)


def _turn(node: NodeProto) -> _Turn:
    options, body = attributes(node), body_of(node)
    if any(options.get("scan_input_axes", [])) or any(options.get("scan_output_axes", [])):
        raise UnsupportedModel(
            f"{describe(node)}: a sequence on another axis than 0 has no gradient rule; transpose it"
        )
    inner = [one for one in body.node if one.op_type != "Scan" and any(a.HasField("g") for a in one.attribute)]
    if inner or free_names(body):
        what = describe(inner[0]) if inner else f"it reads {free_names(body)[0]!r} from outside"
        raise UnsupportedModel(f"{describe(node)}: {what}: no gradient rule inside a loop")
    sequences = options["num_scan_inputs"]
    states = len(node.input) - sequences
    names, results = [value.name for value in body.input], [value.name for value in body.output]
    copy = GraphProto()
    copy.CopyFrom(body)
    return _Turn(
        copy,
        tuple(names[:states]),
        tuple(names[states:]),
        tuple(results[:states]),
        tuple(results[states:]),
        tuple(options.get("scan_input_directions", [0] * sequences)),
        tuple(options.get("scan_output_directions", [0] * (len(results) - states))),
    )


def _adjoint(g: GraphBuilder, node: NodeProto, turn: _Turn, *, written: list[int]) -> _Adjoint:
    """Differentiate one turn for what carries a gradient from turn to turn."""
    inner = GraphBuilder(_model_of(g, node, turn))
    inner.real = g.real
    count = len(turn.states)
    entries = [i for i, name in enumerate(node.input[count:]) if name in g.active and _is_float(g, name)]
    states = [i for i, name in enumerate(node.input[:count]) if name in g.active and _is_float(g, name)]
    while True:  # a state that starts as a constant has a gradient as soon as a turn puts something into it
        wrt = [*(turn.states[i] for i in states), *(turn.entries[i] for i in entries)]
        active = active_of(inner, turn.body.node, wrt)
        more = [i for i in range(count) if turn.nexts[i] in active and i not in states and _is_float(g, node.input[i])]
        if not more:
            break
        states += more
    states.sort()
    seeds = {}
    for name in [*(turn.nexts[i] for i in states), *(turn.elements[i] for i in written)]:
        seeds[name] = inner.fresh("seed")
        inner.dtypes[seeds[name]] = inner.dtypes.get(name, TensorProto.FLOAT)
        if name in inner.shapes:
            inner.shapes[seeds[name]] = inner.shapes[name]
    found = gradients(inner, {name: seed for name, seed in seeds.items() if name in active}, wrt)
    return _Adjoint(inner, tuple(states), tuple(entries), seeds, found)


def _model_of(g: GraphBuilder, node: NodeProto, turn: _Turn) -> ModelProto:
    """Return one turn as a model, its inputs described by what is known outside."""
    count, body = len(turn.states), GraphProto()
    body.CopyFrom(turn.body)
    described = []
    for index, value in enumerate(body.input):
        outer = node.input[index]
        shape: Shape | None = g.shapes.get(outer)
        if shape is not None and index >= count:
            shape = shape[1:]
        of = g.dtypes.get(outer) or value.type.tensor_type.elem_type
        described.append(helper.make_tensor_value_info(value.name, of, shape))
    del body.input[:]
    body.input.extend(described)
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", g.opset)])


def _is_float(g: GraphBuilder, name: str) -> bool:
    return g.dtypes.get(name, TensorProto.FLOAT) in FLOATS


def _backwards(
    g: GraphBuilder,
    node: NodeProto,
    turn: _Turn,
    *,
    adjoint: _Adjoint,
    starts: list[str],
    arriving: list[str],
) -> tuple[str, ...]:
    """Emit the second Scan; return the gradients of the states, then of the sequences, that `adjoint` names."""
    inner = adjoint.g
    wanted = [turn.states[i] for i in adjoint.states] + [turn.entries[i] for i in adjoint.entries]
    results = [adjoint.found[name] or _zeros(inner, name) for name in wanted]
    nodes = live([*inner.forward, *inner.nodes], results)
    read = {name for one in nodes for name in one.input} | set(results)
    seeds = list(adjoint.seeds.values())
    fixed = [i for i, name in enumerate(turn.states) if name in read and turn.kept(i)]
    taped = [i for i, name in enumerate(turn.states) if name in read and not turn.kept(i)]
    entries = [i for i, name in enumerate(turn.entries) if name in read]
    states = len(adjoint.states)
    if not taped and not entries and not seeds[states:]:
        entries = [0]  # a Scan counts its turns by a sequence, read or not
    inputs = [*seeds[:states], *(turn.states[i] for i in fixed), *(turn.states[i] for i in taped)]
    inputs += [*(turn.entries[i] for i in entries), *seeds[states:]]
    kept = [turn.states[i] for i in fixed]
    results = [*results[:states], *kept, *results[states:]]
    body = _body(inner, nodes, inputs, results=results)
    prefix = g.fresh("back") + "/"
    renamed(body, {name: prefix + name for name in all_names(body)})
    count = len(turn.states)
    carried = [*starts, *(node.input[i] for i in fixed)]
    sequences = [*_taped(g, node, taped), *(node.input[count + i] for i in entries), *arriving]
    written = [turn.writes[turn.elements.index(name)] for name in list(adjoint.seeds)[states:]]
    reads = [0] * len(taped) + [turn.reads[i] for i in entries] + written
    ways = {"scan_input_directions": [1 - way for way in reads]}
    if adjoint.entries:
        ways["scan_output_directions"] = [1 - turn.reads[i] for i in adjoint.entries]
    made = g.ops("Scan", *carried, *sequences, outputs=len(results), body=body, num_scan_inputs=len(sequences), **ways)
    return made[:states] + made[states + len(fixed) :]


def _zeros(g: GraphBuilder, name: str) -> str:
    return g.op("ConstantOfShape", g.op("Shape", name), value=numpy_helper.from_array(np.zeros(1, g.numpy_type(name))))


def _body(g: GraphBuilder, nodes: list[NodeProto], inputs: list[str], *, results: list[str]) -> GraphProto:
    """Return the graph of one turn backwards, each of its outputs made by a node of its own."""
    ends = [g.fresh("end") for _ in results]
    nodes = [*nodes, *(helper.make_node("Identity", [a], [b]) for a, b in zip(results, ends, strict=True))]
    read = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(value, name) for name, value in g.constants.items() if name in read]
    given = [helper.make_tensor_value_info(name, g.dtypes.get(name, TensorProto.FLOAT), None) for name in inputs]
    return helper.make_graph(
        nodes, "turn", given, [helper.make_empty_tensor_value_info(end) for end in ends], constants
    )


def _taped(g: GraphBuilder, node: NodeProto, states: list[int]) -> list[str]:
    """Let `node` keep what each turn began with, for these states; return the sequences."""
    body, made = body_of(node), []
    for index in states:
        inside, outside = f"{body.input[index].name}/began", g.fresh("began")
        body.node.append(helper.make_node("Identity", [body.input[index].name], [inside]))
        body.output.append(helper.make_empty_tensor_value_info(inside))
        node.output.append(outside)
        made.append(outside)
        g.dtypes[outside] = g.dtypes.get(node.input[index], TensorProto.FLOAT)
    for attribute in node.attribute:
        if attribute.name in ("scan_output_directions", "scan_output_axes"):
            attribute.ints.extend([0] * len(states))
    return made
