"""TrainingGraph -> Task: whole local epochs as one graph, so that a device trains in one call.

    prepare all rows -> loss.before -> Loop epochs (shuffle -> Loop batches (step)) -> loss.after, delta

Inputs: the model's own, with all local rows; `target`; `lr`; `seed`; every parameter. Outputs:
`delta.<parameter>` (new - old), `loss.before`, `loss.after`, `loss.curve` (mean over each epoch's
rows) and `rows`: nothing whose shape depends on the number of rows can leave the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgeml.artifacts import Task, TrainingGraph
from edgeml.autodiff.backward import live
from edgeml.errors import UserError
from edgeml.tasks.emitter import Emitter, outputs_of
from edgeml.tasks.hoist import Split, split
from edgeml.tasks.permutation import emit_permutation

DELTA = "delta."
BEFORE, AFTER, CURVE, ROWS = "loss.before", "loss.after", "loss.curve", "rows"
_SHUFFLED_AND_SCALARS = ("target", "lr")
_TRUE = "task.true"


def training(graph: TrainingGraph, *, epochs: int, batch_size: int) -> Task:
    """Return the task that trains `graph` for `epochs` over a device's rows, `batch_size` at a time.

    The order of rows in each epoch is `permutation(rows, seed, epoch)`; a last, shorter batch counts
    like the others. Raises UserError when a size is not positive.
    """
    if epochs < 1 or batch_size < 1:
        raise UserError(f"epochs {epochs}, batch size {batch_size}: both must be at least 1")
    model = _Program(graph, epochs=epochs, batch_size=batch_size).model()
    onnx.checker.check_model(model)
    return Task(
        kind="training",
        data=model.SerializeToString(),
        source=graph.digest,
        parameters=graph.parameters,
        scalars=("lr", "seed"),
        outputs=outputs_of(model),
    )


class _Program:
    """The three nested graphs while they are written, outermost first."""

    def __init__(self, graph: TrainingGraph, *, epochs: int, batch_size: int) -> None:
        self.graph, self.epochs, self.batch_size = graph, epochs, batch_size
        self.step: ModelProto = onnx.load_model_from_string(graph.data)
        self.variables = {**graph.parameters, **graph.state}
        moving = (*self.variables, *_SHUFFLED_AND_SCALARS)
        self.inputs = [value for value in self.step.graph.input if value.name not in self.variables]
        rows = [value.name for value in self.inputs if value.name not in moving]
        self.split: Split = split(self.step, row_inputs=rows, moving=moving)
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.step.graph.initializer}
        self.constants[_TRUE] = np.array(True)
        self.rows = ""

    def model(self) -> ModelProto:
        """Return the whole task."""
        e = Emitter("task/", self.constants)
        self.rows = e.op("Gather", e.op("Shape", "target"), e.number(0))
        e.nodes.extend(self.split.before)
        names = {name: name for name in self.graph.parameters}
        self._loss(e, BEFORE, names)
        start = [*names, *(e.op("ConstantOfShape", e.vector(*zero.shape)) for zero in self.graph.state.values())]
        *final, curve = e.ops(
            "Loop", e.number(self.epochs), _TRUE, *start, outputs=len(self.variables) + 1, body=self._epoch()
        )
        new = dict(zip(names, final, strict=False))
        self._loss(e, AFTER, new)
        for name, tensor in new.items():
            e.named(DELTA + name, e.op("Sub", tensor, name))
        e.named(CURVE, curve)
        e.named(ROWS, self.rows)
        return self._finish(e)

    def _loss(self, e: Emitter, name: str, parameters: dict[str, str]) -> None:
        """Add the mean loss over all rows with these `parameters`, as the output `name`."""
        part = Emitter(f"{name}/", self.constants)
        part.instance(live(self.split.step, ["loss"]), parameters)
        e.nodes.extend(part.nodes)
        e.named(name, f"{name}/loss")

    def _epoch(self) -> GraphProto:
        e = Emitter("epoch/", self.constants)
        order = emit_permutation(e, rows=self.rows, seed="seed", epoch="epoch/index")
        batches = e.op("Div", e.op("Add", self.rows, e.number(self.batch_size - 1)), e.number(self.batch_size))
        zero = e.op("Cast", e.number(0), to=TensorProto.FLOAT)
        start = [f"epoch/{name}" for name in self.variables]
        *new, total = e.ops("Loop", batches, _TRUE, *start, zero, outputs=len(start) + 1, body=self._batch(order))
        mean = e.op("Div", total, e.op("Cast", self.rows, to=TensorProto.FLOAT))
        return self._body(e, [*new, mean], carried=list(self.variables))

    def _batch(self, order: str) -> GraphProto:
        e = Emitter("batch/", self.constants)
        start = e.op("Mul", "batch/index", e.number(self.batch_size))
        end = e.op("Add", start, e.number(self.batch_size))
        zero = e.vector(0)
        chosen = e.op("Slice", order, e.op("Unsqueeze", start, zero), e.op("Unsqueeze", end, zero), zero)
        given = {name: e.op("Gather", name, chosen, axis=0) for name in dict.fromkeys((*self.split.crossing, "target"))}
        given |= {name: f"batch/{name}" for name in self.variables}
        e.instance(live(self.split.step, [value.name for value in self.step.graph.output]), given)
        weight = e.op("Cast", e.op("Size", chosen), to=TensorProto.FLOAT)
        total = e.op("Add", "batch/total", e.op("Mul", "batch/loss", weight))
        new = [f"batch/new.{name}" for name in self.variables]
        return self._body(e, [*new, total], carried=[*self.variables, "total"])

    def _body(self, e: Emitter, results: list[str], *, carried: list[str]) -> GraphProto:
        """Return a Loop body that gives back the variables and one number: carried on, or one per turn."""
        shapes = [value.shape for value in self.variables.values()] + [()]
        more = e.named(f"{e.prefix}go_on", f"{e.prefix}more")
        inputs = [
            helper.make_tensor_value_info(f"{e.prefix}index", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{e.prefix}more", TensorProto.BOOL, []),
            *(_floats(e.prefix + name, shape) for name, shape in zip(carried, shapes, strict=False)),
        ]
        outputs = [helper.make_tensor_value_info(more, TensorProto.BOOL, [])]
        outputs += [_floats(name, shape) for name, shape in zip(results, shapes, strict=True)]
        return helper.make_graph(e.nodes, e.prefix.strip("/"), inputs, outputs)

    def _finish(self, e: Emitter) -> ModelProto:
        outputs = [_floats(DELTA + name, value.shape) for name, value in self.graph.parameters.items()]
        outputs += [_floats(BEFORE, ()), _floats(AFTER, ()), _floats(CURVE, (self.epochs,))]
        outputs.append(helper.make_tensor_value_info(ROWS, TensorProto.INT64, []))
        seed = helper.make_tensor_value_info("seed", TensorProto.INT64, [])
        parameters = [_floats(name, value.shape) for name, value in self.graph.parameters.items()]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = helper.make_graph(e.nodes, "training", [*self.inputs, seed, *parameters], outputs, constants)
        return helper.make_model(graph, opset_imports=self.step.opset_import, ir_version=self.step.ir_version)


def _floats(name: str, shape: Sequence[int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
