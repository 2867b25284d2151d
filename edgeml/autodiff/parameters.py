"""Which constants of a model are its parameters: the weights and biases of its dense layers."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import NodeProto

from edgeml.autodiff.builder import GraphBuilder
from edgeml.errors import UnsupportedModel, UserError

_WEIGHTS = {"Gemm": (1, 2), "MatMul": (1,), "Conv": (1, 2), "ConvTranspose": (1, 2)}  # operator -> inputs


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
            f"nothing to train: no float32 weight of Gemm or MatMul leads to the loss (operators: "
            f"{', '.join(operators)}); trees, ai.onnx.ml operators and quantized weights have no gradient, use an MLP"
        )
    return [name for name in floats if name in found]


def _inputs(nodes: Sequence[NodeProto]) -> list[str]:
    return list(dict.fromkeys(name for node in nodes for name in node.input if name))


def _weights(nodes: Sequence[NodeProto], floats: set[str]) -> set[str]:
    found: set[str] = set()
    products: set[str] = set()  # outputs of MatMul with a weight of ours: the next Add holds the bias
    for node in nodes:
        if node.op_type in _WEIGHTS and node.domain in ("", "ai.onnx"):
            used = {node.input[i] for i in _WEIGHTS[node.op_type] if i < len(node.input)} & floats
            found |= used
            if used and node.op_type == "MatMul":
                products.add(node.output[0])
        elif node.op_type == "Add" and products.intersection(node.input):
            found |= set(node.input) & floats
    return found
