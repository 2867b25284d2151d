"""The question: values of every row summed by group, counts by label, confidence and score, and how devices differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from edgeml.artifacts import OnnxModel, Task
from edgeml.errors import DataError
from edgeml.tasks.evaluation import groups as grouping
from edgeml.tasks.evaluation import result as results
from edgeml.tasks.evaluation.groups import ALL, By
from edgeml.tasks.evaluation.intervals import Estimate, of_mean
from edgeml.tasks.evaluation.result import Evaluation, Group, Tables
from edgeml.tasks.evaluation.values import GAINS, VALUES, Judged, RowValues, classes_of, emit_values
from edgeml.tasks.model_program import ModelProgram
from edgeml.tasks.program import LEFT_OUT, ROWS
from edgeml.tasks.study import Answer, Inquiry, Question, Sums

BINS, SCORE_BINS = 15, 256  # of confidence, of a score
MAX_PAIRED = 20  # classes: counts by target and two labels are their cube


def evaluation(model: OnnxModel, task: Judged, *, before: OnnxModel | None = None, by: By | None = None) -> Inquiry:
    """Return the study of how good `model` is, and how much better than `before` on the very same rows.

    Devices hold the model's inputs and `target`: int64 (rows,) class indices or float64 (rows,) values. `by` tells
    groups of rows apart. The result is an `Evaluation`. Raises UserError when rows cannot be grouped so,
    UnsupportedModel when a model cannot be judged as `task`, DataError when the two take different inputs.
    """
    asked = _Asked(model, task, before, by, classes_of(model, task))
    if before is not None and classes_of(before, task) != asked.classes:
        raise DataError(f"the model has {asked.classes} classes, the one before {classes_of(before, task)}")
    return Inquiry("evaluation", Question(asked.task(), asked.answer, of_device))


def of_device(answer: Sums) -> Sums:
    """Return the products of one device's sums s and rows n whose sums say how much devices differ."""
    rows, total = answer["group.rows"], answer["value"]
    return {
        "devices": (rows > 0).astype(np.float64),
        "device.rows": rows * rows,
        "device.square": total * total,
        "device.cross": total * rows[:, np.newaxis],
    }


@dataclass(frozen=True)
class _Asked:
    model: OnnxModel
    kind: Judged
    before: OnnxModel | None
    by: By | None
    classes: int

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the classes."""
        return self.model.classes or tuple(map(str, range(self.classes)))

    @property
    def groups(self) -> tuple[str, ...]:
        return (ALL, *(self.by.names(self.names) if self.by else ()))

    @property
    def columns(self) -> tuple[str, ...]:
        return results.columns_of(self.kind, paired=self.before is not None)

    def task(self) -> Task:
        models = [self.model, *([self.before] if self.before else [])]
        p = ModelProgram(models, target="classes" if self.classes else "values", classes=self.classes)
        grouping.check(self.by, [spec.name for spec in p.inputs], self.classes)
        found = [emit_values(p, i, self.classes) for i in range(len(models))]
        member = grouping.emit_groups(p, self.by, self.classes)
        self._sum_values(p, member, found)
        if self.classes:
            self._count_labels(p, member, found)
            self._calibrate(p, member, found[0])
        return p.task("evaluation")

    def _sum_values(self, p: ModelProgram, member: str, found: list[RowValues]) -> None:
        e, size = p.e, len(self.groups)
        columns = [one.values for one in found]
        if self.before is not None:
            columns.append(self._gains(p, *columns))
        values = e.op("Concat", *columns, axis=1) if len(columns) > 1 else columns[0]
        shape = (size, len(self.columns))
        rows = e.op("ReduceSum", member, e.vector(0), keepdims=0)
        total, square = p.gram(member, values), p.gram(member, e.op("Mul", values, values))
        p.output("group.rows", rows, (size,))
        p.output("value", total, shape)
        p.output("value.square", square, shape)

    def _gains(self, p: ModelProgram, own: str, before: str) -> str:
        """Return how much better each row is judged: more for accuracy, less for losses and errors."""
        e, gained = p.e, [VALUES[self.kind].index(name) for name in GAINS[self.kind]]
        sign = np.array([[1.0 if name == "accuracy" else -1.0 for name in GAINS[self.kind]]])
        difference = e.op("Gather", e.op("Sub", own, before), e.vector(*gained), axis=1)
        return e.op("Mul", difference, e.value(sign))

    def _count_labels(self, p: ModelProgram, member: str, found: list[RowValues]) -> None:
        e, k, size = p.e, self.classes, len(self.groups)
        truth, said = p.one_hot(p.y, k), p.one_hot(found[0].labels, k)
        both = e.op("Mul", e.op("Unsqueeze", member, e.vector(2)), e.op("Unsqueeze", truth, e.vector(1)))
        counts = p.gram(e.op("Reshape", both, e.vector(-1, size * k)), said)
        p.output("confusion", e.op("Reshape", counts, e.vector(size, k, k)), (size, k, k))
        if self.before is not None and k <= MAX_PAIRED:
            pair = e.op("Mul", e.op("Unsqueeze", truth, e.vector(2)), e.op("Unsqueeze", said, e.vector(1)))
            counts = p.gram(e.op("Reshape", pair, e.vector(-1, k * k)), p.one_hot(found[1].labels, k))
            p.output("pairs", e.op("Reshape", counts, e.vector(k, k, k)), (k, k, k))

    def _calibrate(self, p: ModelProgram, member: str, found: RowValues) -> None:
        e, size = p.e, len(self.groups)
        confidence = e.ops("TopK", found.shares, e.vector(1), outputs=2, axis=1)[0]
        right = p.float64(p.column(e.op("Equal", found.labels, p.y)))
        hot = self._bin(p, confidence, BINS)
        parts = (hot, e.op("Mul", hot, confidence), e.op("Mul", hot, right))
        sums = p.gram(member, e.op("Concat", *parts, axis=1))
        p.output("calibration", e.op("Reshape", sums, e.vector(size, 3, BINS)), (size, 3, BINS))
        if self.classes == 2:
            score = e.op("Gather", found.shares, e.vector(1), axis=1)
            p.output("scores", p.gram(p.one_hot(p.y, 2), self._bin(p, score, SCORE_BINS)), (2, SCORE_BINS))

    def _bin(self, p: ModelProgram, share: str, bins: int) -> str:
        """Return float64 (n, bins): 1 in the bin, all of one width, of a number (n, 1) between 0 and 1."""
        e = p.e
        place = e.op("Cast", e.op("Mul", share, e.real(float(bins))), to=TensorProto.INT64)
        place = e.op("Min", e.op("Max", place, e.number(0)), e.number(bins - 1))
        return p.float64(e.op("Equal", place, e.value(np.arange(bins, dtype=np.int64)[np.newaxis])))

    def answer(self, sums: Sums) -> Answer:
        results.some_rows(float(sums[ROWS]))
        nobody, nothing = np.zeros(len(self.groups)), np.zeros(sums["value"].shape)
        tables = Tables(
            rows=sums["group.rows"],
            devices=sums.get("devices", nobody),
            device_rows=sums.get("device.rows", nobody),
            columns=self.columns,
            total=sums["value"],
            square=sums["value.square"],
            device_square=sums.get("device.square", nothing),
            device_cross=sums.get("device.cross", nothing),
        )
        groups = {name: self._group(tables, index, sums) for index, name in enumerate(self.groups)}
        before, gains = self._compared(tables, sums) if self.before is not None else ({}, {})
        return Answer(Evaluation(self.kind, self.names, groups, int(sums[LEFT_OUT]), before, gains))

    def _group(self, tables: Tables, index: int, sums: Sums) -> Group:
        rows, devices = int(tables.rows[index]), int(tables.devices[index])
        if not self.classes:
            return Group(rows, devices, results.of_regression(tables, index))
        confusion, calibration = sums["confusion"][index], sums["calibration"][index]
        found = self._means(tables, index) | results.of_confusion(confusion)
        error = results.calibration_error(calibration)
        found["calibration_error"] = Estimate(error, error, error)
        if self.classes == 2 and index == 0:
            found["roc_auc"] = results.area(sums["scores"])
        return Group(rows, devices, found, confusion, calibration)

    def _means(self, tables: Tables, index: int, before: str = "") -> dict[str, Estimate]:
        return {
            name: of_mean(tables.sums(before + name, index), share=name == "accuracy") for name in VALUES[self.kind]
        }

    def _compared(self, tables: Tables, sums: Sums) -> tuple[Mapping[str, Estimate], Mapping[str, Estimate]]:
        if not self.classes:
            return results.of_regression(tables, 0, "before."), results.regression_gains(tables)
        before = self._means(tables, 0, "before.")
        gains = {name: of_mean(tables.sums(f"gain.{name}")) for name in GAINS[self.kind]}
        if "pairs" in sums:
            before |= results.of_confusion(sums["pairs"].sum(axis=1))
            gains |= results.gains_of_pairs(sums["pairs"])
        return before, gains
