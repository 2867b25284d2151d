"""A live Keras model as a graph that can learn: every variable is a constant under its own name.

tf2onnx leaves out biases that are zero, folds normalizations into the layers before them and merges equal constants: so
the variables are given to it as inputs, and become constants afterwards. The names of the trainable ones are written
into the model's metadata, where `edgeml.autodiff` reads them.

A kernel is kept as the operator takes it: (out, in, height, width) for Keras's (height, width, in, out).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import tensorflow as tf
from onnx import ModelProto, NodeProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from edgeml.artifacts import TRAINABLE
from edgeml.convert.keras_layers import standing_in
from edgeml.convert.keras_trace import Traced, to_proto

MOVES = ("Transpose", "Reshape", "Unsqueeze", "Squeeze", "Gather")  # that only put elements elsewhere


def trainable_proto(model: Any, traced: Traced, name: str) -> ModelProto:
    """Return the graph of `model`, which `traced` describes, with its variables as constants under their paths."""
    variables = [variable for variable in model.variables if variable.dtype == "float32"]
    names = _names([variable.path for variable in variables])
    specs = [tf.TensorSpec(variable.shape, tf.float32) for variable in variables]
    own = len(traced.specs)

    def call(*tensors: Any) -> Any:
        given = dict(zip([id(variable) for variable in variables], tensors[own:], strict=True))
        trained, others = (
            [given.get(id(variable), variable.value) for variable in some]
            for some in (model.trainable_variables, model.non_trainable_variables)
        )
        inputs = list(tensors[:own]) if own > 1 else tensors[0]
        return model.stateless_call(trained, others, inputs, training=False)[0]

    with standing_in(model) as handlers:
        asked = replace(
            traced,
            call=call,
            specs=(*traced.specs, *specs),
            inputs=(*traced.inputs, *names),
            optional=frozenset(names),
            handlers=handlers,
        )
        proto = to_proto(asked, name)
    values = {n: np.asarray(variable.numpy()) for n, variable in zip(names, variables, strict=True)}
    _fix(proto, values)
    _settle(proto, set(values))
    there = {constant.name for constant in proto.graph.initializer}
    chosen = {id(variable) for variable in model.trainable_variables}
    trained = [n for n, variable in zip(names, variables, strict=True) if id(variable) in chosen and n in there]
    onnx.helper.set_model_props(proto, {TRAINABLE: json.dumps(trained)})
    return proto


def _names(paths: Sequence[str]) -> list[str]:
    """Return the paths, a number behind those that came before."""
    return [path if path not in paths[:i] else f"{path}.{i}" for i, path in enumerate(paths)]


def _fix(proto: ModelProto, values: dict[str, np.ndarray]) -> None:
    """Turn the inputs that are variables into constants."""
    for value in [value for value in proto.graph.input if value.name in values]:
        proto.graph.input.remove(value)
        proto.graph.initializer.append(numpy_helper.from_array(values[value.name], value.name))


def _settle(proto: ModelProto, names: set[str]) -> None:
    """Move the elements of every variable once and for all where all who read it move them alike."""
    graph = proto.graph
    constants = {constant.name: constant for constant in graph.initializer}
    while True:
        readers: dict[str, list[NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in set(node.input):
                readers[name].append(node)
        found = next((name for name in sorted(names) if _alike(readers[name], name, constants)), None)
        if found is None:
            return
        first, *others = readers[found]
        given = {name: numpy_helper.to_array(constants[name]) for name in first.input}
        answers: Any = ReferenceEvaluator(_alone(first, proto)).run(None, given)
        constants[found].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(answers[0]), found))
        gone = {node.output[0] for node in (first, *others)}
        for node in (first, *others):
            graph.node.remove(node)
        for node in graph.node:
            node.input[:] = [found if name in gone else name for name in node.input]


def _alike(readers: Sequence[NodeProto], name: str, constants: dict[str, Any]) -> bool:
    """Whether all of `readers` are one and the same move of the variable `name`, and keep every element."""
    if not readers or any(node.op_type not in MOVES or node.input[0] != name for node in readers):
        return False
    first = readers[0]
    if any((node.op_type, *node.input) != (first.op_type, *first.input) for node in readers):
        return False
    if any(node.attribute != first.attribute for node in readers) or any(n not in constants for n in first.input):
        return False
    if first.op_type == "Gather":
        places = numpy_helper.to_array(constants[first.input[1]])
        axis = next((a.i for a in first.attribute if a.name == "axis"), 0)
        return sorted(places.reshape(-1)) == list(range(constants[name].dims[axis])) and places.ndim == 1
    return True


def _alone(node: NodeProto, proto: ModelProto) -> ModelProto:
    """Return a model of this one node."""
    before, after = (
        [onnx.helper.make_empty_tensor_value_info(name) for name in names] for names in (node.input, node.output)
    )
    graph = onnx.helper.make_graph([node], "move", before, after)
    return onnx.helper.make_model(graph, opset_imports=proto.opset_import)
