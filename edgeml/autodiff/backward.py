"""The reverse walk: gradients of one tensor for the chosen others, and the removal of dead nodes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from onnx import NodeProto, TensorProto

from edgeml.autodiff.builder import GraphBuilder
from edgeml.autodiff.rules import rule_for

UNLIKE = {
    "RandomNormal",
    "RandomUniform",
    "RandomNormalLike",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
}
FLAT = {  # steps, whose slope is 0 wherever they have one, and operators that read a shape alone
    *("Ceil", "EyeLike", "Floor", "Hardmax", "RandomNormalLike", "RandomUniformLike", "Round", "Shape", "Sign", "Size"),
}
FLOATS = {TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16}


def gradients(g: GraphBuilder, seeds: Mapping[str, str], wrt: Sequence[str]) -> dict[str, str | None]:
    """Return the gradient tensor of each name in `wrt`, None where no path leads; nodes go to `g`.

    `seeds` maps tensors of the forward graph to their gradients. Nodes that depend on nothing in
    `wrt` are never differentiated, so they need no rule. Raises UnsupportedModel for a missing rule.
    """
    nodes = live(g.forward, seeds)
    g.active = active_of(g, nodes, wrt)
    found: dict[str, list[str]] = {name: [gradient] for name, gradient in seeds.items()}
    for node in reversed(nodes):
        if not g.active.intersection(node.output) or not found.keys() & set(node.output):
            continue
        dys = [_total(g, found, name) for name in node.output]
        for name, gradient in zip(node.input, rule_for(node)(g, node, dys), strict=True):
            if gradient is not None and name in g.active:
                found.setdefault(name, []).append(gradient)
    return {name: _total(g, found, name) for name in wrt}


def live(nodes: Iterable[NodeProto], outputs: Iterable[str]) -> list[NodeProto]:
    """Return the nodes that `outputs` depend on, in order."""
    wanted, kept = set(outputs), []
    for node in reversed(list(nodes)):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted.update(node.input)
    return kept[::-1]


def in_order(nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Return the nodes, each behind those it reads from, and else as they stand."""
    left = list(nodes)
    made_by = {name: index for index, node in enumerate(left) for name in node.output if name}
    placed: list[NodeProto] = []
    begun: set[int] = set()
    for start in range(len(left)):
        path = [(start, False)]
        while path:
            index, ready = path.pop()
            if ready:
                placed.append(left[index])
            elif index not in begun:
                begun.add(index)
                needs = [made_by[name] for name in left[index].input if name in made_by]
                path += [(index, True), *((need, False) for need in reversed(needs) if need not in begun)]
    return placed


def shared(nodes: Iterable[NodeProto], wanted: Container[str] = ()) -> list[NodeProto]:
    """Return the nodes without those that repeat an earlier one, whose outputs are read in place of theirs.

    A node that makes one of the `wanted` tensors stays.
    """
    first: dict[tuple[object, ...], NodeProto] = {}
    instead: dict[str, str] = {}
    kept = []
    for node in nodes:
        node.input[:] = [instead.get(name, name) for name in node.input]
        options = tuple(sorted(attribute.SerializeToString(deterministic=True) for attribute in node.attribute))
        key = (node.domain, node.op_type, *node.input, "->", len(node.output), *options)
        same = first.setdefault(key, node)
        other = node.op_type in UNLIKE or [bool(n) for n in same.output] != [bool(n) for n in node.output]
        if same is node or other or any(name in wanted for name in node.output):
            kept.append(node)
        else:
            instead |= dict(zip(node.output, same.output, strict=True))
    return kept


def active_of(g: GraphBuilder, nodes: Sequence[NodeProto], wrt: Sequence[str]) -> set[str]:
    """Return the tensors that depend on `wrt` through floats alone: shapes, labels and masks carry no gradient."""
    active = set(wrt)
    for node in nodes:
        if node.op_type not in FLAT and active.intersection(node.input):
            active.update(name for name in node.output if g.dtypes.get(name, TensorProto.FLOAT) in FLOATS)
    return active


def _total(g: GraphBuilder, found: dict[str, list[str]], name: str) -> str | None:
    parts = found.get(name)
    if not parts:
        return None
    while len(parts) > 1:
        parts[:2] = [g.op("Add", parts[0], parts[1])]
    return parts[0]
