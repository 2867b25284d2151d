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
SCALE = "scale"
EVICTION = "evict_"  # how the names of nodes begin that are not what a micro-model is about
Activation = Literal["", "Relu", "SiLU", "HardSwish"]


class Builder:
    """A graph under construction; every method returns the name of what it made. Shapes are kept along, rows first."""

    def __init__(self, shape: tuple[int, ...], *, int8: bool = False, seed: int = 0) -> None:
        """Begin with a float32 input of `shape`, its row axis included."""
        self.int8, self._draw = int8, np.random.default_rng(seed)
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
        """Add a float32 tensor drawn from a normal distribution."""
        name = f"w{len(self.weights)}"
        self.weights[name] = (self._draw.standard_normal(shape) * scale).astype(np.float32)
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
            case "SiLU":
                return self.add("Mul", [x, self.add("Sigmoid", [x], shape)], shape)
            case "HardSwish":
                return self.add("Mul", [x, self.add("HardSigmoid", [x], shape, alpha=1 / 6, beta=0.5)], shape)
        return x

    def pooled(self, x: str) -> str:
        """Average over the picture, and flatten."""
        rows, channels, *_ = self.shapes[x]
        mean = self.add("GlobalAveragePool", [x], (rows, channels, 1, 1))
        return self.add("Flatten", [mean], (rows, channels))

    def done(self, *outputs: str) -> bytes:
        """Return the serialized model whose outputs these are."""
        values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, self.shapes[name]) for name in outputs]
        inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shapes["x"])]
        tensors = [numpy_helper.from_array(array, name) for name, array in self.weights.items()]
        graph = helper.make_graph(self.nodes, "blocks", inputs, values, tensors)
        domains = {node.domain for node in self.nodes if node.domain}
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(name, 3) for name in sorted(domains))]
        model: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=IR)
        return bytes(model.SerializeToString())

    def evicted(self, x: str, size: int) -> str:
        """Return a copy of `x` that is made after `size` bytes were read: it is in the caches, older weights are not.

        Inside a network other layers' weights do that; timed warm, a kernel with many weights looks twice as fast.
        """
        shape, first, columns = self.shapes[x], len(self.nodes), max(1, size // 4096)
        self.weights |= {"evict": np.ones((1024, columns), np.float32), "row": np.array([1, 1024], np.int64)}
        self.weights["one"] = np.array([1, 1], np.int64)
        mean = self.add("ReduceMean", [x], (1,) * len(shape), keepdims=1)
        wide = self.add("Expand", [self.add("Reshape", [mean, "one"], (1, 1)), "row"], (1, 1024))
        read = self.add("ReduceMean", [self.add("MatMul", [wide, "evict"], (1, columns))], (1, 1), keepdims=1)
        self.weights["flat"] = np.array([1] * len(shape), np.int64)
        made = self.add("Add", [x, self.add("Reshape", [read, "flat"], (1,) * len(shape))], shape)
        for node in self.nodes[first:]:
            node.name = EVICTION + node.name
        return made

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
        self.weights[name] = self._draw.integers(-127, 128, shape).astype(np.int8)
        return self.add("DequantizeLinear", [name, "wscale", "wzero"], shape)

    def _bias(self, out: int) -> str:
        if not self.int8:
            return self.weight(out)
        name = f"b{len(self.weights)}"
        self.weights[name] = self._draw.integers(-1000, 1000, out).astype(np.int32)
        return self.add("DequantizeLinear", [name, "bscale"], (out,))


def feeds(shape: tuple[int, ...], seed: int = 0) -> Mapping[str, np.ndarray]:
    """Return one query for a graph of this room."""
    return {"x": np.random.default_rng(seed).standard_normal(shape).astype(np.float32)}
