"""ONNX nodes inside a converter of our own, one call each: names, constants and opsets are taken care of.

scope, operator, container of skl2onnx -> Emitter.op("Add", a, b) -> name of the sum
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper
from skl2onnx import update_registered_converter
from skl2onnx.common.data_types import FloatTensorType, Int64TensorType, StringTensorType

DOMAIN_VERSIONS = {"ai.onnx.ml": 3, "com.microsoft": 1}
Emit = Callable[["Emitter", Any], str]  # emitter, fitted estimator -> name of the answer
Columns = Callable[[Any], int]  # fitted estimator -> columns of its answer


class Emitter:
    """Adds nodes to the graph that skl2onnx is making."""

    def __init__(self, scope: Any, operator: Any, container: Any) -> None:
        self.operator, self._scope, self._container = operator, scope, container

    def op(self, op_type: str, *inputs: str, domain: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Return the name of the answer of a new node; a list of names when it has several `outputs`."""
        names = [self._scope.get_unique_variable_name(f"{op_type.lower()}") for _ in range(outputs)]
        version = DOMAIN_VERSIONS.get(domain) or self._container.target_opset_any_domain("")
        label = self._scope.get_unique_operator_name(op_type)
        self._container.add_node(
            op_type, list(inputs), names, op_domain=domain, op_version=version, name=label, **attributes
        )
        return names[0] if outputs == 1 else names

    def constant(self, values: Any, dtype: Any = np.float32) -> str:
        """Return the name of a constant: float32 unless `dtype` says otherwise, `str` for text."""
        name = str(self._scope.get_unique_variable_name("constant"))
        array = np.asarray(values, dtype=object if dtype is str else dtype)
        if dtype is str:
            data = [str(value).encode() for value in array.ravel()]
            self._container.add_initializer(name, TensorProto.STRING, array.shape, data)
        else:
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            self._container.add_initializer(name, kind, array.shape, array.ravel().tolist())
        return name

    def floats(self) -> str:
        """Return the name of the operator's inputs side by side as one float32 matrix."""
        names = [self.as_float(given) for given in self.operator.inputs]
        return names[0] if len(names) == 1 else str(self.op("Concat", *names, axis=1))

    def as_float(self, variable: Any) -> str:
        """Return the name of one input as float32."""
        if isinstance(variable.type, FloatTensorType):
            return str(variable.full_name)
        return str(self.op("Cast", variable.full_name, to=TensorProto.FLOAT))

    def strings(self) -> str:
        """Return the name of the operator's inputs side by side as one matrix of strings."""
        names = [str(given.full_name) for given in self.operator.inputs]
        return names[0] if len(names) == 1 else str(self.op("Concat", *names, axis=1))

    def column(self, matrix: str, index: int) -> str:
        """Return the name of one column of a matrix, kept as (n, 1)."""
        return str(self.op("Gather", matrix, self.constant([index], np.int64), axis=1))

    def finish(self, name: str) -> None:
        """Make `name` the operator's answer."""
        self._container.add_node(
            "Identity", name, self.operator.outputs[0].full_name, name=self._scope.get_unique_operator_name("Identity")
        )


def reads_text(operator: Any) -> bool:
    """Say whether the first input of `operator` is of strings."""
    return isinstance(operator.inputs[0].type, StringTensorType)


def text_tensor(values: Any) -> Any:
    """Return an ONNX tensor of strings, for an attribute or a subgraph."""
    return numpy_helper.from_array(np.asarray(values, dtype=object))


def convert_with(kind: type, emit: Emit, columns: Columns) -> None:
    """Make `emit` the converter of the estimators of `kind`, whose answer is float32 with so many columns."""

    def shapes(operator: Any) -> None:
        operator.outputs[0].type = FloatTensorType([None, columns(operator.raw_operator)])

    _register(kind, emit, shapes)


def convert_same(kind: type, emit: Emit, columns: Columns) -> None:
    """Make `emit` the converter of the estimators of `kind`, whose answer is text where they take text."""

    def shapes(operator: Any) -> None:
        answer = StringTensorType if reads_text(operator) else FloatTensorType
        operator.outputs[0].type = answer([None, columns(operator.raw_operator)])

    _register(kind, emit, shapes)


def convert_indices(kind: type, emit: Emit) -> None:
    """Make `emit` the converter of the estimators of `kind`, whose answer is int64 (n,)."""

    def shapes(operator: Any) -> None:
        operator.outputs[0].type = Int64TensorType([None])

    _register(kind, emit, shapes)


def _register(kind: type, emit: Emit, shapes: Callable[[Any], None]) -> None:
    def convert(scope: Any, operator: Any, container: Any) -> None:
        emitter = Emitter(scope, operator, container)
        emitter.finish(emit(emitter, operator.raw_operator))

    update_registered_converter(kind, f"Edgeml{kind.__name__}", shapes, convert)
