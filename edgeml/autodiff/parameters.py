"""Which constants of a model are its parameters: weights and biases of layers, scales of normalizations, embeddings."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from onnx import GraphProto, ModelProto, NodeProto, helper

from edgeml.artifacts import TRAINABLE
from edgeml.autodiff.builder import GraphBuilder, attributes
from edgeml.autodiff.loops import body_of
from edgeml.errors import UnsupportedModel, UserError

_WEIGHTS = {  # operator -> the inputs that hold its parameters
    **dict.fromkeys(("Gemm", "Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(
        ("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"), (1, 2)
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)),
    "MatMul": (1,),
    "PRelu": (1,),
    "Einsum": (0, 1, 2),
    "Gather": (0,),
}


def find_parameters(g: GraphBuilder, nodes: Sequence[NodeProto], trainable: Sequence[str] | None) -> list[str]:
    """Return the parameters among the constants that `nodes` use: those `trainable` names, or all.

    The constants of preprocessing (means, scales, imputed values) are no parameters. Raises
    UserError for an unknown name and UnsupportedModel when there is nothing to train. Parameters are of the type
    of the output that the loss reads, `g.real`.
    """
    floats = [name for name in _inputs(nodes) if name in g.constants and g.constants[name].dtype == g.real]
    if trainable is not None:
        if unknown := sorted(set(trainable) - set(floats)):
            raise UserError(
                f"trainable names {', '.join(unknown)}, not a {g.real} constant on the way to the loss; "
                f"known: {', '.join(floats) or 'none'}"
            )
        if not trainable:
            raise UserError(f"trainable is empty; name one or more of {', '.join(floats) or 'none'}")
        return [name for name in floats if name in set(trainable)]
    found = _weights(nodes, set(floats))
    if not found:
        operators = sorted({node.op_type for node in nodes})
        raise UnsupportedModel(
            f"nothing to train: no {g.real} weight of a layer leads to the loss (operators: "
            f"{', '.join(operators)}); trees, ai.onnx.ml operators and quantized weights have no gradient, use an MLP"
        )
    return [name for name in floats if name in found]


def declared(model: ModelProto) -> list[str] | None:
    """Return the parameters that the model's own metadata names, None where it names none."""
    told = {entry.key: entry.value for entry in model.metadata_props}
    return list(json.loads(told[TRAINABLE])) if TRAINABLE in told else None


def train_normalizations(model: ModelProto, trainable: Sequence[str] | None) -> dict[str, Running]:
    """Let every BatchNormalization of `model` use the batch's statistics, and return its running ones.

    Where parameters are named, those alone do whose scale or bias is among them: a frozen layer stays as it is.

    running = momentum * running + (1 - momentum) * batch, with the population's variance (ONNX operator specification).
    """
    found: dict[str, Running] = {}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:
        if node.op_type == "BatchNormalization" and (trainable is None or set(trainable) & set(node.input[1:3])):
            found |= _of_batch(model.graph, node)
        model.graph.node.append(node)
    return found


def _of_batch(graph: GraphProto, node: NodeProto) -> dict[str, Running]:
    """Let `node` use and give the statistics of the batch: with momentum 0 it keeps nothing else.

    onnxruntime writes them over the old ones, wherever those lie, so it gets others to write over.
    """
    momentum = attributes(node).get("momentum", 0.9)
    kept = [attribute for attribute in node.attribute if attribute.name not in ("training_mode", "momentum")]
    del node.attribute[:], node.output[1:]
    now = {"training_mode": 1, "momentum": 0.0}
    node.attribute.extend([*kept, *(helper.make_attribute(name, value) for name, value in now.items())])
    found = {}
    for index in (3, 4):
        name = node.input[index]
        graph.node.append(helper.make_node("Sub", [name, name], [f"ad.none.{node.output[0]}.{name}"]))
        node.input[index] = graph.node[-1].output[0]
        node.output.append(f"ad.batch.{node.output[0]}.{name}")
        found[name] = Running(node.output[-1], momentum)
    return found


@dataclass(frozen=True)
class Running:
    """A statistic that a normalization keeps: the tensor of the batch's, and how much of the old one stays."""

    batch: str
    momentum: float

    def update(self, g: GraphBuilder, name: str) -> str:
        """Return the new value of the statistic `name`."""
        old = g.op("Mul", name, g.const(self.momentum))
        return g.op("Add", old, g.op("Mul", self.batch, g.const(1 - self.momentum)))


def _inputs(nodes: Sequence[NodeProto]) -> list[str]:
    return list(dict.fromkeys(name for node in nodes for name in node.input if name))


def _weights(nodes: Sequence[NodeProto], floats: set[str]) -> set[str]:
    found: set[str] = set()
    products: set[str] = set()  # outputs of a product with a weight of ours: the next Add holds the bias
    for node in nodes:
        if node.op_type in _WEIGHTS and node.domain in ("", "ai.onnx"):
            used = {node.input[i] for i in _WEIGHTS[node.op_type] if i < len(node.input)} & floats
            found |= used
            if used and node.op_type in ("MatMul", "Conv", "ConvTranspose", "Einsum"):
                products.add(node.output[0])
        elif node.op_type == "Add" and products.intersection(node.input):
            found |= set(node.input) & floats
        elif node.op_type == "Scan":  # closed: what its body has of ours came in as a state
            inside = dict(zip((value.name for value in body_of(node).input), node.input, strict=True))
            ours = {name for name, outer in inside.items() if outer in floats}
            found |= {inside[name] for name in _weights(body_of(node).node, ours)}
    return found
