"""SmoothQuant before static int8: the spread of activations moved into the weights, for attention.

Xiao et al. 2023, "SmoothQuant": where several products read one tensor, its channel j is divided by
s_j = max|x_j|^a / max|w_j|^(1-a) and row j of their weights multiplied by it. The division folds into the scale and
shift of a layer norm before them; elsewhere nothing is done, for an operator more would cost what int8 saves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.errors import UnsupportedModel
from edgeml.graph.proto import attribute
from edgeml.quantize.calibration import channel_maxima, ranges
from edgeml.quantize.prepare import finished, prepared, require
from edgeml.quantize.qdq import Form, plan, write
from edgeml.quantize.recipe import Options, enough

NAME = "int8-smooth"
ALPHA = 0.5  # the paper's default
SMALLEST = 1e-5


def smooth(model: OnnxModel, rows: Rows, options: Options) -> Variant:
    """Return `model` in static int8 after smoothing what layer norms hand to products."""
    require(model, ("MatMul", "Gemm"))
    enough(rows, NAME)
    proto = prepared(model)
    if not smoothed(proto, rows):
        raise UnsupportedModel("no product reads the scaled output of a layer norm: nothing to smooth")
    made = plan(proto)
    found = ranges(proto, rows, tensors=made.tensors, threads=options.threads)
    return finished(write(proto, made, found, form=Form("uint8")), model, NAME)


def smoothed(proto: ModelProto, rows: Rows) -> int:
    """Smooth `proto` in place and return how many tensors were."""
    scene = _Scene(proto)
    tensors = {name: last for name in scene.readers if (last := scene.foldable(name))}
    maxima = channel_maxima(proto, rows, dict.fromkeys(tensors, -1)) if tensors else {}
    for name, holders in tensors.items():
        rows_of = [scene.by_input(node) for node in scene.readers[name]]
        heaviest = np.max([np.abs(weight).max(axis=1) for weight in rows_of], axis=0)
        step = np.maximum(maxima[name], SMALLEST) ** ALPHA / np.maximum(heaviest, SMALLEST) ** (1 - ALPHA)
        step = np.maximum(step, SMALLEST).astype(np.float32)
        for holder in holders:
            scene.replace(holder, scene.array(holder) / step)
        for node in scene.readers[name]:
            flipped = node.op_type == "Gemm" and attribute(node, "transB", 0)
            weight = scene.array(node.input[1])
            scene.replace(node.input[1], weight * (step[None, :] if flipped else step[:, None]))
    return len(tensors)


class _Scene:
    def __init__(self, proto: ModelProto) -> None:
        self._weights: Mapping[str, TensorProto] = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._producer = {name: node for node in proto.graph.node for name in node.output}
        self._outputs = {value.name for value in proto.graph.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in proto.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)

    def array(self, name: str) -> np.ndarray:
        return numpy_helper.to_array(self._weights[name])

    def by_input(self, node: NodeProto) -> np.ndarray:
        """Return the weight of a product with its inputs on the first axis."""
        weight = self.array(node.input[1])
        return weight.T if node.op_type == "Gemm" and attribute(node, "transB", 0) else weight

    def replace(self, name: str, array: np.ndarray) -> None:
        self._weights[name].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))

    def foldable(self, name: str) -> list[str]:
        """Return the weights that divide tensor `name` when they are divided, [] where it cannot be smoothed."""
        node, readers = self._producer.get(name), self.readers[name]
        if node is None or name in self._outputs or not all(self._product(reader, name) for reader in readers):
            return []
        if node.op_type == "LayerNormalization":
            holders = [held for held in node.input[1:3] if held]
        else:
            holders = self._scale_and_shift(node) or self._keras_norm(node)
        width = {len(self.by_input(reader)) for reader in readers}
        fits = all(self._alone(held) and {self.array(held).size} == width for held in holders)
        return holders if holders and fits else []

    def _scale_and_shift(self, node: NodeProto) -> list[str]:
        """Return the constants of Add(Mul(x, scale), shift), the tail of a layer norm written out."""
        shift = [held for held in node.input if held in self._weights]
        inner = [self._producer[held] for held in node.input if held in self._producer]
        if node.op_type != "Add" or len(shift) != 1 or len(inner) != 1 or inner[0].op_type != "Mul":
            return []
        scale = [held for held in inner[0].input if held in self._weights]
        alone = len(self.readers[inner[0].output[0]]) == 1 and inner[0].output[0] not in self._outputs
        return [*scale, *shift] if len(scale) == 1 and alone else []

    def _keras_norm(self, node: NodeProto) -> list[str]:
        """Return the constants of x m + (beta - mean m) with m = gamma / deviation, as Keras writes a layer norm."""
        made = [self._producer.get(name) for name in node.input]
        if node.op_type != "Add" or sorted(n.op_type if n is not None else "" for n in made) != ["Add", "Mul"]:
            return []
        product, shift = sorted((n for n in made if n is not None), key=lambda n: n.op_type, reverse=True)
        beta = [name for name in shift.input if name in self._weights]
        inner = [self._producer.get(name) for name in shift.input if name not in self._weights]
        if len(beta) != 1 or len(inner) != 1 or inner[0] is None or inner[0].op_type != "Mul":
            return []
        shared = set(product.input) & set(inner[0].input)
        factor = self._producer.get(next(iter(shared), ""))
        if len(shared) != 1 or factor is None or factor.op_type != "Mul" or len(self.readers[factor.output[0]]) != 2:
            return []
        gamma = [name for name in factor.input if name in self._weights]
        alone = all(len(self.readers[n.output[0]]) == 1 for n in (product, shift, inner[0]))
        return [*gamma, *beta] if len(gamma) == 1 and alone else []

    def _alone(self, name: str) -> bool:
        return name in self._weights and len(self.readers[name]) == 1

    def _product(self, node: NodeProto, name: str) -> bool:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] != name or not self._alone(node.input[1]):
            return False
        return len(self._weights[node.input[1]].dims) == 2 and not attribute(node, "transA", 0)
