"""Which constants of a model are its parameters: weights and biases of layers, scales of normalizations, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import ModelProto, NodeProto, helper

from edgeml.autodiff.builder import GraphBuilder
from edgeml.errors import UnsupportedModel, UserError

_WEIGHTS = {  # operator -> the inputs that hold its parameters
    **dict.fromkeys(("Gemm", "Conv", "ConvTranspose"), (1, 2)),
    **dict.fromkeys(
        ("BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization"), (1, 2)
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), (1, 2, 3)),
    "MatMul": (1,),
    "PRelu": (1,),
    "Gather": (0,),
}


def find_parameters(g: GraphBuilder, nodes: Sequence[NodeProto], trainable: Sequence[str] | None) -> list[str]:
    """Return the parameters among the constants that `nodes` use: those `trainable` names, or all.

    The constants of preprocessing (means, scales, imputed values) are no parameters. Raises
    UserError for an unknown name and UnsupportedModel when there is nothing to train.
    """
    floats = [name for name in _inputs(nodes) if name in g.constants and g.constants[name].dtype == "float32"]
    if trainable is not None:
        if unknown := sorted(set(trainable) - set(floats)):
            raise UserError(
                f"trainable names {', '.join(unknown)}, not a float32 constant on the way to the loss; "
                f"known: {', '.join(floats) or 'none'}"
            )
        if not trainable:
            raise UserError(f"trainable is empty; name one or more of {', '.join(floats) or 'none'}")
        return [name for name in floats if name in set(trainable)]
    found = _weights(nodes, set(floats))
    if not found:
        operators = sorted({node.op_type for node in nodes})
        raise UnsupportedModel(
            f"nothing to train: no float32 weight of a layer leads to the loss (operators: "
            f"{', '.join(operators)}); trees, ai.onnx.ml operators and quantized weights have no gradient, use an MLP"
        )
    return [name for name in floats if name in found]


def train_normalizations(model: ModelProto) -> dict[str, str]:
    """Let every BatchNormalization of `model` use the batch's statistics, and return its running ones: name -> new.

    running = momentum * running + (1 - momentum) * batch, with the population's variance (ONNX operator specification).
    """
    found: dict[str, str] = {}
    for node in model.graph.node:
        if node.op_type != "BatchNormalization":
            continue
        kept = [attribute for attribute in node.attribute if attribute.name != "training_mode"]
        del node.attribute[:], node.output[1:]
        node.attribute.extend([*kept, helper.make_attribute("training_mode", 1)])
        node.output.extend(f"ad.running.{name}" for name in node.input[3:5])
        found |= {name: f"ad.running.{name}" for name in node.input[3:5]}
    return found


def _inputs(nodes: Sequence[NodeProto]) -> list[str]:
    return list(dict.fromkeys(name for node in nodes for name in node.input if name))


def _weights(nodes: Sequence[NodeProto], floats: set[str]) -> set[str]:
    found: set[str] = set()
    products: set[str] = set()  # outputs of a product with a weight of ours: the next Add holds the bias
    for node in nodes:
        if node.op_type in _WEIGHTS and node.domain in ("", "ai.onnx"):
            used = {node.input[i] for i in _WEIGHTS[node.op_type] if i < len(node.input)} & floats
            found |= used
            if used and node.op_type in ("MatMul", "Conv", "ConvTranspose"):
                products.add(node.output[0])
        elif node.op_type == "Add" and products.intersection(node.input):
            found |= set(node.input) & floats
    return found
