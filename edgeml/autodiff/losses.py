"""What training makes small: each loss emits its value and its gradient for the model's output.

All are means over the rows of a batch (and over the outputs), so a short last batch counts like any other step. With
`weighted` the graph takes `weight`, float32 (rows,), and the mean is the weighted one: sum(w l) / sum(w).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, ValueInfoProto, helper

from edgeml.autodiff.builder import GraphBuilder, attributes
from edgeml.autodiff.shapes import ROWS
from edgeml.errors import UnsupportedModel, UserError
from edgeml_runtime.wire.manifest import PREDICTION, PROBABILITIES

TARGET, WEIGHT = "target", "weight"
TARGET_CHECK = "target must be a class index of the model"  # the node's name, which onnxruntime's message quotes
REALS = (TensorProto.FLOAT, TensorProto.DOUBLE)
_LEAST = 1e-7  # a probability below it counts as this much, and gets no gradient


@dataclass(frozen=True)
class Emitted:
    """The 0-d loss, the tensor it starts from and the loss's gradient for that tensor."""

    loss: str
    start: str
    seed: str


@dataclass(frozen=True, kw_only=True)
class Options:
    """Of a loss; which of them a loss has is said in LOSSES, others are refused."""

    weighted: bool = False  # rows count by the input `weight`
    class_weights: tuple[float, ...] = ()  # one per class, multiplied with the row's weight
    label_smoothing: float = 0.0  # the share of a row's target that all classes get alike (arXiv 1512.00567)
    delta: float = 1.0  # where Huber's loss turns from squared to absolute
    quantile: float = 0.5  # that the pinball loss aims at
    output: str = ""  # of a custom loss: the 0-d output of the model that is made small

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"label_smoothing {self.label_smoothing}: choose a number from 0 up to, not including, 1")
        if not self.delta > 0 or not 0 < self.quantile < 1:
            raise UserError(f"delta {self.delta} must be above 0, quantile {self.quantile} between 0 and 1")
        if any(not weight >= 0 for weight in self.class_weights):
            raise UserError(f"class_weights {self.class_weights}: none may be below 0")


@dataclass(frozen=True)
class Loss:
    """One entry of LOSSES: the output it reads by name, its target, what it emits, and the options that it has."""

    output: str
    target: Callable[[GraphBuilder, str], ValueInfoProto] | None  # None: the model has it among its own inputs
    emit: Callable[[GraphBuilder, str, Options], Emitted]
    takes: frozenset[str] = frozenset({"weighted"})


def output_of(model: ModelProto, loss: Loss, options: Options) -> str:
    """Return the output that `loss` reads: the one named for it, or the only float one."""
    floats = [v.name for v in model.graph.output if v.type.tensor_type.elem_type in REALS]
    if options.output:
        if options.output not in floats:
            raise UserError(f"no float output {options.output!r}: the model has {', '.join(floats) or 'none'}")
        return options.output
    if loss.output in floats:
        return loss.output
    if len(floats) == 1:
        return str(floats[0])
    raise UnsupportedModel(
        f"the model has {len(floats)} float outputs ({', '.join(floats) or 'none'}) and none is named "
        f"{loss.output!r}: rename the one to train on"
    )


def softmax_cross_entropy(g: GraphBuilder, output: str, options: Options) -> Emitted:
    """Mean of -log p[target], from the logits: the input of the Softmax that made `output`, if one did."""
    logits = _before(g, output, "Softmax")
    if logits is None and output == PROBABILITIES:
        return _of_probabilities(g, output, options)
    return _of_logits(g, logits or output, options)


def _of_logits(g: GraphBuilder, logits: str, options: Options) -> Emitted:
    width = _width(g, logits, options)
    logp = g.op("LogSoftmax", logits, axis=-1)
    # a class that the model does not have must fail, not train: onnxruntime refuses an index beyond the end
    known = g.op("Where", g.op("Less", TARGET, g.const(0, dtype=np.int64)), width, TARGET)
    places = g.op("Unsqueeze", known, g.ints([1]))
    row = g.op("Neg", g.op("GatherElements", logp, places, axis=1, name=TARGET_CHECK))
    truth = g.op("OneHot", TARGET, width, g.const([0.0, 1.0], dtype=np.float32), axis=-1)
    truth = truth if g.real == np.float32 else g.op("Cast", truth, to=g.real_type)  # onnxruntime has no double OneHot
    if smooth := options.label_smoothing:
        share = g.op("Div", g.const(smooth), g.op("Cast", width, to=g.real_type))
        truth = g.op("Add", g.op("Mul", truth, g.const(1 - smooth)), share)
        spread = g.op("Mul", g.op("ReduceSum", logp, g.ints([1]), keepdims=1), share)
        row = g.op("Sub", g.op("Mul", row, g.const(1 - smooth)), spread)
    slope = g.op("Sub", g.op("Exp", logp), truth)
    if not options.class_weights and not options.weighted:
        rows = g.op("Cast", g.op("Size", TARGET), to=g.real_type)
        return Emitted(g.op("Div", g.op("ReduceSum", row, keepdims=0), rows), logits, g.op("Div", slope, rows))
    weights = _of_rows(g, options, rank=2)
    if options.class_weights:
        by_class = g.op("Gather", g.const(options.class_weights), places, axis=0)
        weights = g.op("Mul", weights, by_class) if weights else by_class
    whole = g.op("ReduceSum", weights, keepdims=0)
    loss = g.op("Div", g.op("ReduceSum", g.op("Mul", row, weights), keepdims=0), whole)
    return Emitted(loss, logits, g.op("Div", g.op("Mul", slope, weights), whole))


def _of_probabilities(g: GraphBuilder, output: str, options: Options) -> Emitted:
    """Probabilities that no Softmax made: their logarithms are logits."""
    logs = g.op("Log", g.op("Max", output, g.const(_LEAST)))
    g.shapes[logs] = g.shapes.get(output, ())
    emitted = _of_logits(g, logs, options)
    seed = g.op("Where", g.op("Greater", output, g.const(_LEAST)), g.op("Div", emitted.seed, output), g.const(0.0))
    return Emitted(emitted.loss, output, seed)


def binary_cross_entropy(g: GraphBuilder, output: str, options: Options) -> Emitted:
    """Mean of max(z, 0) - z t + log(1 + exp(-|z|)) over rows and outputs, z the input of the Sigmoid, if one was."""
    z = _before(g, output, "Sigmoid") or output
    soft = g.op("Softplus", g.op("Neg", g.op("Abs", z)))
    value = g.op("Add", g.op("Sub", g.op("Max", z, g.const(0.0)), g.op("Mul", z, TARGET)), soft)
    return _mean(g, (value, g.op("Sub", g.op("Sigmoid", z), TARGET)), start=z, options=options)


def mean_squared_error(g: GraphBuilder, output: str, options: Options) -> Emitted:
    """Mean over rows and outputs of (output - target)^2: no factor 1/2."""
    difference = g.op("Sub", output, TARGET)
    return _mean(
        g, (g.op("Mul", difference, difference), g.op("Add", difference, difference)), start=output, options=options
    )


def mean_absolute_error(g: GraphBuilder, output: str, options: Options) -> Emitted:
    difference = g.op("Sub", output, TARGET)
    return _mean(g, (g.op("Abs", difference), g.op("Sign", difference)), start=output, options=options)


def huber(g: GraphBuilder, output: str, options: Options) -> Emitted:
    """d^2 / 2 up to `delta`, then delta (|d| - delta / 2) (Huber 1964): its slope is d cut at +- delta."""
    delta, difference = g.const(options.delta), g.op("Sub", output, TARGET)
    slope = g.op("Clip", difference, g.const(-options.delta), delta)
    rest = g.op("Sub", g.op("Abs", difference), g.op("Mul", g.const(0.5), g.op("Abs", slope)))
    return _mean(g, (g.op("Mul", g.op("Abs", slope), rest), slope), start=output, options=options)


def pinball(g: GraphBuilder, output: str, options: Options) -> Emitted:
    """q (t - y) where the target lies above, (1 - q) (y - t) below: small at the q-quantile (Koenker 1978)."""
    difference, zero = g.op("Sub", output, TARGET), g.const(0.0)
    below = g.op("Less", difference, zero)
    slope = g.op("Where", below, g.const(-options.quantile), g.const(1 - options.quantile))
    slope = g.op("Where", g.op("Equal", difference, zero), zero, slope)
    return _mean(g, (g.op("Mul", difference, slope), slope), start=output, options=options)


def custom(g: GraphBuilder, output: str, options: Options) -> Emitted:
    """The model's own 0-d output; it reads the target itself, as an input of that name."""
    return Emitted(g.op("Identity", output), output, g.const(1.0))


def _mean(g: GraphBuilder, terms: tuple[str, str], *, start: str, options: Options) -> Emitted:
    """Return the mean of elements with these values and slopes."""
    value, slope = terms
    if not options.weighted:
        count = g.op("Cast", g.op("Size", start), to=g.real_type)
        return Emitted(g.op("Div", g.op("ReduceSum", value, keepdims=0), count), start, g.op("Div", slope, count))
    weights = g.op("Expand", _of_rows(g, options, rank=len(g.shapes.get(start, (None,)))), g.op("Shape", start))
    whole = g.op("ReduceSum", weights, keepdims=0)
    loss = g.op("Div", g.op("ReduceSum", g.op("Mul", value, weights), keepdims=0), whole)
    return Emitted(loss, start, g.op("Div", g.op("Mul", slope, weights), whole))


def _of_rows(g: GraphBuilder, options: Options, *, rank: int) -> str:
    """Return the rows' weights with `rank` axes, "" where all count alike."""
    return g.op("Reshape", WEIGHT, g.ints([-1, *[1] * (rank - 1)])) if options.weighted else ""


def _before(g: GraphBuilder, output: str, activation: str) -> str | None:
    """Return the input of the `activation` (a Softmax: over the classes) that made `output`, or None."""
    made_by = {name: node for node in g.forward for name in node.output}
    name = output
    while name in made_by and _keeps_values(g, made_by[name]):
        name = made_by[name].input[0]
    node = made_by.get(name)
    if node is not None and node.op_type == activation and (activation != "Softmax" or _over_last_axis(g, node)):
        return str(node.input[0])
    return None


def _keeps_values(g: GraphBuilder, node: NodeProto) -> bool:
    if node.op_type == "Identity":
        return True
    return node.op_type == "Cast" and attributes(node)["to"] == g.dtypes.get(node.input[0], 0) in REALS


def _over_last_axis(g: GraphBuilder, node: NodeProto) -> bool:
    return attributes(node).get("axis", -1) in (-1, len(g.shapes.get(node.output[0], ())) - 1)


def _width(g: GraphBuilder, logits: str, options: Options) -> str:
    shape = g.shapes.get(logits, ())
    if shape and len(shape) != 2:
        raise UnsupportedModel(f"cross-entropy needs an output (rows, classes); {logits!r} has {len(shape)} axes")
    if shape and isinstance(shape[1], int):
        if options.class_weights and len(options.class_weights) != shape[1]:
            raise UserError(f"{len(options.class_weights)} class_weights for {shape[1]} classes: give one per class")
        return g.const(shape[1], dtype=np.int64)
    return g.op("Gather", g.op("Shape", logits), g.const(1, dtype=np.int64))


def _class_index(g: GraphBuilder, output: str) -> ValueInfoProto:
    return helper.make_tensor_value_info(TARGET, TensorProto.INT64, [ROWS])


def _like_output(g: GraphBuilder, output: str) -> ValueInfoProto:
    if output not in g.shapes:
        raise UnsupportedModel(f"the shape of output {output!r} cannot be inferred: declare the shapes of the inputs")
    return helper.make_tensor_value_info(TARGET, g.real_type, [ROWS, *g.shapes[output][1:]])


LOSSES: dict[str, Loss] = {
    "softmax_cross_entropy": Loss(
        PROBABILITIES, _class_index, softmax_cross_entropy, frozenset({"weighted", "class_weights", "label_smoothing"})
    ),
    "binary_cross_entropy": Loss(PROBABILITIES, _like_output, binary_cross_entropy),
    "mse": Loss(PREDICTION, _like_output, mean_squared_error),
    "mae": Loss(PREDICTION, _like_output, mean_absolute_error),
    "huber": Loss(PREDICTION, _like_output, huber, frozenset({"weighted", "delta"})),
    "pinball": Loss(PREDICTION, _like_output, pinball, frozenset({"weighted", "quantile"})),
    "custom": Loss("", None, custom, frozenset({"output"})),
}


def check(name: str, options: Options) -> Loss:
    """Return the loss called `name`; raise UserError when there is none, or when it has none of the `options` given."""
    if name not in LOSSES:
        raise UserError(f"unknown loss {name!r}; known: {', '.join(LOSSES)}")
    changed = {field for field, value in vars(options).items() if value != vars(Options())[field]}
    if extra := changed - LOSSES[name].takes:
        raise UserError(f"loss {name} has no option {sorted(extra)[0]!r}; it takes {', '.join(LOSSES[name].takes)}")
    if "output" in LOSSES[name].takes and not options.output:
        raise UserError(f"a {name} loss needs output=, the name of the 0-d output to make small")
    return LOSSES[name]
