"""The frame of a question about models: a device's rows in, whole models inside, sums of a fixed shape out.

A batch of rows goes through at a time, in a loop that adds up: memory does not grow with the rows. Rows whose target is
none (NaN, or no class index) are left out before the models see them. The models keep their opset,
so what is added is written in operators that mean the same from opset 16 on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from edgeml import graph
from edgeml.artifacts import OnnxModel, Task, TaskKind
from edgeml.errors import DataError, UnsupportedModel
from edgeml.graph.proto import opset_imports
from edgeml.tasks.emitter import Emitter, outputs_of
from edgeml.tasks.program import LEFT_OUT, ROWS, TARGET, Target
from edgeml_runtime.wire.manifest import TensorSpec

MIN_OPSET, ML_OPSET = 16, 3  # ScatterElements that adds; LabelEncoder from text to numbers
ML = "ai.onnx.ml"
BATCH = 256  # rows at a time, as many as the gates run
PART = "part/"  # before the name of an input: its rows of one batch
_DTYPES = {name: number for number, name in graph.DTYPES.items()}
_MAX = float(np.finfo(np.float64).max)


class ModelProgram:
    """A graph while it is written around `models`, which take the same inputs; `y` are the targets of kept rows."""

    def __init__(self, models: Sequence[OnnxModel], *, target: Target = "", classes: int = 0) -> None:
        self.constants: dict[str, np.ndarray] = {}
        self.e = Emitter("study/", self.constants)
        self._protos = _same_opset([graph.load(model) for model in models])
        self.models, self._initializers = list(models), list[onnx.TensorProto]()
        self.inputs = _same_inputs(models)
        self._values = [_value(spec) for spec in self.inputs]
        self._parameters: dict[str, np.ndarray] = {}
        self._sums: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._keep(target, classes)
        self.answers = [self._inside(index) for index in range(len(models))]

    def _keep(self, target: Target, classes: int) -> None:
        """Drop the rows without a target, and count both."""
        e, first = self.e, self.inputs[0].name
        self.rows = {spec.name: PART + spec.name for spec in self.inputs}
        total, self.y = self.count(self.rows[first]), ""
        if target:
            whole = target == "classes"
            dtype = TensorProto.INT64 if whole else TensorProto.DOUBLE
            self._values.append(helper.make_tensor_value_info(TARGET, dtype, ["rows"]))
            given = PART + TARGET
            kept = self._known(given, classes) if whole else e.op("LessOrEqual", e.op("Abs", given), e.real(_MAX))
            self.rows = {name: e.op("Compress", rows, kept, axis=0) for name, rows in self.rows.items()}
            self.y = e.op("Compress", given, kept, axis=0)
        seen = self.count(self.rows[first])
        self.output(ROWS, seen, ())
        self.output(LEFT_OUT, e.op("Sub", total, seen), ())

    def _known(self, target: str, classes: int) -> str:
        e = self.e
        low = e.op("GreaterOrEqual", target, e.number(0))
        return e.op("And", low, e.op("Less", target, e.number(classes)))

    def _inside(self, index: int) -> dict[str, str]:
        """Add a model whose tensors are named apart; return its outputs by their own names."""
        proto, prefix = self._protos[index], f"model{index}/"
        weights = {tensor.name for tensor in proto.graph.initializer}
        names = {value.name for value in proto.graph.input} | weights
        names |= {name for node in proto.graph.node for name in node.output if name}
        renamed = graph.load(
            graph.rename(OnnxModel(proto.SerializeToString(), ""), {name: prefix + name for name in sorted(names)})
        )
        for name, rows in self.rows.items():
            self.e.named(prefix + name, rows)
        for node in renamed.graph.node:
            node.name = node.name and prefix + node.name
            self.e.nodes.append(node)
        self._initializers.extend(renamed.graph.initializer)
        return {value.name: prefix + value.name for value in proto.graph.output}

    @property
    def opset(self) -> int:
        """Return the version of ai.onnx that the graph is written in."""
        return opset_imports(self._protos[0])[""]

    def tensor(self, name: str) -> str:
        """Return what the graph calls the tensor `name` of the first model."""
        return f"model0/{name}"

    def count(self, tensor: str) -> str:
        """Return the length of the first axis of `tensor`, as float64."""
        length = self.e.op("Gather", self.e.op("Shape", tensor), self.e.number(0))
        return self.e.op("Cast", length, to=TensorProto.DOUBLE)

    def parameter(self, name: str, value: np.ndarray) -> str:
        """Return `name`, an input that the round gives and whose first value is `value`."""
        self._parameters[name] = value
        dtype = helper.np_dtype_to_tensor_dtype(value.dtype)
        self._values.append(helper.make_tensor_value_info(name, dtype, value.shape))
        return name

    def output(self, name: str, tensor: str, shape: tuple[int, ...]) -> None:
        """Let the sum over batches and devices of `tensor`, float64 of `shape`, be known as `name`."""
        self._sums[name] = tensor, shape

    def float64(self, tensor: str) -> str:
        """Return `tensor` as float64."""
        return self.e.op("Cast", tensor, to=TensorProto.DOUBLE)

    def column(self, tensor: str) -> str:
        """Return (n,) `tensor` as (n, 1)."""
        return self.e.op("Unsqueeze", tensor, self.e.vector(1))

    def one_hot(self, index: str, depth: int) -> str:
        """Return float64 (n, depth) with a 1 in the column that int64 (n,) `index` names."""
        columns = self.e.value(np.arange(depth, dtype=np.int64)[np.newaxis])
        return self.float64(self.e.op("Equal", self.column(index), columns))

    def gram(self, left: str, right: str) -> str:
        """Return left' right, the sum over rows of all products of two columns."""
        return self.e.op("MatMul", self.e.transposed(left), right)

    def encode(self, strings: str, values: Sequence[str]) -> str:
        """Return int64, the index in `values` of every string, and their number for others."""
        self.e.nodes.append(
            helper.make_node(
                "LabelEncoder",
                [strings],
                [name := f"study/codes.{len(self.e.nodes)}"],
                domain=ML,
                keys_strings=list(values),
                values_int64s=list(range(len(values))),
                default_int64=len(values),
            )
        )
        return name

    def task(self, kind: TaskKind) -> Task:
        """Return the finished program as a task about the first model."""
        nodes = self._loop()  # before the constants are counted
        opsets = {domain: version for proto in self._protos for domain, version in opset_imports(proto).items()}
        opsets.setdefault(ML, ML_OPSET)
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        outputs = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, shape) for n, (_, shape) in self._sums.items()]
        proto = helper.make_model(
            helper.make_graph(nodes, kind, self._values, outputs, self._initializers + constants),
            opset_imports=[helper.make_opsetid(*pair) for pair in sorted(opsets.items())],
            ir_version=max(one.ir_version for one in self._protos),
        )
        graph.check(proto)
        source = self.models[0].digest
        return Task(kind, proto.SerializeToString(), source, dict(self._parameters), (), outputs_of(proto))

    def _loop(self) -> list[onnx.NodeProto]:
        """Return the nodes of the whole: a loop over batches whose sums are the outputs."""
        e = Emitter("batches/", self.constants)
        rows = e.op("Gather", e.op("Shape", self.inputs[0].name), e.number(0))
        turns = e.op("Div", e.op("Add", rows, e.number(BATCH - 1)), e.number(BATCH))
        zeros = [e.value(np.zeros(shape)) for _, shape in self._sums.values()]
        more = e.value(np.array(True))
        sums = e.ops("Loop", turns, more, *zeros, outputs=len(zeros), body=self._batch())
        for name, total in zip(self._sums, sums, strict=True):
            e.named(name, total)
        return e.nodes

    def _batch(self) -> onnx.GraphProto:
        """Return the body of the loop: cut the batch out, do all that was written, add to the sums so far."""
        cut, add = Emitter("batch/", self.constants), Emitter("sum/", self.constants)
        zero = cut.vector(0)
        start = cut.op("Mul", "batch/index", cut.number(BATCH))
        start, end = (cut.op("Unsqueeze", at, zero) for at in (start, cut.op("Add", start, cut.number(BATCH))))
        held = [value.name for value in self._values if value.name not in self._parameters]
        for name in held:
            cut.named(PART + name, cut.op("Slice", name, start, end, zero))
        new = [add.op("Add", f"sum.{name}", tensor) for name, (tensor, _) in self._sums.items()]
        more = add.op("Identity", "batch/more")
        shapes = [shape for _, shape in self._sums.values()]
        given = [f"sum.{name}" for name in self._sums]
        inputs = [
            helper.make_tensor_value_info("batch/index", TensorProto.INT64, []),
            helper.make_tensor_value_info("batch/more", TensorProto.BOOL, []),
            *(helper.make_tensor_value_info(n, TensorProto.DOUBLE, s) for n, s in zip(given, shapes, strict=True)),
        ]
        outputs = [
            helper.make_tensor_value_info(more, TensorProto.BOOL, []),
            *(helper.make_tensor_value_info(n, TensorProto.DOUBLE, s) for n, s in zip(new, shapes, strict=True)),
        ]
        return helper.make_graph([*cut.nodes, *self.e.nodes, *add.nodes], "batch", inputs, outputs)


def _value(spec: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(spec.name, _DTYPES[spec.dtype], ["rows", *_open(spec.shape[1:])])


def _open(shape: Sequence[int]) -> list[int | None]:
    return [size if size > 0 else None for size in shape]


def _same_inputs(models: Sequence[OnnxModel]) -> tuple[TensorSpec, ...]:
    first, *others = (graph.inputs(model) for model in models)
    for spec in first:
        if not spec.shape or spec.shape[0] > 0:
            raise UnsupportedModel(
                f"input {spec.name!r} of shape {spec.shape} has no open axis of rows: export it with a dynamic batch"
            )
    for specs in others:
        if [(s.name, s.dtype) for s in specs] != [(s.name, s.dtype) for s in first]:
            names = [", ".join(s.name for s in each) for each in (first, specs)]
            raise DataError(f"models with inputs {names[0]} and {names[1]} cannot be asked about the same rows")
    return first


def _same_opset(protos: list[ModelProto]) -> list[ModelProto]:
    """Return the models in the newest opset of any of them, at least MIN_OPSET."""
    newest = max(MIN_OPSET, *(opset_imports(proto).get("", MIN_OPSET) for proto in protos))
    found = []
    for proto in protos:
        version = opset_imports(proto).get("", MIN_OPSET)
        if version < newest:
            try:
                proto = onnx.version_converter.convert_version(proto, newest)
            except (RuntimeError, ValueError, onnx.checker.ValidationError) as error:
                raise UnsupportedModel(
                    f"a model of opset {version} does not become one of {newest}: {error}"
                ) from error
        if proto.functions:
            raise UnsupportedModel(
                "the model has functions of its own: convert it with edgeml first, which unfolds them"
            )
        found.append(proto)
    return found
