"""An ONNX graph as a numpy program, for boards without onnxruntime: linear models, trees, small networks, scalers.

    OnnxModel -plain-> Variant "numpy", whose data edgeml_runtime.plain_program reads

The program is a document, not code. It has the graph's own operators, constants and names: nothing is approximated, so
the gate holds it to what fp32 is held to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.artifacts import OnnxModel, Rows, Variant
from edgeml.errors import UnsupportedModel
from edgeml.graph import load
from edgeml.quantize.recipe import Options
from edgeml_runtime.session import OPERATORS, Program, Session, Step, write_program
from edgeml_runtime.wire.manifest import PLAIN, TensorSpec

CASTS = frozenset({1, 2, 3, 6, 7, 9, 11})  # what programs convert between: numbers and booleans
NUMBERS = frozenset({"float32", "float64", "int64", "int32", "int8", "uint8", "bool"})


def plain(model: OnnxModel, _rows: Rows, _options: Options) -> Variant:
    """Return `model` as a numpy program; raise UnsupportedModel naming the operator that has no rule."""
    proto = load(model)
    session = Session(model.data)
    constants = {tensor.name: _array(tensor) for tensor in proto.graph.initializer}
    steps: list[Step] = []
    for number, node in enumerate(proto.graph.node):
        if node.op_type == "Constant":
            constants[node.output[0]] = _constant(node)
        else:
            steps.append(_step(node, number, constants))
    _check_types(constants)
    program = Program(
        inputs=session.inputs,
        outputs=session.outputs,
        steps=tuple(steps),
        symbols=tuple(_symbols(proto, spec) for spec in session.inputs),
    )
    made = OnnxModel(write_program(program, constants), model.digest, features=model.features, classes=model.classes)
    Session(made.data)
    return Variant(made, PLAIN, model.digest)


def _step(node: NodeProto, number: int, constants: dict[str, np.ndarray]) -> Step:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    if name not in OPERATORS:
        raise UnsupportedModel(
            f"numpy programs have no rule for the operator {name}: take a linear model, trees or a small network, "
            f"or serve this model on a 64-bit system"
        )
    numbers: dict[str, float] = {}
    words: dict[str, str] = {}
    arrays: dict[str, str] = {}
    for attribute, value in _attributes(node):
        if isinstance(value, int | float):
            numbers[attribute] = value
        elif isinstance(value, str):
            words[attribute] = value
        else:
            arrays[attribute] = f"{number}.{attribute}"
            constants[arrays[attribute]] = value
    if node.op_type == "Cast" and numbers["to"] not in CASTS:
        raise UnsupportedModel(f"numpy programs convert between numbers, not to {_type_name(int(numbers['to']))}")
    return Step(op=name, takes=tuple(node.input), gives=tuple(node.output), numbers=numbers, words=words, arrays=arrays)


def _attributes(node: NodeProto) -> Iterator[tuple[str, Any]]:
    """Yield each attribute as a number, a word or an array."""
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        match attribute.type:
            case AttributeProto.FLOAT | AttributeProto.INT:
                yield attribute.name, value
            case AttributeProto.STRING:
                yield attribute.name, value.decode()
            case AttributeProto.TENSOR:
                yield attribute.name, _array(value)
            case AttributeProto.FLOATS:
                yield attribute.name, np.asarray(value, dtype=np.float32)
            case AttributeProto.INTS:
                yield attribute.name, np.asarray(value, dtype=np.int64)
            case AttributeProto.STRINGS:
                yield attribute.name, np.array([word.decode() for word in value], dtype=object)
            case _:
                raise UnsupportedModel(
                    f"numpy programs have no graphs within {node.op_type}: it has {attribute.name!r}"
                )


def _array(tensor: TensorProto) -> np.ndarray:
    array = numpy_helper.to_array(tensor)
    if array.dtype.kind in "OS":
        flat = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
        return np.array(flat, dtype=object).reshape(array.shape)
    return np.asarray(array)


def _constant(node: NodeProto) -> np.ndarray:
    name, value = next(_attributes(node))
    scalars: Mapping[str, Any] = {"value_float": np.float32, "value_int": np.int64}
    return scalars[name](value) if name in scalars else np.asarray(value)


def _check_types(constants: Mapping[str, np.ndarray]) -> None:
    for name, array in constants.items():
        if array.dtype.kind not in "OU" and str(array.dtype) not in NUMBERS:
            raise UnsupportedModel(f"numpy programs have no {array.dtype}, which {name!r} is: ask for fp32 alone")


def _symbols(proto: ModelProto, spec: TensorSpec) -> tuple[str, ...]:
    value = next(value for value in proto.graph.input if value.name == spec.name)
    return tuple(axis.dim_param for axis in value.type.tensor_type.shape.dim)


def _type_name(kind: int) -> str:
    return str(TensorProto.DataType.Name(kind)).lower()
