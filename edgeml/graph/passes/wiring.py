"""Who makes a tensor and who reads it, bodies of loops and branches included; rerouting readers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import GraphProto, NodeProto, numpy_helper

from edgeml.graph.proto import subgraphs


class Wiring:
    """The wires of one graph as they are now; make another after changing nodes."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.producer = {name: node for node in graph.node for name in node.output if name}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input}
        self.outputs = {value.name for value in graph.output}
        self.inner = {name for node in graph.node for body in subgraphs(node) for name in free_names(body)}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in graph.node:
            for name in {*node.input, *(free for body in subgraphs(node) for free in free_names(body))}:
                self.readers.setdefault(name, []).append(node)

    def constant(self, name: str) -> np.ndarray | None:
        """Return the value of a weight or of a Constant node's tensor, None for anything that is fed or computed."""
        if name in self.tensors and name not in self.inputs:
            return numpy_helper.to_array(self.tensors[name])
        node = self.producer.get(name)
        if node is not None and node.op_type == "Constant" and node.attribute[0].name == "value":
            return numpy_helper.to_array(node.attribute[0].t)
        return None

    def only_reader(self, name: str) -> NodeProto | None:
        """Return the node that alone reads `name`, if there is one and `name` is no output and inside no body."""
        readers = self.readers.get(name, [])
        alone = len(readers) == 1 and name not in self.outputs and name not in self.inner
        return readers[0] if alone and list(readers[0].input).count(name) == 1 else None

    def add(self, name: str, value: np.ndarray) -> str:
        """Put a weight into the graph and return its name, made unique."""
        unique, number = name, 0
        while unique in self.tensors or unique in self.producer or unique in self.inputs:
            number += 1
            unique = f"{name}_{number}"
        tensor = numpy_helper.from_array(np.asarray(value), unique)
        self.graph.initializer.append(tensor)
        self.tensors[unique] = tensor
        return unique


def free_names(body: GraphProto) -> Iterator[str]:
    """Yield the names that a body reads from the graphs around it."""
    own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
    for node in body.node:
        for name in (*node.input, *(free for inner in subgraphs(node) for free in free_names(inner))):
            if name and name not in own:
                yield name
        own.update(node.output)
    yield from (value.name for value in body.output if value.name not in own)


def reroute(graph: GraphProto, old: str, new: str) -> None:
    """Let every reader of `old`, in bodies too, read `new`; outputs of the graph stay as they are."""
    for node in graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        for body in subgraphs(node):
            if old in set(free_names(body)):
                reroute(body, old, new)
                for value in body.output:
                    value.name = new if value.name == old else value.name


def remove(graph: GraphProto, nodes: list[NodeProto]) -> None:
    """Take `nodes` out of `graph`."""
    gone = {id(node) for node in nodes}
    for index in reversed([i for i, node in enumerate(graph.node) if id(node) in gone]):
        del graph.node[index]
