"""The graph under construction: fresh names, constants and common subexpressions shared.

Rules and losses call `op` and `const`; the builder appends plain default-domain nodes after those
of the forward graph and keeps what is known of their types and shapes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.autodiff.shapes import Shape, infer
from edgeml.errors import UnsupportedModel

_PREFIX = "ad."
_NAMED = ("Gather", "Slice")  # onnxruntime 1.19 fuses several of one tensor, and calls what it makes by their names


class GraphBuilder:
    """Nodes and constants that grow on top of `model`, which stays as it is."""

    def __init__(self, model: ModelProto) -> None:
        known = infer(model)
        self.dtypes, self.shapes = dict(known.dtypes), dict(known.shapes)
        self.opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
        self.forward = list(model.graph.node)
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, np.ndarray] = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.real: np.dtype[Any] = np.dtype(np.float32)  # of constants that nothing else decides, of `lr` and the loss
        self.active: set[str] = set()  # tensors that depend, differentiably, on what is differentiated for
        self.gated: set[str] = set()  # gradients that are 0 already where the Relu before is closed
        self.instead: dict[str, str] = {}  # tensors of the forward graph, and what is the same and faster to make
        self._made: dict[Any, tuple[str, ...]] = {}
        self._taken = {name for node in self.forward for name in (*node.input, *node.output)} | set(self.constants)
        self._count = 0

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Return the one output of a node `op_type`; an equal node is not made twice."""
        return self.ops(op_type, *inputs, outputs=1, **attributes)[0]

    def ops(self, op_type: str, *inputs: str, outputs: int, **attributes: Any) -> tuple[str, ...]:
        """Return the `outputs` names of a node `op_type`."""
        key = (op_type, inputs, outputs, repr(sorted((k, str(v)) for k, v in attributes.items())))
        if key not in self._made:
            names = tuple(self.fresh(op_type) for _ in range(outputs))
            if op_type in _NAMED:
                attributes.setdefault("name", names[0])
            self.nodes.append(helper.make_node(op_type, inputs, names, **attributes))
            self._made[key] = names
        return self._made[key]

    def const(self, value: npt.ArrayLike, *, like: str | None = None, dtype: npt.DTypeLike | None = None) -> str:
        """Return a constant of `value`, of the element type of the tensor `like`, of `dtype`, or of `real`."""
        array = np.asarray(value, dtype=self.numpy_type(like) if like else dtype or self.real)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._made:
            name = self.fresh("const")
            self.constants[name] = array
            self.dtypes[name] = helper.np_dtype_to_tensor_dtype(array.dtype)
            self.shapes[name] = array.shape
            self._made[key] = (name,)
        return self._made[key][0]

    def ints(self, values: Iterable[int]) -> str:
        """Return a 1-D int64 constant: axes, shapes, sizes."""
        return self.const(list(values), dtype=np.int64)

    @property
    def real_type(self) -> int:
        """ONNX's number for `real`."""
        return int(helper.np_dtype_to_tensor_dtype(self.real))

    def numpy_type(self, name: str) -> np.dtype[Any]:
        return np.dtype(helper.tensor_dtype_to_np_dtype(self.dtypes.get(name, TensorProto.FLOAT)))

    def shape(self, name: str, node: NodeProto) -> Shape:
        """Return the shape of `name`; raise UnsupportedModel, naming `node`, when not even its rank is known."""
        if name not in self.shapes:
            raise UnsupportedModel(
                f"{describe(node)}: the rank of its tensor {name!r} cannot be inferred; "
                f"declare the shapes of the graph inputs and convert the model again"
            )
        return self.shapes[name]

    def shape_of(self, name: str) -> str:
        """Return a 1-D int64 tensor of the sizes of `name`: a constant when they are all known."""
        sizes = self.shapes.get(name, (None,))
        if len(known := [size for size in sizes if isinstance(size, int)]) == len(sizes):
            return self.ints(known)
        return self.op("Shape", name)

    def dims(self, name: str, *parts: int | tuple[int, int]) -> str:
        """Return a 1-D int64 tensor of sizes: an int stands for itself, (axis, axis) for those axes of `name`, the
        second one excluded; a constant when all of them are known.
        """
        known: list[int] = []
        shape = self.shapes.get(name)
        for part in parts:
            found = (part,) if isinstance(part, int) else shape[slice(*part)] if shape is not None else (None,)
            if not all(isinstance(size, int) for size in found):
                break
            known += [int(size or 0) for size in found]
        else:
            return self.ints(known)
        own = self.op("Shape", name)
        pieces = [
            self.ints([part])
            if isinstance(part, int)
            else self.op("Slice", own, self.ints([part[0]]), self.ints([part[1]]), self.ints([0]))
            for part in parts
        ]
        return pieces[0] if len(pieces) == 1 else self.op("Concat", *pieces, axis=0)

    def mean(self, name: str, axes: Iterable[int], *, like: str) -> str:
        """Return the mean of `name`, which has the shape of `like`, over `axes`, kept with size 1."""
        over = list(axes)
        sizes = [self.shapes.get(like, (None,) * (1 + max(over)))[axis] for axis in over]
        if all(isinstance(size, int) for size in sizes):
            count = self.const(math.prod(int(size or 0) for size in sizes), like=like)
        else:
            taken = self.op("Gather", self.op("Shape", like), self.ints(over))
            count = self.op(
                "Cast", self.op("ReduceProd", taken, keepdims=0), to=self.dtypes.get(like, TensorProto.FLOAT)
            )
        return self.op("Div", self.op("ReduceSum", name, self.ints(over), keepdims=1), count)

    def zeros(self, name: str) -> str:
        """Return zeros of the type and shape of `name`."""
        zero = numpy_helper.from_array(np.zeros(1, self.numpy_type(name)))
        return self.op("ConstantOfShape", self.shape_of(name), value=zero)

    def reduced_to(self, gradient: str, name: str, *, out: Shape | None) -> str:
        """Return `gradient`, of the broadcast shape `out`, summed back to the shape of `name`."""
        shape = self.shapes.get(name)
        if shape is None or out is None:
            raise UnsupportedModel(f"broadcasting of {name!r}: its rank cannot be inferred; declare the input shapes")
        lead = len(out) - len(shape)
        pairs = list(zip(shape, out[lead:], strict=True))
        if any(_undecided(size, other) for size, other in pairs):
            return self._reduced_at_run_time(gradient, name, lead=lead)
        # ReduceSum with an empty list of axes sums everything: no axes, no node
        if inner := [lead + i for i, (size, other) in enumerate(pairs) if size == 1 and other != 1]:
            gradient = self.op("ReduceSum", gradient, self.ints(inner), keepdims=1)
        if lead:
            gradient = self.op("ReduceSum", gradient, self.ints(range(lead)), keepdims=0)
        return gradient

    def _reduced_at_run_time(self, gradient: str, name: str, *, lead: int) -> str:
        own, one = self.op("Shape", name), self.ints([1])
        aligned = self.op("Concat", self.ints([1] * lead), own, axis=0) if lead else own
        grown = self.op("Not", self.op("Equal", self.op("Shape", gradient), one))
        hit = self.op("NonZero", self.op("And", self.op("Equal", aligned, one), grown))
        axes = self.op("Reshape", hit, self.ints([-1]))
        total = self.op("ReduceSum", gradient, axes, keepdims=1, noop_with_empty_axes=1)
        return self.op("Reshape", total, own)

    def fresh(self, stem: str) -> str:
        """Return a name that nothing has yet."""
        while True:
            self._count += 1
            name = f"{_PREFIX}{stem}.{self._count}"
            if name not in self._taken:
                return name


def _undecided(size: object, other: object) -> bool:
    """Whether a dimension may or may not have been broadcast."""
    if isinstance(size, int) or other == 1:
        return False
    return size is None or size != other


def attributes(node: NodeProto) -> dict[str, Any]:
    """Return the attributes of `node` by name."""
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def describe(node: NodeProto) -> str:
    """Return what a message calls `node`: its operator and its name, or its first output."""
    operator = f"{node.domain}:{node.op_type}" if node.domain else node.op_type
    return f"operator {operator} (node {node.name or node.output[0]!r})"
