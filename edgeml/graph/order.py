"""Names and the order of a graph: every tensor made once, before it is read, and no circle.

GraphProto -> put_in_order -> the same graph with its nodes sorted, or UnsupportedModel naming what is wrong
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from onnx import GraphProto, NodeProto

from edgeml.errors import UnsupportedModel
from edgeml.graph.proto import subgraphs

DEEPEST = 12  # graphs within graphs; real networks have up to four


def put_in_order(graph: GraphProto, *, outer: frozenset[str] = frozenset(), depth: int = 0) -> int:
    """Sort the nodes of `graph` and of its subgraphs, in place, and return how many graphs were out of order.

    `outer` are the names that the graphs around it make. Raises UnsupportedModel for a tensor that is made twice or
    never, for a circle and for graphs nested deeper than `DEEPEST`.
    """
    if depth > DEEPEST:
        raise UnsupportedModel(f"its graphs are nested deeper than {DEEPEST}, which no network needs: export it again")
    made = _made_once(graph)
    outside = {*outer, *_given(graph), ""}
    reads = [set(_reads(node)) - outside for node in graph.node]
    for node, needed in zip(graph.node, reads, strict=True):
        if missing := needed - made.keys():
            raise UnsupportedModel(f"{shown(node)} reads {sorted(missing)[0]!r}, which nothing makes: export it again")
    for value in graph.output:
        if value.name not in outside and value.name not in made:
            raise UnsupportedModel(f"nothing makes its output {value.name!r}: export it again")
    order = _sorted(reads, made)
    if len(order) < len(reads):
        circle = " -> ".join(shown(graph.node[index]) for index in _circle(reads, made, set(order)))
        raise UnsupportedModel(f"its graph runs in a circle: {circle}; an ONNX graph has none, export it again")
    moved = order != sorted(order)
    if moved:
        nodes = [graph.node[index] for index in order]
        del graph.node[:]
        graph.node.extend(nodes)
    inside = frozenset({*outside, *made})
    return moved + sum(
        put_in_order(inner, outer=inside, depth=depth + 1) for node in graph.node for inner in subgraphs(node)
    )


def name_apart(graph: GraphProto) -> int:
    """Give nodes that share a name one of their own, in place, and return how many were renamed."""
    taken = Counter(node.name for node in graph.node if node.name)
    seen, renamed = set[str](), 0
    for node in graph.node:
        if not node.name or node.name not in seen:
            seen.add(node.name)
            continue
        number = 2
        while f"{node.name}_{number}" in taken or f"{node.name}_{number}" in seen:
            number += 1
        node.name = f"{node.name}_{number}"
        seen.add(node.name)
        renamed += 1
    return renamed


def shown(node: NodeProto) -> str:
    """Return how a message calls `node`."""
    name = node.name or next((name for name in node.output if name), "")
    return f"{node.op_type} {name[:60]!r}" if name else node.op_type


def _given(graph: GraphProto) -> Iterator[str]:
    yield from (value.name for value in graph.input)
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)


def _made_once(graph: GraphProto) -> dict[str, int]:
    """Return the node that makes each tensor; refuse a name that is given or made twice."""
    for what, names in (
        ("input", [value.name for value in graph.input]),
        ("output", [value.name for value in graph.output]),
        ("weight", list(_given(graph))[len(graph.input) :]),
    ):
        if twice := next((name for name, count in Counter(names).items() if count > 1), None):
            raise UnsupportedModel(f"it has the {what} {twice!r} twice: export it again")
    given, made = set(_given(graph)), dict[str, int]()
    for index, node in enumerate(graph.node):
        for name in node.output:
            if name and (name in given or name in made):
                raise UnsupportedModel(f"its tensor {name!r} is made twice, by {shown(node)} too: export it again")
            if name:
                made[name] = index
    return made


def _reads(node: NodeProto) -> Iterator[str]:
    """Return what `node` reads, the tensors from outside that its subgraphs read included."""
    yield from node.input
    for graph in subgraphs(node):
        own = {*_given(graph), *(name for inner in graph.node for name in inner.output)}
        read = [name for inner in graph.node for name in _reads(inner)]
        yield from (name for name in (*read, *(value.name for value in graph.output)) if name not in own)


def _sorted(reads: Sequence[Iterable[str]], made: Mapping[str, int]) -> list[int]:
    """Return the indices of the nodes such that each follows what it reads, as near to their order as can be."""
    waits = [len({made[name] for name in needed}) for needed in reads]
    readers: dict[int, list[int]] = {}
    for index, needed in enumerate(reads):
        for source in {made[name] for name in needed}:
            readers.setdefault(source, []).append(index)
    ready = [index for index, count in enumerate(waits) if not count]
    order = []
    while ready:
        index = heapq.heappop(ready)
        order.append(index)
        for reader in readers.get(index, ()):
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, reader)
    return order


def _circle(reads: Sequence[Iterable[str]], made: Mapping[str, int], done: set[int]) -> list[int]:
    """Return one circle among the nodes that never became ready, at most six of it."""
    index = next(index for index in range(len(reads)) if index not in done)
    path: list[int] = []
    while index not in path:
        path.append(index)
        index = next(made[name] for name in sorted(reads[index]) if made[name] not in done)
    circle = [*path[path.index(index) :], index][::-1]
    return circle if len(circle) <= 6 else [*circle[:5], circle[-1]]
