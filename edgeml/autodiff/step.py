"""OnnxModel -> TrainingGraph: forward, loss, backward and update as one plain ONNX graph.

The result names its inputs and outputs as `edgeml.artifacts.TrainingGraph` says and runs on stock
onnxruntime. Preprocessing in front of the first parameter is carried along, never differentiated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.inliner
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.artifacts import OnnxModel, TrainingGraph
from edgeml.autodiff.backward import gradients, in_order, live, shared
from edgeml.autodiff.builder import GraphBuilder, describe
from edgeml.autodiff.dropout import DRAW, seed_dropout
from edgeml.autodiff.facing import channels_first
from edgeml.autodiff.loops import close
from edgeml.autodiff.losses import TARGET, WEIGHT, Emitted, Options, check, output_of
from edgeml.autodiff.newer import spelled_out
from edgeml.autodiff.optimizers import LR, STATES, Optimizer, optimizer_of
from edgeml.autodiff.parameters import declared, find_parameters, train_normalizations
from edgeml.autodiff.shapes import ROWS, input_rows
from edgeml.autodiff.shaping import ANCHOR, CONTROL, MU, Shaping
from edgeml.errors import NotFound, UnsupportedModel

OLDEST, NEWEST = 13, 21  # rules emit opset 13 forms; onnxruntime 1.19, the oldest to run a task, reads up to 21
MAX_IR = 10
LOSS, NEW, SEED = "loss", "new.", "seed"
_PLAIN, _UNCHANGED = Options(), Shaping()
_RESERVED = (TARGET, WEIGHT, LR, LOSS, SEED, DRAW, MU, "rows")
_RESERVED_PREFIXES = (NEW, "delta.", "loss.", ANCHOR, CONTROL, *STATES)


def training_step(
    model: str | Path | bytes | OnnxModel,
    *,
    loss: str = "softmax_cross_entropy",
    optimizer: Optimizer | str = "momentum",
    trainable: Sequence[str] | None = None,
    options: Options = _PLAIN,
    shaping: Shaping = _UNCHANGED,
    batch_statistics: bool = False,
    dropout: Mapping[str, float] | None = None,
) -> TrainingGraph:
    """Return the training step of `model`, or of the one in the file of that path; `trainable` names its parameters.

    `optimizer` is a name in `edgeml.autodiff.OPTIMIZERS`, or an optimizer with numbers of your own. Without `trainable`
    those parameters are taken that the model's own metadata names (a Keras model converted with `trainable`), else
    every weight and bias of a layer. All are of the type of the output that the loss reads, float32 or float64; so are
    `lr` and `loss`.

    `options` are those of the loss; `shaping` is done to the gradients before the optimizer sees them. With
    `batch_statistics` every BatchNormalization that is trained uses those of the batch, and its running ones are
    parameters, too. `dropout` gives tensors of the model the share of their elements that a step drops; with it, and
    for a Dropout of the model that trains, the graph takes `draw`, int64: another number at every step, below 0 to
    drop nothing.
    Raises UserError for an unknown loss, option or name and UnsupportedModel for a model that cannot be trained.
    """
    chosen, optimizer = check(loss, options), optimizer_of(optimizer)
    data = _bytes_of(model)
    proto = _prepared(data)
    own = declared(proto) if trainable is None else trainable
    running = train_normalizations(proto, own) if batch_statistics else {}
    drawn = {DRAW} if seed_dropout(proto, dropout or {}) else set()
    g = GraphBuilder(proto)
    output = output_of(proto, chosen, options)
    g.real = g.numpy_type(output)
    nodes = live(g.forward, [output])
    _check_flat(nodes)
    if own is not None and trainable is None:  # what the model names, and this loss depends on
        own = [name for name in own if any(name in node.input for node in nodes)]
    parameters = find_parameters(g, nodes, own)
    _check_names(proto, parameters, free=drawn | (set() if chosen.target else {TARGET}))
    emitted = chosen.emit(g, output, options)
    values = {name: np.array(g.constants[name]) for name in parameters}
    new = _updates(g, emitted, parameters, optimizer=optimizer, shaping=shaping)
    values |= {name: np.array(g.constants[name]) for name in running}
    new |= {NEW + name: one.update(g, name) for name, one in running.items()}
    state = {name: zero for p in parameters for name, zero in optimizer.states(p, values[p]).items()}
    proto.graph.input.extend(_shaping_inputs(g, shaping, {name: values[name].shape for name in parameters}))
    if chosen.target is not None:
        proto.graph.input.append(chosen.target(g, output))
    if options.weighted:
        proto.graph.input.append(helper.make_tensor_value_info(WEIGHT, g.real_type, [ROWS]))
    step = _assemble(proto, g, values | state, outputs={LOSS: emitted.loss} | new)
    return TrainingGraph(
        data=step.SerializeToString(),
        source=hashlib.sha256(data).hexdigest(),
        loss=loss,
        optimizer=optimizer.words,
        parameters=values,
        state=state,
    )


def _shaping_inputs(
    g: GraphBuilder, shaping: Shaping, shapes: Mapping[str, tuple[int, ...]]
) -> list[onnx.ValueInfoProto]:
    """Return the inputs that correct the gradients."""
    found = [helper.make_tensor_value_info(MU, g.real_type, [])] if shaping.proximal else []
    for parameter, shape in shapes.items():
        found += [helper.make_tensor_value_info(name, g.real_type, shape) for name in shaping.inputs(parameter)]
    return found


def _bytes_of(model: str | Path | bytes | OnnxModel) -> bytes:
    if isinstance(model, OnnxModel):
        return model.data
    if isinstance(model, bytes):
        return model
    try:
        return Path(model).read_bytes()
    except OSError as error:
        raise NotFound(f"no model to read at {model}: {error.strerror or error}") from error


def _prepared(data: bytes) -> ModelProto:
    """Return the model in `data`: constants as initializers, a symbolic number of rows, a version we write."""
    try:
        model = onnx.load_model_from_string(data)
    except DecodeError as error:
        raise UnsupportedModel(f"{len(data):,} bytes that are not an ONNX model: {error}") from error
    opset = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST:
        raise UnsupportedModel(
            f"opset {opset}: training takes {OLDEST} and later; convert the model again with opset {NEWEST}"
        )
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    if opset > NEWEST:
        model = spelled_out(model, NEWEST)
    graph = model.graph
    if outside := [constant.name for constant in graph.initializer if constant.data_location == TensorProto.EXTERNAL]:
        raise UnsupportedModel(f"the weights of {outside[0]!r} are in another file: save the model as one file")
    names = {constant.name for constant in graph.initializer}
    inputs = [input_rows(value) for value in graph.input if value.name not in names]
    del graph.input[:]
    graph.input.extend(inputs)
    close(model)
    return model


def _check_flat(nodes: Iterable[NodeProto]) -> None:
    for node in nodes:
        if node.op_type != "Scan" and any(attribute.type == AttributeProto.GRAPH for attribute in node.attribute):
            raise UnsupportedModel(
                f"{describe(node)} holds a graph of its own: branches, and loops that stop by what they compute, "
                f"have no gradient; give the loop a fixed number of turns"
            )


def _check_names(model: ModelProto, parameters: Iterable[str], *, free: set[str]) -> None:
    for name in [*(value.name for value in model.graph.input), *parameters]:
        if (name in _RESERVED and name not in free) or name.startswith(_RESERVED_PREFIXES):
            raise UnsupportedModel(f"the model calls a tensor {name!r}, a name training needs: rename it")


def _updates(
    g: GraphBuilder, emitted: Emitted, parameters: Sequence[str], *, optimizer: Optimizer, shaping: Shaping
) -> dict[str, str]:
    """Return the output name -> tensor of every new parameter and state."""
    found: dict[str, str] = {}
    for parameter, gradient in gradients(g, {emitted.start: emitted.seed}, parameters).items():
        if gradient is None:
            raise UnsupportedModel(f"parameter {parameter!r} has no effect on the loss: leave it out of trainable")
        found[parameter] = gradient
    new: dict[str, str] = {}
    for parameter, gradient in shaping.shaped(g, found).items():
        new |= {NEW + name: tensor for name, tensor in optimizer.update(g, parameter, gradient).items()}
    return new


def _assemble(
    model: ModelProto, g: GraphBuilder, values: Mapping[str, np.ndarray], *, outputs: dict[str, str]
) -> ModelProto:
    nodes = channels_first(g, live(in_order(_with_instead(g)), outputs.values()))
    nodes = live(shared(nodes, set(outputs.values())), outputs.values())
    _rename(nodes, {tensor: name for name, tensor in outputs.items()})
    used = {name for node in nodes for name in node.input}
    constants = [numpy_helper.from_array(a, n) for n, a in g.constants.items() if n in used and n not in values]
    variables = [helper.make_tensor_value_info(n, g.real_type, a.shape) for n, a in values.items()]
    lr = helper.make_tensor_value_info(LR, g.real_type, [])
    results = [helper.make_tensor_value_info(NEW + n, g.real_type, a.shape) for n, a in values.items()]
    results.insert(0, helper.make_tensor_value_info(LOSS, g.real_type, []))
    graph = helper.make_graph(nodes, "training_step", [*model.graph.input, lr, *variables], results, constants)
    step = helper.make_model(graph, opset_imports=model.opset_import, ir_version=min(model.ir_version, MAX_IR))
    try:
        onnx.checker.check_model(step)
    except onnx.checker.ValidationError as error:
        raise UnsupportedModel(f"the model makes no valid training graph: {str(error).splitlines()[0]}") from error
    return step


def _with_instead(g: GraphBuilder) -> list[NodeProto]:
    """Return all nodes, what is faster to make in place of what it stands for."""
    nodes = [node for node in g.forward if not g.instead.keys() & set(node.output)]
    _rename(g.nodes, {new: old for old, new in g.instead.items()})
    return [*nodes, *g.nodes]


def _rename(nodes: Iterable[NodeProto], names: Mapping[str, str]) -> None:
    for node in nodes:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
