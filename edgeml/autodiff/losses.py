"""What training makes small: each loss emits its value and its gradient for the model's output.

Both are means over the rows of a batch, so a short last batch counts like any other step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from edgeml.autodiff.builder import GraphBuilder, attributes
from edgeml.autodiff.shapes import ROWS
from edgeml.errors import UnsupportedModel
from edgeml_runtime.wire.manifest import PREDICTION, PROBABILITIES

TARGET = "target"
TARGET_CHECK = "target must be a class index of the model"  # the node's name, which onnxruntime's message quotes
_LEAST = 1e-7  # a probability below it counts as this much, and gets no gradient


@dataclass(frozen=True)
class Emitted:
    """The 0-d loss, the tensor it starts from and the loss's gradient for that tensor."""

    loss: str
    start: str
    seed: str


@dataclass(frozen=True)
class Loss:
    """One entry of LOSSES: which output it reads by name, its target, and what it emits."""

    output: str
    target: Callable[[GraphBuilder, str], ValueInfoProto]
    emit: Callable[[GraphBuilder, str], Emitted]


def output_of(model: ModelProto, loss: Loss) -> str:
    """Return the output that `loss` reads: the one named for it, or the only float one."""
    floats = [v.name for v in model.graph.output if v.type.tensor_type.elem_type == TensorProto.FLOAT]
    if loss.output in floats:
        return loss.output
    if len(floats) == 1:
        return str(floats[0])
    raise UnsupportedModel(
        f"the model has {len(floats)} float32 outputs ({', '.join(floats) or 'none'}) and none is named "
        f"{loss.output!r}: rename the one to train on"
    )


def softmax_cross_entropy(g: GraphBuilder, output: str) -> Emitted:
    """Mean of -log p[target], from the logits: the input of the Softmax that made `output`, if one did."""
    logits = _logits(g, output)
    if logits is None and output == PROBABILITIES:
        return _of_probabilities(g, output)
    return _of_logits(g, logits or output)


def _of_logits(g: GraphBuilder, logits: str) -> Emitted:
    width = _width(g, logits)
    logp = g.op("LogSoftmax", logits, axis=-1)
    # a class that the model does not have must fail, not train: onnxruntime refuses an index beyond the end
    known = g.op("Where", g.op("Less", TARGET, g.const(0, dtype=np.int64)), width, TARGET)
    places = g.op("Unsqueeze", known, g.ints([1]))
    picked = g.op("GatherElements", logp, places, axis=1, name=TARGET_CHECK)
    rows = g.op("Cast", g.op("Size", TARGET), to=TensorProto.FLOAT)
    loss = g.op("Neg", g.op("Div", g.op("ReduceSum", picked, keepdims=0), rows))
    truth = g.op("OneHot", TARGET, width, g.const([0.0, 1.0]), axis=-1)
    seed = g.op("Div", g.op("Sub", g.op("Exp", logp), truth), rows)
    return Emitted(loss, logits, seed)


def _of_probabilities(g: GraphBuilder, output: str) -> Emitted:
    """Probabilities that no Softmax made: their logarithms are logits."""
    logs = g.op("Log", g.op("Max", output, g.const(_LEAST)))
    g.shapes[logs] = g.shapes.get(output, ())
    emitted = _of_logits(g, logs)
    seed = g.op("Where", g.op("Greater", output, g.const(_LEAST)), g.op("Div", emitted.seed, output), g.const(0.0))
    return Emitted(emitted.loss, output, seed)


def mean_squared_error(g: GraphBuilder, output: str) -> Emitted:
    """Mean over rows and outputs of (output - target)^2: no factor 1/2."""
    difference = g.op("Sub", output, TARGET)
    count = g.op("Cast", g.op("Size", output), to=TensorProto.FLOAT)
    square = g.op("ReduceSum", g.op("Mul", difference, difference), keepdims=0)
    seed = g.op("Div", g.op("Add", difference, difference), count)
    return Emitted(g.op("Div", square, count), output, seed)


def _logits(g: GraphBuilder, output: str) -> str | None:
    """Return the input of the Softmax over the classes that made `output`, or None."""
    made_by = {name: node for node in g.forward for name in node.output}
    name = output
    while name in made_by and _keeps_values(g, made_by[name]):
        name = made_by[name].input[0]
    node = made_by.get(name)
    if node is not None and node.op_type == "Softmax" and _over_last_axis(g, node):
        return str(node.input[0])
    return None


def _keeps_values(g: GraphBuilder, node: NodeProto) -> bool:
    if node.op_type == "Identity":
        return True
    return node.op_type == "Cast" and attributes(node)["to"] == g.dtypes.get(node.input[0], 0) == TensorProto.FLOAT


def _over_last_axis(g: GraphBuilder, node: NodeProto) -> bool:
    return attributes(node).get("axis", -1) in (-1, len(g.shapes.get(node.output[0], ())) - 1)


def _width(g: GraphBuilder, logits: str) -> str:
    shape = g.shapes.get(logits, ())
    if shape and len(shape) != 2:
        raise UnsupportedModel(f"cross-entropy needs an output (rows, classes); {logits!r} has {len(shape)} axes")
    if shape and isinstance(shape[1], int):
        return g.const(shape[1], dtype=np.int64)
    return g.op("Gather", g.op("Shape", logits), g.const(1, dtype=np.int64))


def _class_index(g: GraphBuilder, output: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(TARGET, TensorProto.INT64, [ROWS])


def _like_output(g: GraphBuilder, output: str) -> ValueInfoProto:
    if output not in g.shapes:
        raise UnsupportedModel(f"the shape of output {output!r} cannot be inferred: declare the shapes of the inputs")
    return helper.make_tensor_value_info(TARGET, TensorProto.FLOAT, [ROWS, *g.shapes[output][1:]])


LOSSES: dict[str, Loss] = {
    "softmax_cross_entropy": Loss(PROBABILITIES, _class_index, softmax_cross_entropy),
    "mse": Loss(PREDICTION, _like_output, mean_squared_error),
}
