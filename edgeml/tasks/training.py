"""TrainingGraph -> Task: whole local epochs as one graph, so that a device trains in one call.

    prepare all rows -> loss.before -> Loop epochs (shuffle -> Loop batches (step)) -> loss.after, delta

Inputs: the model's own, with all local rows; `target`; `lr`; `seed`; every parameter. Outputs: `delta.<parameter>`
(new - old), `loss.before`, `loss.after`, `loss.curve` (mean over each epoch's rows), `rows` and `steps`: nothing whose
shape depends on the number of rows can leave the device. `Local` adds what personal and corrected training need.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgeml.artifacts import Task, TrainingGraph
from edgeml.autodiff.backward import live
from edgeml.autodiff.counter import PRIME
from edgeml.autodiff.dropout import DRAW
from edgeml.autodiff.shaping import ANCHOR, CONTROL, MU
from edgeml.errors import UserError
from edgeml.tasks.emitter import Emitter, outputs_of
from edgeml.tasks.hoist import Split, split
from edgeml.tasks.local import DECAY, KEEP, KEPT, OWN, SEEN, VARIATE, Local, Roles, roles
from edgeml.tasks.permutation import emit_permutation

DELTA = "delta."
BEFORE, AFTER, PERSONAL, CURVE = "loss.before", "loss.after", "loss.personal", "loss.curve"
ROWS, STEPS = "rows", "steps"
_SHUFFLED_AND_SCALARS = ("target", "lr", DRAW)
_DRAWS = 2**20  # of dropout, that one seed has before those of the next begin
_TRUE = "task.true"
PLAIN = Local()


def training(graph: TrainingGraph, *, epochs: int, batch_size: int, local: Local = PLAIN) -> Task:
    """Return the task that trains `graph` for `epochs` over a device's rows, `batch_size` at a time.

    The order of rows in each epoch is `permutation(rows, seed, epoch)`; a last, shorter batch counts
    like the others. Raises UserError when a size is not positive, parameters are no float32, or `local` does not fit
    `graph`.
    """
    if epochs < 1 or batch_size < 1:
        raise UserError(f"epochs {epochs}, batch size {batch_size}: both must be at least 1")
    if other := [name for name, array in graph.parameters.items() if array.dtype != np.float32]:
        raise UserError(f"parameter {other[0]!r} is {graph.parameters[other[0]].dtype}: devices train in float32")
    program = _Program(graph, local, epochs=epochs, batch_size=batch_size)
    model = program.model()
    onnx.checker.check_model(model)
    shared = program.roles.shared
    return Task(
        kind="training",
        data=model.SerializeToString(),
        source=graph.digest,
        parameters=shared,
        scalars=program.roles.scalars,
        controls={CONTROL + name: np.zeros_like(value) for name, value in shared.items() if program.roles.control},
        outputs=outputs_of(model),
    )


class _Program:
    """The three nested graphs while they are written, outermost first."""

    def __init__(self, graph: TrainingGraph, local: Local, *, epochs: int, batch_size: int) -> None:
        self.graph, self.local, self.epochs, self.batch_size = graph, local, epochs, batch_size
        self.step: ModelProto = onnx.load_model_from_string(graph.data)
        self.variables = {**graph.parameters, **graph.state}
        self.roles: Roles = roles(graph, local, [value.name for value in self.step.graph.input])
        moving = (*self.variables, *_SHUFFLED_AND_SCALARS, *self.roles.corrections)
        self.inputs = [value for value in self.step.graph.input if value.name not in {*moving} - {"target", "lr"}]
        rows = [value.name for value in self.inputs if value.name not in moving]
        self.split: Split = split(self.step, row_inputs=rows, moving=moving)
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.step.graph.initializer}
        self.constants[_TRUE] = np.array(True)
        self.outputs: list[ValueInfoProto] = []
        self.kept: list[ValueInfoProto] = []
        self.rows = self.batches = ""

    def model(self) -> ModelProto:
        """Return the whole task."""
        e = Emitter("task/", self.constants)
        self.rows = e.op("Gather", e.op("Shape", "target"), e.number(0))
        self.batches = e.op("Div", e.op("Add", self.rows, e.number(self.batch_size - 1)), e.number(self.batch_size))
        e.nodes.extend(self.split.before)
        start = {name: name for name in self.roles.shared}
        start |= {name: self._remembered(e, name, self._first(name, value)) for name, value in self._stays()}
        start = {name: start[name] for name in self.graph.parameters}
        corrections = {ANCHOR + name: tensor for name, tensor in start.items()} | self._controls(e)
        if self.local.copy:
            corrections[MU] = _float(e, 0.0)
        self._loss(e, BEFORE, start)
        new, curve = self._trained(e, start, corrections)
        self._loss(e, AFTER, new)
        for name, value in self.roles.shared.items():
            self._out(DELTA + name, e.op("Sub", new[name], name), value.shape, e=e)
        for name, value in self._stays():
            self._out(KEEP + name, new[name], value.shape, e=e)
        if self.local.copy:
            self._second(e)
        self._count(e, curve)
        if self.roles.control:
            self._new_controls(e, new)
        return self._finish(e)

    def _stays(self) -> list[tuple[str, np.ndarray]]:
        return list(self.roles.personal.items())

    def _first(self, name: str, value: np.ndarray) -> str:
        """Return the constant that a personal parameter starts from."""
        self.constants[f"task.first.{name}"] = value
        return f"task.first.{name}"

    def _remembered(self, e: Emitter, name: str, first: str, *, like: str = "") -> str:
        """Return what the device kept as `name`, or `first` in its first round."""
        value = self.graph.parameters[like or name]
        self.kept.append(_floats(KEPT + name, value.shape))
        return e.op("Where", e.op("Greater", KEPT + SEEN, _float(e, 0.5)), KEPT + name, first)

    def _controls(self, e: Emitter) -> dict[str, str]:
        """Return SCAFFOLD's corrections c - c_i (arXiv 1910.06378), c of the offer and c_i of the device's memory."""
        found = {}
        for name, value in self.roles.shared.items() if self.roles.control else ():
            self.kept.append(_floats(KEPT + VARIATE + name, value.shape))
            found[CONTROL + name] = e.op("Sub", CONTROL + name, KEPT + VARIATE + name)
        return found

    def _new_controls(self, e: Emitter, new: Mapping[str, str]) -> None:
        """Give back the new c_i and its change: c_i+ = c_i - c + (x - y) / weight, the paper's option II.

        `weight` is how often a gradient of this task counts in x - y, times its rate: lr K for plain SGD, and
        lr (K - m (1 - m^K) / (1 - m)) / (1 - m) with momentum m. So c_i+ is the mean gradient on the way.
        """
        steps, m = e.op("Cast", e.op("Max", STEPS, e.number(1)), to=TensorProto.FLOAT), self.local.momentum
        if m:
            rest = e.op("Sub", _float(e, 1.0), e.op("Pow", _float(e, m), steps))
            steps = e.op("Sub", steps, e.op("Mul", rest, _float(e, m / (1 - m))))
            steps = e.op("Mul", steps, _float(e, 1 / (1 - m)))
        elif self.local.decay:
            self.constants["task.epochs"] = np.arange(self.epochs, dtype=np.float32)
            rates = e.op("ReduceMean", e.op("Pow", DECAY, "task.epochs"), keepdims=0)
            steps = e.op("Mul", steps, rates)
        weight = e.op("Mul", "lr", steps)
        for name, value in self.roles.shared.items():
            mean = e.op("Div", e.op("Sub", name, new[name]), weight)
            change = e.op("Sub", mean, CONTROL + name)
            self._out(DELTA + CONTROL + name, change, value.shape, e=e)
            self._out(KEEP + VARIATE + name, e.op("Add", KEPT + VARIATE + name, change), value.shape, e=e)

    def _second(self, e: Emitter) -> None:
        """Train the device's own model, drawn to the round's parameters."""
        start = {name: self._remembered(e, OWN + name, name, like=name) for name in self.graph.parameters}
        anchors = {ANCHOR + name: name for name in self.graph.parameters}
        own, _ = self._trained(e, start, anchors, prefix=OWN)
        self._loss(e, PERSONAL, own)
        for name, value in self.graph.parameters.items():
            self._out(KEEP + OWN + name, own[name], value.shape, e=e)

    def _count(self, e: Emitter, curve: str) -> None:
        self._out(CURVE, curve, (self.epochs,), e=e)
        self._out(ROWS, self.rows, (), e=e, of=TensorProto.INT64)
        steps = e.op("Mul", self.batches, e.number(self.epochs))
        self._out(STEPS, steps, (), e=e, of=TensorProto.INT64)
        if any(value.name != KEPT + SEEN for value in self.kept) and not self.roles.control:
            self.kept.append(_floats(KEPT + SEEN, ()))
            self._out(KEEP + SEEN, _float(e, 1.0), (), e=e)

    def _out(self, name: str, tensor: str, shape: Sequence[int], *, e: Emitter, of: int = TensorProto.FLOAT) -> None:
        e.named(name, tensor)
        self.outputs.append(helper.make_tensor_value_info(name, of, shape))

    def _loss(self, e: Emitter, name: str, parameters: Mapping[str, str]) -> None:
        """Add the mean loss over all rows with these `parameters`, as the output `name`."""
        part = Emitter(f"{name}/", self.constants)
        part.instance(live(self.split.step, ["loss"]), {**parameters, DRAW: part.number(-1)})
        e.nodes.extend(part.nodes)
        self._out(name, f"{name}/loss", (), e=e)

    def _trained(
        self, e: Emitter, start: Mapping[str, str], corrections: Mapping[str, str], *, prefix: str = ""
    ) -> tuple[dict[str, str], str]:
        """Return the parameters after all epochs, and the loss of each epoch."""
        zeros = [e.op("ConstantOfShape", e.vector(*zero.shape)) for zero in self.graph.state.values()]
        body = _Body(self, prefix, corrections).epoch()
        inputs = (e.number(self.epochs), _TRUE, *start.values(), *zeros)
        *final, curve = e.ops("Loop", *inputs, outputs=len(self.variables) + 1, body=body)
        return dict(zip(start, final, strict=False)), curve

    def _finish(self, e: Emitter) -> ModelProto:
        scalars = [_floats(name, ()) for name in self.roles.scalars if name not in ("lr", "seed")]
        seed = helper.make_tensor_value_info("seed", TensorProto.INT64, [])
        given = [_floats(name, value.shape) for name, value in self.roles.shared.items()]
        if self.roles.control:
            given += [_floats(CONTROL + name, value.shape) for name, value in self.roles.shared.items()]
        constants = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        inputs = [*self.inputs, seed, *scalars, *given, *self.kept]
        graph = helper.make_graph(e.nodes, "training", inputs, self.outputs, constants)
        return helper.make_model(graph, opset_imports=self.step.opset_import, ir_version=self.step.ir_version)


class _Body:
    """The bodies of both loops of one training; `corrections` are inputs of the step, the same in every batch."""

    def __init__(self, program: _Program, prefix: str, corrections: Mapping[str, str]) -> None:
        self.program, self.prefix, self.corrections = program, prefix, corrections

    def epoch(self) -> GraphProto:
        p = self.program
        e = Emitter(f"{self.prefix}epoch/", p.constants)
        index = f"{e.prefix}index"
        order = emit_permutation(e, rows=p.rows, seed="seed", epoch=index)
        rate = "lr"
        if p.local.decay:
            rate = e.op("Mul", "lr", e.op("Pow", DECAY, e.op("Cast", index, to=TensorProto.FLOAT)))
        zero = e.op("Cast", e.number(0), to=TensorProto.FLOAT)
        start = [e.prefix + name for name in p.variables]
        body = self._batch(order, rate)
        *new, total = e.ops("Loop", p.batches, _TRUE, *start, zero, outputs=len(start) + 1, body=body)
        mean = e.op("Div", total, e.op("Cast", p.rows, to=TensorProto.FLOAT))
        return self._body(e, [*new, mean], carried=list(p.variables))

    def _batch(self, order: str, rate: str) -> GraphProto:
        p = self.program
        e = Emitter(f"{self.prefix}batch/", p.constants)
        start = e.op("Mul", f"{e.prefix}index", e.number(p.batch_size))
        end = e.op("Add", start, e.number(p.batch_size))
        zero = e.vector(0)
        chosen = e.op("Slice", order, e.op("Unsqueeze", start, zero), e.op("Unsqueeze", end, zero), zero)
        given = {name: e.op("Gather", name, chosen, axis=0) for name in dict.fromkeys((*p.split.crossing, "target"))}
        given |= {name: e.prefix + name for name in p.variables} | {**self.corrections, "lr": rate}
        if any(value.name == DRAW for value in p.step.graph.input):
            given[DRAW] = self._draw(e)
        e.instance(live(p.split.step, [value.name for value in p.step.graph.output]), given)
        weight = e.op("Cast", e.op("Size", chosen), to=TensorProto.FLOAT)
        total = e.op("Add", f"{e.prefix}total", e.op("Mul", f"{e.prefix}loss", weight))
        new = [f"{e.prefix}new.{name}" for name in p.variables]
        return self._body(e, [*new, total], carried=[*p.variables, "total"])

    def _draw(self, e: Emitter) -> str:
        """Return the number of this step among all of all seeds, for dropout."""
        first = e.op("Mul", e.op("Mod", "seed", e.number(PRIME)), e.number(_DRAWS))
        epoch = e.op("Mul", f"{self.prefix}epoch/index", self.program.batches)
        return e.op("Add", first, e.op("Add", epoch, f"{e.prefix}index"))

    def _body(self, e: Emitter, results: list[str], *, carried: list[str]) -> GraphProto:
        """Return a Loop body that gives back the variables and one number: carried on, or one per turn."""
        shapes = [value.shape for value in self.program.variables.values()] + [()]
        more = e.named(f"{e.prefix}go_on", f"{e.prefix}more")
        inputs = [
            helper.make_tensor_value_info(f"{e.prefix}index", TensorProto.INT64, []),
            helper.make_tensor_value_info(f"{e.prefix}more", TensorProto.BOOL, []),
            *(_floats(e.prefix + name, shape) for name, shape in zip(carried, shapes, strict=False)),
        ]
        outputs = [helper.make_tensor_value_info(more, TensorProto.BOOL, [])]
        outputs += [_floats(name, shape) for name, shape in zip(results, shapes, strict=True)]
        return helper.make_graph(e.nodes, e.prefix.strip("/"), inputs, outputs)


def _float(e: Emitter, value: float) -> str:
    return e.value(np.array(value, dtype=np.float32))


def _floats(name: str, shape: Sequence[int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
