"""Pictures stay channels first from one layer that wants them so to the next.

Depthwise layers and weights' gradients transpose pictures to (channels, rows, height, width). What lies between two of
them, activations, normalizations and convolutions of one tap, does as well with that layout, or better: then it is done
there, and transposed back only for what cannot. Products of a tap become one for all rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from onnx import NodeProto, helper

from edgeml.autodiff.builder import GraphBuilder, attributes

TURN = [1, 0, 2, 3]
EACH = {  # operators of one element, or of elements at one place
    *("Abs", "Add", "And", "Cast", "Ceil", "Clip", "Div", "Elu", "Equal", "Erf", "Exp", "Floor", "Greater"),
    *("HardSigmoid", "HardSwish", "LeakyRelu", "Less", "Log", "Max", "Min", "Mul", "Neg", "Not", "Or", "Pow"),
    *("Reciprocal", "Relu", "Sigmoid", "Sign", "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where"),
}


def channels_first(g: GraphBuilder, nodes: Iterable[NodeProto]) -> list[NodeProto]:
    """Return nodes that make the same tensors, in order; what nothing reads any more is among them."""
    return _Facing(g, list(nodes)).written()


class _Facing:
    """`first` says which tensor is another with its channels first, `sizes` how large a picture of that is."""

    def __init__(self, g: GraphBuilder, nodes: list[NodeProto]) -> None:
        self.g, self.nodes = g, nodes
        self.made_by = {name: node for node in nodes for name in node.output}
        self.first: dict[str, str] = {}
        self.sizes: dict[str, tuple[int, int]] = {}
        self.out: list[NodeProto] = []
        self.same: dict[str, str] = {}

    def written(self) -> list[NodeProto]:
        for node in self.nodes:
            node.input[:] = [self.same.get(name, name) for name in node.input]
            if node.op_type == "Transpose" and attributes(node).get("perm") == TURN:
                self._turn(node)
            elif not self._done(node):
                self.out.append(node)
        return self.out

    def _turn(self, node: NodeProto) -> None:
        name, made = node.input[0], node.output[0]
        if name in self.first:  # twice turned
            self.same[made] = self.first[name]
            self.out.append(helper.make_node("Identity", [self.first[name]], [made]))
            return
        self.out.append(node)
        self._know(made, name, self._sizes(name))

    def _sizes(self, name: str) -> tuple[int, int] | None:
        """Return height and width of pictures in `name`, where they are known."""
        shape = self.g.shapes.get(name)
        maker = self.made_by.get(name)
        if shape is None and maker is not None and maker.op_type == "Reshape":
            shape = tuple(int(n) for n in self._constant(maker.input[1]) or ())
        if shape is None or len(shape) != 4:
            return None
        height, width = shape[2:]
        return (
            (height, width) if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0 else None
        )

    def _constant(self, name: str) -> list[int] | None:
        value = self.g.constants.get(name)
        return None if value is None else [int(n) for n in value.reshape(-1)]

    def _done(self, node: NodeProto) -> bool:
        """Write `node` for channels first, if what it reads is."""
        if not any(name in self.first for name in node.input):
            return False
        if node.op_type in EACH:
            return self._each(node)
        if node.input[0] not in self.first:
            return False
        if node.op_type == "Size":
            self.out.append(helper.make_node("Size", [self.first[node.input[0]]], node.output))
            return True
        if node.op_type == "BatchNormalization":
            return self._normalized(node)
        if node.op_type == "ReduceSum":
            return self._summed(node)
        return node.op_type == "Conv" and self._of_one_tap(node)

    def _each(self, node: NodeProto) -> bool:
        given = [self._operand(name) for name in node.input]
        if any(name is None for name in given):
            return False
        made = self._emit(node.op_type, *(name or "" for name in given), **attributes(node))
        self._give(node.output[0], made, self._of(node))
        return True

    def _operand(self, name: str) -> str | None:
        """Return what stands for `name` beside tensors with channels first; None where it would not fit."""
        if not name or name in self.first:
            return self.first.get(name, "")
        value, maker = self.g.constants.get(name), self.made_by.get(name)
        if value is not None and value.size == 1:
            return name
        if maker is not None and maker.op_type == "Reshape" and self._constant(maker.input[1]) == [-1, 1, 1]:
            return self._emit("Reshape", maker.input[0], self.g.ints([-1, 1, 1, 1]))
        if len(self.g.shapes.get(name, ())) != 4:
            return None
        self._know(name, self._emit("Transpose", name, perm=TURN), self._sizes(name))
        return self.first[name]

    def _normalized(self, node: NodeProto) -> bool:
        front = self.g.ints([0])
        wide = self._emit("Unsqueeze", self.first[node.input[0]], front)  # one picture of all rows
        made = self.g.fresh("first")
        options = attributes(node)
        self.out.append(
            helper.make_node("BatchNormalization", [wide, *node.input[1:]], [made, *node.output[1:]], **options)
        )
        self._give(node.output[0], self._emit("Squeeze", made, front), self._of(node))
        return True

    def _summed(self, node: NodeProto) -> bool:
        if len(node.input) < 2 or self._constant(node.input[1]) != [0, 2, 3] or attributes(node).get("keepdims", 1):
            return False
        names = [self.first[node.input[0]], self.g.ints([1, 2, 3])]
        self.out.append(helper.make_node("ReduceSum", names, node.output, keepdims=0))
        return True

    def _of_one_tap(self, node: NodeProto) -> bool:
        options, sizes = attributes(node), self._of(node)
        one = options.get("kernel_shape", self.g.shapes.get(node.input[1], (0, 0, 0))[2:])
        plain = (
            options.get("group", 1) == 1
            and not any(options.get("pads", []))
            and set(options.get("strides", [1])) == {1}
        )
        if sizes is None or set(one) != {1} or not plain or options.get("auto_pad", b"NOTSET") != b"NOTSET":
            return False
        weight = self._emit("Squeeze", node.input[1], self.g.ints([2, 3]))
        flat = self._emit("Reshape", self.first[node.input[0]], self.g.ints([0, -1]))
        made = self._emit("MatMul", weight, flat)
        if len(node.input) > 2:
            made = self._emit("Add", made, self._emit("Reshape", node.input[2], self.g.ints([-1, 1])))
        self._give(node.output[0], self._emit("Reshape", made, self.g.ints([0, -1, *sizes])), sizes)
        return True

    def _of(self, node: NodeProto) -> tuple[int, int] | None:
        """Return height and width of what `node` makes, one broadcast to another; None where one is not known."""
        found = [self.sizes.get(name) for name in node.input if name in self.first]
        known = [sizes for sizes in found if sizes]
        return (max(h for h, _ in known), max(w for _, w in known)) if known and len(known) == len(found) else None

    def _give(self, name: str, made: str, sizes: tuple[int, int] | None) -> None:
        """Say that `made` is `name` with channels first, and make that, too, for whoever reads it."""
        self.out.append(helper.make_node("Transpose", [made], [name], perm=TURN))
        self._know(name, made, sizes)

    def _know(self, name: str, made: str, sizes: tuple[int, int] | None) -> None:
        self.first[name] = made
        if sizes:
            self.sizes[name] = sizes

    def _emit(self, op_type: str, *inputs: str, **options: Any) -> str:
        made = self.g.fresh("first")
        self.out.append(helper.make_node(op_type, inputs, [made], **options))
        return made
