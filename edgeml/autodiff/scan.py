"""A Scan under construction: a body of few nodes that walks over the first axis of sequences, carrying states along.

Bodies read nothing but their own inputs: graphs that hold them can be renamed and copied node by node. Cutting an
element out of a sequence, and putting one into it, copies nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, ValueInfoProto, helper, numpy_helper

from edgeml.autodiff.builder import GraphBuilder


class Body:
    """The nodes of one step, whose numbers are of the type of the tensor `like`; all but vectors are matrices."""

    def __init__(self, g: GraphBuilder, *, like: str) -> None:
        self._g, self._type, self._of = g, g.dtypes[like], g.numpy_type(like)
        self._prefix = g.fresh("step") + "/"
        self._nodes: list[NodeProto] = []
        self._states: dict[str, str] = {}  # of each name inside the tensor outside
        self._fixed: dict[str, str] = {}
        self._sequences: dict[str, str] = {}
        self._vectors: set[str] = set()

    def state(self, start: str) -> str:
        """Return the state that is `start` before the first step."""
        return self._taken(self._states, start)

    def fixed(self, value: str, *, vector: bool = False) -> str:
        """Return `value` inside: no step changes it."""
        inside = self._taken(self._fixed, value)
        if vector:
            self._vectors.add(inside)
        return inside

    def each(self, sequence: str) -> str:
        """Return the element of `sequence` that belongs to the step."""
        return self._taken(self._sequences, sequence)

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Return the one output of a new node."""
        name = f"{self._prefix}{op_type}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def const(self, value: float) -> str:
        return self.op("Constant", value=numpy_helper.from_array(np.array(value, self._of)))

    def walk(
        self, nexts: Sequence[str], every: Mapping[str, str], *, reverse: bool = False
    ) -> tuple[tuple[str, ...], dict[str, str]]:
        """Return the states after the last step, and by their keys the sequences of `every`, in the order of time.

        `nexts` are the states after a step, in the order in which they were named. What is "" in `every` stays "".
        `reverse` walks backwards.
        """
        made_here = {name for node in self._nodes for name in node.output} - set(nexts)
        elements = {key: name for key, name in every.items() if name}
        kept = [name if name in made_here else self.op("Identity", name) for name in elements.values()]
        # onnxruntime leaves a state that is handed on as its own input unwritten: copies are made
        copies = {self.op("Identity", inside): inside for inside in self._fixed}
        outside = self._states | self._fixed | self._sequences
        results = [*nexts, *copies, *kept]
        body = helper.make_graph(
            self._nodes,
            self._prefix,
            [self._described(name, self._g.dtypes.get(outer, self._type)) for name, outer in outside.items()],
            [self._described(name, self._type, like=copies.get(name, name)) for name in results],
        )
        ways: dict[str, Any] = {"num_scan_inputs": len(self._sequences)}
        if reverse:
            ways |= {"scan_input_directions": [1] * len(self._sequences), "scan_output_directions": [1] * len(kept)}
        names = self._g.ops("Scan", *outside.values(), outputs=len(results), body=body, **ways)
        self._g.dtypes |= dict.fromkeys(names, self._type)
        sequences = dict(zip(elements, names[len(results) - len(kept) :], strict=True))
        return names[: len(nexts)], {key: sequences.get(key, "") for key in every}

    def _taken(self, kind: dict[str, str], outside: str) -> str:
        inside = f"{self._prefix}in.{len(self._states) + len(self._fixed) + len(self._sequences)}"
        kind[inside] = outside
        return inside

    def _described(self, name: str, of: int, *, like: str = "") -> ValueInfoProto:
        """Return the type of a tensor inside and its rank, which onnxruntime wants to know, and cannot always tell."""
        return helper.make_tensor_value_info(name, of, [None] * (1 if (like or name) in self._vectors else 2))
