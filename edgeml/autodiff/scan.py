"""A Scan under construction: a body of few nodes that walks over the first axis of sequences, carrying states along.

Bodies read nothing but their own inputs: graphs that hold them can be renamed and copied node by node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from edgeml.autodiff.builder import GraphBuilder


class Body:
    """The nodes of one step; its inputs are named when it is made."""

    def __init__(self, g: GraphBuilder, *inputs: str) -> None:
        self._g = g
        self._prefix = g.fresh("step") + "/"
        self.inputs = tuple(self._prefix + name for name in inputs)
        self.nodes: list[NodeProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Return the one output of a new node."""
        name = f"{self._prefix}{op_type}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
        return name

    def parts(self, name: str, count: int) -> list[str]:
        """Return the `count` elements of `name` along its first axis, which they keep."""
        if count == 1:
            return [name]
        sizes = self.op("Constant", value=numpy_helper.from_array(np.ones(count, np.int64)))
        names = [f"{self._prefix}Split.{len(self.nodes)}.{index}" for index in range(count)]
        self.nodes.append(helper.make_node("Split", [name, sizes], names, axis=0))
        return names

    def joined(self, names: Sequence[str]) -> str:
        """Return `names` along their first axis."""
        return self.op("Concat", *names, axis=0) if len(names) > 1 else self.kept(names[0])

    def kept(self, name: str) -> str:
        """Return an output that hands a state on as it is."""
        return self.op("Identity", name)

    def scan(
        self, states: Sequence[str], sequences: Sequence[str], *, outputs: Sequence[str], reverse: bool = False
    ) -> tuple[str, ...]:
        """Return the last states, then the sequences of the other `outputs`; all in the order of time.

        `outputs` of the body are the new states, then one element of each sequence. `reverse` walks backwards.
        """
        g, of = self._g, g_type(self._g, [*states, *sequences])
        given = [helper.make_tensor_value_info(name, of, None) for name in self.inputs]
        results = [helper.make_tensor_value_info(name, of, None) for name in outputs]
        body = helper.make_graph(self.nodes, self._prefix, given, results)
        made = len(outputs) - len(states)
        ways: dict[str, Any] = {}
        if reverse:
            ways = {"scan_input_directions": [1] * len(sequences), "scan_output_directions": [1] * made}
        return g.ops(
            "Scan", *states, *sequences, outputs=len(outputs), body=body, num_scan_inputs=len(sequences), **ways
        )


def g_type(g: GraphBuilder, names: Sequence[str]) -> int:
    """Return the element type of the first of `names` whose type is known."""
    return int(next(g.dtypes[name] for name in names if name in g.dtypes))
