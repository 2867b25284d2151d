"""Small networks with random weights, built layer by layer: what micro-models and reference nets are made of.

With `int8` every layer stands between QuantizeLinear and DequantizeLinear, as a quantized model does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

OPSET, IR = 17, 8  # what onnxruntime 1.16 and every later one loads
PATTERN = 251  # values before weights repeat; a prime, so that no two channels are alike
SCALE = "scale"
EVICTION = "evict_"  # how the names of nodes begin that are not what a micro-model is about
Activation = Literal["", "Relu", "Clip", "SiLU", "HardSwish"]


class Builder:
    """A graph under construction; every method returns the name of what it made. Shapes are kept along, rows first."""

    def __init__(self, shape: tuple[int, ...], *, int8: bool = False, seed: int = 0, swept: int = 0) -> None:
        """Begin with a float32 input "x" of `shape`, its row axis included; `swept` bytes are touched first."""
        self.int8, self._draw, self._swept = int8, np.random.default_rng(seed), swept
        self.nodes: list[NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {"x": shape}
        if int8:
            self.weights |= {SCALE: np.array(0.05, np.float32), "bscale": np.array(0.05 * 0.01, np.float32)}
            self.weights |= {"middle": np.array(128, np.uint8), "least": np.array(0, np.uint8)}
            self.weights |= {"wscale": np.array(0.01, np.float32), "wzero": np.array(0, np.int8)}

    def add(
        self, operator: str, inputs: list[str], shape: tuple[int, ...], *, domain: str = "", **attributes: Any
    ) -> str:
        """Add one operator with one output of `shape`."""
        name = f"{operator.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], name=name, domain=domain, **attributes))
        self.shapes[name] = shape
        return name

    def weight(self, *shape: int, scale: float = 0.05) -> str:
        """Add a float32 tensor of a repeated pattern, which compresses well on its way to a device."""
        name = f"w{len(self.weights)}"
        self.weights[name] = np.resize((self._draw.standard_normal(PATTERN) * scale).astype(np.float32), shape)
        return name

    def constant(self, value: float) -> str:
        """Add a float32 number."""
        name = f"c{len(self.weights)}"
        self.weights[name] = np.array(value, np.float32)
        return name

    def conv(
        self, x: str, out: int, *, kernel: int = 1, stride: int = 1, group: int = 1, act: Activation = "Relu"
    ) -> str:
        """Add a square convolution with bias that keeps the size (divided by `stride`), and its activation."""
        rows, channels, height, width = self.shapes[x]
        size = [-(-height // stride), -(-width // stride)]
        made = self.add(
            "Conv",
            [self._in(x), self.fixed(out, channels // group, kernel, kernel), self._bias(out)],
            (rows, out, *size),
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[(kernel - 1) // 2, (kernel - 1) // 2, kernel // 2, kernel // 2],
            group=group,
        )
        return self._out(self.activate(made, act))

    def dense(self, x: str, out: int, *, act: Activation = "") -> str:
        """Add x W + b over the last of two axes."""
        rows, inner = self.shapes[x]
        made = self.add("Gemm", [self._in(x), self.fixed(inner, out), self._bias(out)], (rows, out))
        return self._out(self.activate(made, act))

    def sum(self, a: str, b: str) -> str:
        return self._out(self.add("Add", [self._in(a), self._in(b)], self.shapes[a]))

    def activate(self, x: str, act: Activation) -> str:
        """Add an activation; in int8 any but Relu, which folds away, works on a dequantized value."""
        shape = self.shapes[x]
        x = self._in(x) if act not in ("", "Relu") else x
        match act:
            case "Relu":
                return self.add("Relu", [x], shape)
            case "Clip":
                return self.add("Clip", [x, self.constant(0.0), self.constant(6.0)], shape)
            case "SiLU":
                return self.add("Mul", [x, self.add("Sigmoid", [x], shape)], shape)
            case "HardSwish":
                return self.add("Mul", [x, self.add("HardSigmoid", [x], shape, alpha=1 / 6, beta=0.5)], shape)
        return x

    def trees(self, operator: str, x: str, shape: tuple[int, ...], **attributes: Any) -> str:
        """Add a tree ensemble, and return its scores."""
        scores, domain = f"scores{len(self.nodes)}", "ai.onnx.ml"
        outputs = ["label", scores] if operator.endswith("Classifier") else [scores]
        self.nodes.append(helper.make_node(operator, [x], outputs, name=scores, domain=domain, **attributes))
        self.shapes[scores] = shape
        return scores

    def pooled(self, x: str) -> str:
        """Average over the picture, and flatten."""
        rows, channels, *_ = self.shapes[x]
        mean = self.add("GlobalAveragePool", [x], (rows, channels, 1, 1))
        return self.add("Flatten", [mean], (rows, channels))

    def done(self, *outputs: str) -> bytes:
        """Return the serialized model whose outputs these are."""
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name]) for name in outputs]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shapes["x"])]
        nodes = self.nodes
        if self._swept:
            sweep = self._sweep()
            nodes = [*sweep, *(_instead(node, "x", sweep[-1].output[0]) for node in nodes)]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(nodes, "blocks", inputs, values, tensors)
        domains = {node.domain for node in self.nodes if node.domain}
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(name, 3) for name in sorted(domains))]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=IR)
        return bytes(model.SerializeToString())

    def _sweep(self) -> list[NodeProto]:
        """Return nodes that make SWEPT, a copy of the input, after `swept` bytes were written and read.

        So it is in the caches, and older weights are not, as inside a network: timed warm, a kernel with many
        weights looks twice as fast.
        """
        axes, shape = len(self.shapes["x"]), [1024, max(1, self._swept // 4096)]
        self.weights |= {"whole": np.array(shape), "one": np.array([1, 1]), "flat": np.array([1] * axes)}
        steps: list[tuple[str, list[str], dict[str, Any]]] = [
            ("ReduceMean", ["x"], {"keepdims": 1}),
            ("Reshape", [f"{EVICTION}0", "one"], {}),
            ("Expand", [f"{EVICTION}1", "whole"], {}),
            ("ReduceMean", [f"{EVICTION}2"], {"keepdims": 1}),
            ("Reshape", [f"{EVICTION}3", "flat"], {}),
            ("Add", ["x", f"{EVICTION}4"], {}),
        ]
        return [
            helper.make_node(operator, inputs, [f"{EVICTION}{index}"], name=f"{EVICTION}{index}", **attributes)
            for index, (operator, inputs, attributes) in enumerate(steps)
        ]

    def quantized(self, x: str) -> str:
        """Add QuantizeLinear and DequantizeLinear after `x`."""
        if x.startswith("dequantizelinear"):
            return x
        zero = "least" if x.startswith("relu") else "middle"  # so that onnxruntime drops the Relu, as in a real model
        whole = self.add("QuantizeLinear", [x, SCALE, zero], self.shapes[x])
        return self.add("DequantizeLinear", [whole, SCALE, zero], self.shapes[x])

    def _in(self, x: str) -> str:
        return self.quantized(x) if self.int8 else x

    def _out(self, x: str) -> str:
        return self.quantized(x) if self.int8 else x

    def fixed(self, *shape: int) -> str:
        """Add a weight; in int8 it is stored as such, and dequantized."""
        if not self.int8:
            return self.weight(*shape)
        name = f"w{len(self.weights)}"
        self.weights[name] = np.resize(self._draw.integers(-127, 128, PATTERN).astype(np.int8), shape)
        return self.add("DequantizeLinear", [name, "wscale", "wzero"], shape)

    def _bias(self, out: int) -> str:
        if not self.int8:
            return self.weight(out)
        name = f"b{len(self.weights)}"
        self.weights[name] = self._draw.integers(-1000, 1000, out).astype(np.int32)
        return self.add("DequantizeLinear", [name, "bscale"], (out,))


def _instead(node: NodeProto, name: str, other: str) -> NodeProto:
    """Return `node` with the input `other` where it has `name`."""
    if name not in node.input:
        return node
    made = NodeProto()
    made.CopyFrom(node)
    del made.input[:]
    made.input.extend(other if one == name else one for one in node.input)
    return made


def feeds(shape: tuple[int, ...], seed: int = 0) -> Mapping[str, np.ndarray]:
    """Return one query for a graph of this room."""
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}
