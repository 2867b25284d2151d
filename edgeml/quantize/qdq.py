"""A float graph written anew in QDQ form: which operators become 8-bit, and with which scales.

    Plan.of(float ModelProto, ...) -> Plan;  write(proto, plan, ranges) -> quantized ModelProto

Products (Conv, Gemm, MatMul) are quantized; Relu and Clip fold into the rounding after them; operators that can stay
in 8 bits between two products (pooling, Add, Concat, Reshape, ...) do so. Weights are signed and symmetric, biases have
32 bits, and a Gemm or MatMul whose answer goes to a float operator gives floats itself. The numbers are those of
Jacob et al. 2018, "Quantization and training of neural networks for efficient integer-arithmetic-only inference".
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.graph.proto import attribute
from edgeml.quantize.calibration import Range

Activations = Literal["uint8", "int8"]
LEVELS = 255
TINY = float(np.finfo(np.float32).tiny) * LEVELS
MAX_BIAS = 1 << 30
SAME_SCALE = frozenset({"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Slice", "DepthToSpace"})
RESCALED = frozenset({"Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool", "LeakyRelu", "Sigmoid"})
DATA_INPUTS = {"Add": 2, "Mul": 2}  # inputs that must be 8-bit; one where not said, all of a Concat
FOLDING = frozenset({"Conv", "Gemm", "MatMul", "Add"})  # Relu and Clip after these cost nothing


@dataclass(frozen=True)
class Form:
    """How numbers are written: activations asymmetric, weights symmetric."""

    activations: Activations = "uint8"
    per_channel: bool = True


@dataclass
class Plan:
    """What becomes 8-bit: node names, tensors that are rounded, and activations that fold into their producer."""

    products: list[str]
    followers: set[str] = field(default_factory=set)
    tails: dict[str, str] = field(default_factory=dict)  # output of a quantized node -> output of the folded activation
    rounded: dict[str, str] = field(default_factory=dict)  # tensor -> the tensor whose range it takes
    entries: set[str] = field(default_factory=set)  # of these, the ones that a float operator or the caller makes

    @property
    def tensors(self) -> list[str]:
        """The tensors whose ranges are needed."""
        return sorted(set(self.rounded.values()))


def candidates(proto: ModelProto) -> list[str]:
    """Return the names of the nodes that can become 8-bit products, in graph order."""
    weights = {t.name: t for t in proto.graph.initializer}
    floats = _float_tensors(proto)
    return [n.name for n in proto.graph.node if _is_product(n, weights, floats)]


def plan(proto: ModelProto, floats: Set[str] = frozenset()) -> Plan:
    """Return what becomes 8-bit when the products named in `floats` stay as they are."""
    return _Planner(proto, floats).plan()


class _Planner:
    def __init__(self, proto: ModelProto, floats: Set[str]) -> None:
        self.nodes = list(proto.graph.node)
        self.weights = {t.name: t for t in proto.graph.initializer}
        self.outputs = {value.name for value in proto.graph.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.made = Plan([name for name in candidates(proto) if name not in floats])
        self.products = set(self.made.products)

    def plan(self) -> Plan:
        self._follow()
        self._prune()
        self._fold()
        self._round()
        return self.made

    def _chosen(self, node: NodeProto) -> bool:
        return node.name in self.products or node.name in self.made.followers

    def _follow(self) -> None:
        """Mark every operator whose data come from quantized ones and that can stay in 8 bits."""
        small = {self._after(node) for node in self.nodes if node.name in self.products}
        for node in self.nodes:
            if node.name not in self.products and _can_follow(node, small, self.weights):
                self.made.followers.add(node.name)
                small.add(self._after(node))

    def _prune(self) -> None:
        """Drop the followers after which no product comes: rounding there would gain nothing."""
        for node in reversed(self.nodes):
            if node.name in self.made.followers:
                readers = self.readers.get(self._after(node), [])
                if not readers or not any(self._chosen(reader) for reader in readers):
                    self.made.followers.discard(node.name)

    def _fold(self) -> None:
        for node in self.nodes:
            after = self._after(node) if self._chosen(node) else node.output[0]
            if after != node.output[0] and self._stays_small(after, node):
                self.made.tails[node.output[0]] = after

    def _after(self, node: NodeProto) -> str:
        """Return the output of `node`, or of the activation that folds into it."""
        readers = self.readers.get(node.output[0], [])
        alone = len(readers) == 1 and node.output[0] not in self.outputs and node.op_type in FOLDING
        return str(readers[0].output[0] if alone and _folds(readers[0], self.weights) else node.output[0])

    def _stays_small(self, tensor: str, node: NodeProto) -> bool:
        """Whether the output of a quantized node is rounded: after a Conv always, else if all readers take 8 bits."""
        if node.op_type not in ("Gemm", "MatMul"):
            return True
        readers = self.readers.get(tensor, [])
        return bool(readers) and tensor not in self.outputs and all(self._chosen(reader) for reader in readers)

    def _round(self) -> None:
        rounded, tails = self.made.rounded, self.made.tails
        makers: set[str] = set()
        for node in filter(self._chosen, self.nodes):
            for name in data_inputs(node, self.weights):
                rounded.setdefault(name, name)
            after = tails.get(node.output[0], node.output[0])
            if self._stays_small(after, node):
                source = rounded[node.input[0]] if node.op_type in SAME_SCALE else after
                rounded[after] = source
                makers.add(after)
        self.made.entries = set(rounded) - makers


def data_inputs(node: NodeProto, weights: Mapping[str, TensorProto]) -> list[str]:
    """Return the inputs of a quantized node that are activations."""
    if node.op_type == "Concat":
        return list(node.input)
    count = 2 if node.op_type in ("Add", "Mul", "MatMul") else 1
    return [name for name in node.input[:count] if name not in weights]


def _can_follow(node: NodeProto, small: Set[str], weights: Mapping[str, TensorProto]) -> bool:
    if node.op_type not in SAME_SCALE | RESCALED or node.domain not in ("", "ai.onnx") or len(node.output) != 1:
        return False
    names = list(node.input) if node.op_type == "Concat" else node.input[: DATA_INPUTS.get(node.op_type, 1)]
    if any(name in weights for name in node.input[: len(names)]):
        return False
    if node.op_type in ("Add", "Mul") and node.input[0] == node.input[1]:
        return False
    return all(name in small for name in names)


def _folds(node: NodeProto, weights: Mapping[str, TensorProto]) -> bool:
    """Whether rounding to a range that starts at zero does all that this activation does."""
    if node.op_type == "Relu":
        return True
    if node.op_type != "Clip" or len(node.input) < 2 or node.input[1] not in weights:
        return False
    high = node.input[2] if len(node.input) > 2 else ""
    least = float(numpy_helper.to_array(weights[node.input[1]]))
    return least == 0 and (not high or (high in weights and float(numpy_helper.to_array(weights[high])) > 0))


def _float_tensors(proto: ModelProto) -> set[str]:
    values = [*proto.graph.value_info, *proto.graph.input, *proto.graph.output]
    return {value.name for value in values if value.type.tensor_type.elem_type == TensorProto.FLOAT}


def _is_product(node: NodeProto, weights: Mapping[str, TensorProto], floats: Set[str]) -> bool:
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[0] not in floats:
        return False
    right = weights.get(node.input[1])
    if node.op_type == "MatMul" and right is None:
        return node.input[1] in floats and node.input[0] != node.input[1]
    if right is None or right.data_type != TensorProto.FLOAT:
        return False
    if len(node.input) > 2 and node.input[2]:
        bias = weights.get(node.input[2])
        if bias is None or bias.data_type != TensorProto.FLOAT or len(bias.dims) != 1:
            return False
    if node.op_type == "MatMul":
        return len(right.dims) == 2
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        return plain and not attribute(node, "transA", 0)
    return True


def write(proto: ModelProto, made: Plan, ranges: Mapping[str, Range], *, form: Form) -> ModelProto:
    """Return a copy of `proto` in which what `made` chose is 8-bit, with the scales of `ranges`."""
    return _Writer(proto, made, (ranges, form)).write()


class _Writer:
    def __init__(self, proto: ModelProto, made: Plan, how: tuple[Mapping[str, Range], Form]) -> None:
        self.proto, self.made = ModelProto(), made
        self.proto.CopyFrom(proto)
        self.ranges, self.form = how
        self.weights = {t.name: t for t in proto.graph.initializer}
        self.nodes: list[NodeProto] = []
        self.scales: dict[str, np.float32] = {}
        self.tensors: dict[str, TensorProto] = {}
        self.chosen = set(made.products) | made.followers

    def write(self) -> ModelProto:
        for value in self.proto.graph.input:
            self._enter(value.name)
        folded = set(self.made.tails.values())
        for node in self.proto.graph.node:
            if node.output and node.output[0] in folded:
                continue
            self._node(node)
            for name in node.output:
                self._enter(name)
        del self.proto.graph.node[:], self.proto.graph.value_info[:]
        self.proto.graph.node.extend(self.nodes)
        self.proto.graph.initializer.extend(self.tensors[name] for name in sorted(self.tensors))
        return self.proto

    def _node(self, node: NodeProto) -> None:
        if node.name not in self.chosen:
            self.nodes.append(node)
            return
        plain = NodeProto()
        plain.CopyFrom(node)
        for name in data_inputs(node, self.weights):
            small = f"{name}_dq" if name in self.made.entries else name
            plain.input[:] = [small if old == name else old for old in plain.input]
        if node.name in self.made.products and node.input[1] in self.weights:
            self._weigh(plain, node)
        after = self.made.tails.get(node.output[0], node.output[0])
        self.nodes.append(plain)
        if after in self.made.rounded:
            plain.output[0] = f"{after}_float"
            self._pair(plain.output[0], after, after)

    def _enter(self, name: str) -> None:
        if name in self.made.entries:
            self._pair(name, f"{name}_dq", name)

    def _pair(self, source: str, out: str, tensor: str) -> None:
        scale, zero = self._params(tensor)
        self.nodes.append(helper.make_node("QuantizeLinear", [source, scale, zero], [f"{tensor}_q"], f"{tensor}_Q"))
        self.nodes.append(helper.make_node("DequantizeLinear", [f"{tensor}_q", scale, zero], [out], f"{tensor}_DQ"))

    def _params(self, tensor: str) -> tuple[str, str]:
        root = self.made.rounded[tensor]
        low, high = self.ranges[root]
        scale = np.float32(max(high - low, TINY) / LEVELS)
        least = 0 if self.form.activations == "uint8" else -128
        zero = np.clip(np.round(least - low / scale), least, least + LEVELS)
        self.scales[root] = scale
        self._store(f"{root}_scale", scale)
        self._store(f"{root}_zero", np.array(zero, self.form.activations))
        return f"{root}_scale", f"{root}_zero"

    def _store(self, name: str, array: np.ndarray | np.float32) -> str:
        self.tensors[name] = numpy_helper.from_array(np.asarray(array), name)
        return name

    def _weigh(self, plain: NodeProto, node: NodeProto) -> None:
        """Replace the weight and the bias of a product by 8 and 32 bits with their scales."""
        weight = numpy_helper.to_array(self.weights[node.input[1]])
        axis = output_axis(node)
        entry = self.scales[self.made.rounded[node.input[0]]]
        bias = numpy_helper.to_array(self.weights[node.input[2]]) if len(node.input) > 2 and node.input[2] else None
        scale = weight_scales(weight, axis if self.form.per_channel else None)
        if bias is not None:  # 32 bits have to hold the bias at the scale of the products
            scale = np.maximum(scale, np.abs(bias if scale.ndim else bias.max()) / (entry * MAX_BIAS)).astype(
                np.float32
            )
        spread = scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)]) if scale.ndim else scale
        small = np.clip(np.round(weight / spread), -127, 127).astype(np.int8)
        names = [self._store(f"{node.name}_{part}", a) for part, a in (("w", small), ("ws", scale))]
        zero = self._store(f"{node.name}_wz", np.zeros(scale.shape, np.int8))
        out, per = f"{node.name}_weight", _axis(axis, scale)
        self.nodes.append(helper.make_node("DequantizeLinear", [*names, zero], [out], f"{out}_DQ", **per))
        plain.input[1] = out
        if bias is not None:
            product = np.asarray(entry * scale, np.float32)
            whole = np.round(bias.astype(np.float64) / product).astype(np.int32)
            names = [self._store(f"{node.name}_{part}", a) for part, a in (("b", whole), ("bs", product))]
            per = _axis(0, product)
            self.nodes.append(
                helper.make_node("DequantizeLinear", names, [f"{node.name}_bias"], f"{node.name}_B", **per)
            )
            plain.input[2] = f"{node.name}_bias"


def _axis(axis: int, scale: np.ndarray) -> dict[str, Any]:
    return {"axis": axis} if scale.ndim else {}


def output_axis(node: NodeProto) -> int:
    """Return the axis of the output channels in the weight of a product."""
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1


def weight_scales(weight: np.ndarray, axis: int | None) -> np.ndarray:
    """Return the symmetric scale of `weight`, one per index of `axis`, or one for all (0-d)."""
    others = None if axis is None else tuple(i for i in range(weight.ndim) if i != axis)
    most = np.abs(weight).max(axis=others)
    return np.asarray(np.maximum(most, TINY) / 127, np.float32)
