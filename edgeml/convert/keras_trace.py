"""A function of TensorFlow as an ONNX graph under the names of its maker.

Traced -> to_proto -> ModelProto

By `tf2onnx.convert.from_function`, the one route that takes every kind of model. Operators that tf2onnx cannot write it
only logs, and leaves in the graph: they are refused here, with what to use instead.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from edgeml.errors import UnsupportedModel

OPSET = 18  # the newest that tf2onnx writes
LOOKUPS = ("LookupTableFindV2", "LookupTableImportV2", "MutableHashTableV2", "HashTableV2", "StaticRegexReplace")
STRINGS = ("StringSplitV2", "StringLower", "StringToHashBucketFast", "StringJoin", "AsString", "RaggedTensorToTensor")
INSTEAD = {
    **dict.fromkeys(LOOKUPS, "look words up before the model, or build the project from the table with edgeml build"),
    **dict.fromkeys(STRINGS, "cut text up before the model, or train with scikit-learn's TfidfVectorizer"),
    "ImageProjectiveTransformV3": "leave random augmentation out of the model that is saved",
    "FFT": "compute the spectrum before the model",
    "RFFT": "compute the spectrum before the model",
}


@dataclass(frozen=True)
class Traced:
    """A model as a function of flat tensors, with the names its maker gave them."""

    call: Callable[..., Any]
    specs: tuple[Any, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    largest_index: int = 0  # whole-number inputs stay below this
    half: bool = False  # computes in float16 or bfloat16 somewhere
    optional: frozenset[str] = frozenset()  # inputs that may be left unused
    handlers: Mapping[str, Any] = field(default_factory=dict)  # of tf2onnx, beside HANDLERS


def to_proto(traced: Traced, name: str) -> onnx.ModelProto:
    """Return the graph of `traced`; `name` is what errors call the model.

    Raises UnsupportedModel for what ONNX cannot say, or for an input that is not used.
    """
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)  # what it cannot convert is refused by name below
    specs = [tf.TensorSpec(s.shape, s.dtype, name=f"edgeml_in_{i}") for i, s in enumerate(traced.specs)]
    function = _function(traced, specs)
    try:
        proto, _ = tf2onnx.convert.from_function(
            function, input_signature=specs, opset=OPSET, custom_op_handlers={**HANDLERS, **traced.handlers}
        )
    except Exception as error:  # tf2onnx and TensorFlow have no common base class of errors
        raise UnsupportedModel(f"{name} does not convert: {' '.join(str(error).split())[:200]}") from error
    unknown = sorted({n.op_type for n in proto.graph.node if not n.domain and not onnx.defs.has(n.op_type, OPSET, "")})
    if unknown:
        way = next((INSTEAD[op] for op in unknown if op in INSTEAD), "replace that layer")
        raise UnsupportedModel(f"{name} uses TensorFlow's {', '.join(unknown)}, which ONNX cannot say: {way}")
    _fix_captures(proto, function.get_concrete_function())
    _rename_inputs(proto, traced.inputs, traced.optional)
    converted: onnx.ModelProto = proto
    return converted


def _function(traced: Traced, specs: Sequence[Any]) -> Any:
    """Return `traced` as a tf.function, traced as it stands; by AutoGraph, which takes longer, where it must be."""

    def call(*tensors: Any) -> list[Any]:
        return flat(traced.call(*tensors))

    try:
        function = tf.function(call, input_signature=specs, autograph=False)
        function.get_concrete_function()
    except (tf.errors.OperatorNotAllowedInGraphError, TypeError, ValueError):  # a Python `if` or `for` on a tensor
        function = tf.function(call, input_signature=specs)
    return function


def _fix_captures(proto: onnx.ModelProto, concrete: Any) -> None:
    """Turn constants outside the weights, which come out as inputs nobody feeds, into weights.

    A Normalization layer keeps its statistics so.
    """
    captured = {inner.name: value for value, inner in concrete.graph.captures if value.dtype != tf.resource}
    for value in [value for value in proto.graph.input if value.name in captured]:
        tensor = onnx.numpy_helper.from_array(captured[value.name].numpy(), value.name)
        proto.graph.input.remove(value)
        proto.graph.initializer.append(tensor)


def _rename_inputs(proto: onnx.ModelProto, names: Sequence[str], optional: frozenset[str]) -> None:
    """Put the user's input names on the graph, in the order of the call."""
    inputs = {value.name.split(":")[0]: value.name for value in proto.graph.input}
    ours = [f"edgeml_in_{i}" for i in range(len(names))]
    if foreign := set(inputs) - set(ours):
        raise UnsupportedModel(
            f"the model reads {len(foreign)} tables or constants from outside its weights ({', '.join(sorted(foreign))}"
            f"): save it as .keras"
        )
    if unused := [n for n, our in zip(names, ours, strict=True) if our not in inputs and n not in optional]:
        raise UnsupportedModel(f"the inputs {', '.join(unused)} are not used by the model: leave them out")
    new = {inputs[our]: name for our, name in zip(ours, names, strict=True) if our in inputs}
    for node in proto.graph.node:
        node.output[:] = [f"{name}.inner" if name in names else name for name in node.output]
        node.input[:] = [new.get(name, f"{name}.inner" if name in names else name) for name in node.input]
    for value in proto.graph.input:
        value.name = new[value.name]


def _erfc(ctx: Any, node: Any, *_: Any) -> None:
    """erfc(x) = 1 - erf(x): the exact gelu uses it, and ONNX has no Erfc."""
    _one_and(ctx, node, "Erf", one_first=True)


def _expm1(ctx: Any, node: Any, *_: Any) -> None:
    """expm1(x) = exp(x) - 1: celu uses it, and ONNX has no Expm1."""
    _one_and(ctx, node, "Exp", one_first=False)


def _one_and(ctx: Any, node: Any, operator: str, *, one_first: bool) -> None:
    """Put 1 - operator(x), or operator(x) - 1, in place of a TensorFlow node."""
    shapes, dtypes, value, result = node.output_shapes, node.output_dtypes, node.input[0], node.output[0]
    ctx.remove_node(node.name)
    number = np.ones((), tf2onnx.utils.map_onnx_to_numpy_type(dtypes[0]))
    one = ctx.make_const(tf2onnx.utils.make_name(node.name), number).output[0]
    inner = ctx.make_node(operator, [value], shapes=shapes, dtypes=dtypes).output[0]
    pair = [one, inner] if one_first else [inner, one]
    ctx.make_node("Sub", pair, name=node.name, outputs=[result], shapes=shapes, dtypes=dtypes)


def _bucketize(ctx: Any, node: Any, *_: Any) -> None:
    """The bucket of x is the number of boundaries that are at most x: Discretization uses it, ONNX has no Bucketize."""
    boundaries = np.asarray(node.get_attr("boundaries").floats, np.float32)
    shapes, dtypes, value, result = node.output_shapes, node.output_dtypes, node.input[0], node.output[0]
    ctx.remove_node(node.name)
    make = tf2onnx.utils.make_name
    last = ctx.make_const(make(node.name), np.array([-1], np.int64)).output[0]
    bounds = ctx.make_const(make(node.name), boundaries).output[0]
    number = ctx.make_node("Cast", [value], attr={"to": onnx.TensorProto.FLOAT}).output[0]
    wide = ctx.make_node("Unsqueeze", [number, last]).output[0]
    above = ctx.make_node("GreaterOrEqual", [wide, bounds]).output[0]
    ones = ctx.make_node("Cast", [above], attr={"to": dtypes[0]}).output[0]
    attributes = {"keepdims": 0}
    ctx.make_node(
        "ReduceSum", [ones, last], attr=attributes, name=node.name, outputs=[result], shapes=shapes, dtypes=dtypes
    )


HANDLERS: dict[str, tuple[Callable[..., None], list[str]]] = {
    "Erfc": (_erfc, []),
    "Expm1": (_expm1, []),
    "Bucketize": (_bucketize, []),
}


def flat(answers: Any) -> list[Any]:
    """Return the tensors of any nest of them, in order."""
    return list(keras.tree.flatten(answers))
