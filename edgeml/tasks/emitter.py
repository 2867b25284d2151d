"""Nodes for one graph or loop body; the constants of all of them live in the outermost graph."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper


class Emitter:
    """A list of nodes whose names start with `prefix`, and the constants it shares with other emitters."""

    def __init__(self, prefix: str, constants: dict[str, np.ndarray]) -> None:
        self.prefix, self.constants = prefix, constants
        self.nodes: list[NodeProto] = []

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Return the one output of a new node `op_type`."""
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    def ops(self, op_type: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Return the `outputs` names of a new node `op_type`."""
        stem = f"{self.prefix}{op_type}.{len(self.nodes)}"
        names = tuple(f"{stem}.{i}" for i in range(outputs))
        self.nodes.append(helper.make_node(op_type, inputs, names, **attributes))
        return names

    def named(self, name: str, tensor: str) -> str:
        """Return `name`, an output that holds what `tensor` holds."""
        self.nodes.append(helper.make_node("Identity", [tensor], [name]))
        return name

    def transposed(self, matrix: str) -> str:
        """Return the transpose of a matrix that is to be multiplied.

        onnxruntime 1.19 fuses Transpose and MatMul into an operator that it has in float32 only, and its Gemm takes no
        matrix without rows; an axis of one in between keeps them apart.
        """
        turned = self.op("Transpose", self.op("Unsqueeze", matrix, self.vector(2)), perm=[1, 2, 0])
        return self.op("Squeeze", turned, self.vector(1))

    def number(self, value: int) -> str:
        """Return a 0-d int64 constant."""
        return self._constant(f"task.int.{value}", np.array(value, dtype=np.int64))

    def vector(self, *values: int) -> str:
        """Return a 1-D int64 constant: axes or a shape."""
        return self._constant("task.ints." + ".".join(map(str, values)), np.array(values, dtype=np.int64))

    def value(self, array: np.ndarray) -> str:
        """Return a constant that holds `array`; equal arrays are one constant."""
        digest = hashlib.sha256(array.tobytes()).hexdigest()[:12]
        return self._constant(f"task.{array.dtype}.{'x'.join(map(str, array.shape))}.{digest}", array)

    def real(self, value: float) -> str:
        """Return a 0-d float64 constant."""
        return self.value(np.array(value, dtype=np.float64))

    def instance(self, nodes: Iterable[NodeProto], given: Mapping[str, str]) -> None:
        """Add a copy of `nodes`, its outputs prefixed, that reads `given` tensors instead of its own."""
        names = dict(given)
        for node in nodes:
            copy = NodeProto()
            copy.CopyFrom(node)
            copy.name = node.name and self.prefix + node.name  # names of nodes must be unique too
            copy.input[:] = [names.get(name, name) for name in node.input]
            names |= {name: self.prefix + name for name in node.output if name}
            copy.output[:] = [names.get(name, "") for name in node.output]
            self.nodes.append(copy)

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = value
        return name


def outputs_of(model: ModelProto) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of every output of `model`, none of which may depend on its inputs' sizes."""
    found = {}
    for value in model.graph.output:
        tensor = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        found[value.name] = (dtype, tuple(dim.dim_value for dim in tensor.shape.dim))
    return found
