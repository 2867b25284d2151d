"""The frame of a study's graph: local rows in, parameters in, sums of a fixed shape out.

Rows with a number that is not finite, or a target that is none, are left out before anything is summed and
counted in `rows.left_out`: one NaN would make a whole fleet's sum NaN. Everything is computed in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgeml.artifacts import Task, TaskKind
from edgeml.errors import UserError
from edgeml.graph import load
from edgeml.tasks.emitter import Emitter, outputs_of
from edgeml.tasks.front import Front, free_rows

ROWS, LEFT_OUT, TARGET = "rows", "rows.left_out", "target"
OPSET, IR = 18, 8  # reductions take axes as inputs from 18; onnxruntime 1.17 to 1.32 read IR 8
Target = Literal["", "values", "counts", "positive", "classes"]  # counts are numbers >= 0
Step = Callable[[Emitter, str], str]  # float64 (n, some) -> float64 (n, others), row by row
DTYPES = {"float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}


@dataclass(frozen=True)
class Columns:
    """What a device's rows look like: input `name` of (rows, features), and `classes` of a target that has any."""

    features: int
    name: str = "x"
    dtype: Literal["float32", "float64"] = "float32"
    classes: tuple[object, ...] = ()  # by index; the target of a row is the index
    width: int = 0  # numbers in a row as it lies on the device, where `steps` make `features` of them
    steps: tuple[Step, ...] = ()  # what is done to rows before they are summed
    front: Front | None = None  # what makes the features of the model's own inputs

    @property
    def held(self) -> int:
        """Return how many numbers a row has on the device."""
        return self.width or self.features

    @property
    def numbers(self) -> Literal["float32", "float64"]:
        """Return what the features are when they are summed: steps compute in float64."""
        return "float64" if self.steps else self.dtype

    def through(self, step: Step, *, features: int) -> Columns:
        """Return the columns that `step` makes of these."""
        return replace(self, features=features, width=self.held, steps=(*self.steps, step))

    def __post_init__(self) -> None:
        if self.features < 1 or self.dtype not in DTYPES:
            raise UserError(
                f"{self.features} features of {self.dtype}: give at least one, as {' or '.join(sorted(DTYPES))}"
            )


class Program:
    """A graph while it is written: `x` is float64 (n, features), `y` float64 (n,) values or int64 (n,) indices."""

    def __init__(
        self, columns: Columns, *, target: Target = "", missing: bool = False, least: float | None = None
    ) -> None:
        """Begin with the rows; with `missing`, rows that lack a number stay; rows with one below `least` never do."""
        self.columns = columns
        self.constants: dict[str, np.ndarray] = {}
        self.e = e = Emitter("", self.constants)
        self._inputs = _row_inputs(columns)
        self._parameters: dict[str, np.ndarray] = {}
        self._outputs: list[onnx.ValueInfoProto] = []
        x = e.op("Cast", _features(e, columns), to=TensorProto.DOUBLE)
        self.x = e.op("Where", self.finite(x), x, e.real(np.nan))
        for step in columns.steps:
            self.x = step(e, self.x)
        kept = "" if missing else self._whole(least)
        self.y = ""
        if target:
            dtype = TensorProto.INT64 if target == "classes" else TensorProto.DOUBLE
            self._inputs.append(helper.make_tensor_value_info(TARGET, dtype, ["rows"]))
            good = self._known(target)
            kept = e.op("Min", kept, good) if kept else good
            self.y = TARGET
        self._keep(kept)

    def _whole(self, least: float | None) -> str:
        """Return 1 for the rows whose every number is finite, and not below `least`."""
        e, good = self.e, self._finite(self.x)
        if least is not None:
            good = e.op("Min", good, e.op("Cast", e.op("GreaterOrEqual", self.x, e.real(least)), to=_INT))
        return e.op("ReduceMin", good, e.vector(1), keepdims=0)

    def finite(self, tensor: str) -> str:
        """Return, as bool, where `tensor` is a number, and neither NaN nor infinite."""
        return self.e.op("LessOrEqual", self.e.op("Abs", tensor), self.e.real(_MAX))

    def _finite(self, tensor: str) -> str:
        return self.e.op("Cast", self.finite(tensor), to=_INT)

    def _known(self, target: Target) -> str:
        """Return 1 where a row's target is one of the classes, or a number that `target` allows."""
        e = self.e
        if target == "classes":
            known = e.op(
                "And", e.op("GreaterOrEqual", TARGET, e.number(0)), e.op("Less", TARGET, e.number(self.classes))
            )
            return e.op("Cast", known, to=_INT)
        if target == "values":
            return self._finite(TARGET)
        above = e.op("Greater" if target == "positive" else "GreaterOrEqual", TARGET, e.real(0.0))
        return e.op("Min", self._finite(TARGET), e.op("Cast", above, to=_INT))

    def _keep(self, kept: str) -> None:
        e = self.e
        total = self.count(self.x)
        if kept:
            mask = e.op("Cast", kept, to=TensorProto.BOOL)
            self.x = e.op("Compress", self.x, mask, axis=0)
            self.y = self.y and e.op("Compress", self.y, mask, axis=0)
        self.rows = self.count(self.x)
        self.output(ROWS, self.rows, ())
        self.output(LEFT_OUT, e.op("Sub", total, self.rows), ())

    @property
    def classes(self) -> int:
        """Return how many classes the target has."""
        return len(self.columns.classes)

    def count(self, tensor: str) -> str:
        """Return the length of the first axis of `tensor`, as float64."""
        length = self.e.op("Gather", self.e.op("Shape", tensor), self.e.number(0))
        return self.e.op("Cast", length, to=TensorProto.DOUBLE)

    def parameter(self, name: str, value: np.ndarray) -> str:
        """Return `name`, an input that the round gives and whose first value is `value`."""
        value = np.asarray(value)
        if name in {known.name for known in self._inputs}:
            raise UserError(
                f"the model has an input {name!r}, and the study a parameter of that name: rename the input"
            )
        self._parameters[name] = value
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        self._inputs.append(helper.make_tensor_value_info(name, dtype, value.shape))
        return name

    def output(self, name: str, tensor: str, shape: tuple[int, ...]) -> None:
        """Let the sum over devices of `tensor`, float64 of `shape`, be known as `name`."""
        self.e.named(name, tensor)
        self._outputs.append(helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape))

    def total(self, tensor: str) -> str:
        """Return the sum over the rows of `tensor`, whose first axis they are."""
        return self.e.op("ReduceSum", tensor, self.e.vector(0), keepdims=0)

    def gram(self, left: str, right: str) -> str:
        """Return left' right, the sum over rows of all products of two columns."""
        return self.e.op("MatMul", self.e.transposed(left), right)

    def with_ones(self, tensor: str) -> str:
        """Return (n, d) `tensor` as (n, d + 1), the last column of ones."""
        return self.e.op("Pad", tensor, self.e.vector(0, 0, 0, 1), self.e.real(1.0))

    def column(self, tensor: str) -> str:
        """Return (n,) `tensor` as (n, 1)."""
        return self.e.op("Unsqueeze", tensor, self.e.vector(1))

    def one_hot(self, index: str, depth: int) -> str:
        """Return float64 (n, depth) with a 1 in the column that int64 (n,) `index` names."""
        e = self.e
        hot = e.op("Equal", self.column(index), e.value(np.arange(depth, dtype=np.int64)[np.newaxis]))
        return e.op("Cast", hot, to=TensorProto.DOUBLE)

    def task(self, kind: TaskKind, source: str) -> Task:
        """Return the finished program as a task about `source`."""
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(self.e.nodes, kind, self._inputs, self._outputs, constants)
        before = self.columns.front
        opsets = {"": OPSET} | (before.opsets if before else {})
        ir = max(IR, load(before.model).ir_version) if before else IR
        imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
        model = helper.make_model(graph, opset_imports=imports, ir_version=ir)
        onnx.checker.check_model(model)
        parameters: Mapping[str, np.ndarray] = dict(self._parameters)
        return Task(kind, model.SerializeToString(), source, parameters, scalars=(), outputs=outputs_of(model))


def _row_inputs(columns: Columns) -> list[onnx.ValueInfoProto]:
    if columns.front:
        return free_rows(columns.front.inputs)
    return [helper.make_tensor_value_info(columns.name, DTYPES[columns.dtype], ["rows", columns.held])]


def _features(e: Emitter, columns: Columns) -> str:
    """Return the rows as (n, held): the input itself, or what the front makes of the inputs."""
    if columns.front is None:
        return columns.name
    made = columns.front.emit(e)
    rows = e.op("Slice", e.op("Shape", columns.front.inputs[0].name), e.vector(0), e.vector(1))
    return e.op("Reshape", made, e.op("Concat", rows, e.vector(columns.held), axis=0))


_INT = TensorProto.INT64
_MAX = float(np.finfo(np.float64).max)
