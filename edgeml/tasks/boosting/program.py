"""The question a device answers for one level of one tree: histograms of gradients by node, feature and bin.

    rows, edges, trees so far, the tree under way -> gradient, hessian, count (outputs, nodes, features, bins)

A tree is complete: heap order, 2^depth - 1 splits, 2^depth leaves; a node that is not split sends every row left.
Gradients are rounded to whole multiples of 1 / scale, so that their float64 sums are exact, whatever the order of rows
and devices.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto, helper

from edgeml.artifacts import Task
from edgeml.tasks.binning import emit_bins
from edgeml.tasks.emitter import Emitter
from edgeml.tasks.program import Columns, Program

Loss = Literal["squared_error", "log_loss"]
GRADIENT, HESSIAN, COUNT, LOSS = "gradient", "hessian", "count", "loss"
EDGES, BASE, SCALE, TREES, SPLITS, LEAVES, GROWN, SLOTS = (
    *("edges", "base", "scale", "trees.count"),
    *("trees.split", "trees.leaf", "tree.split", "tree.slot"),
)
BIN_BITS = 8  # of a split's code: feature << 9 | bin << 1 | missing goes left
WHOLE = 2 * 255 + 1  # the code of a node that is not split: feature 0, above no bin, missing left


@dataclass(frozen=True)
class Level:
    """What the graph of one level depends on."""

    columns: Columns
    edges: tuple[int, int]  # (features, 2^p - 1)
    loss: Loss
    depth: int
    level: int  # of the tree under way: 0 is the root
    room: int  # trees that the parameters have room for
    nodes: int = 1  # that have a histogram: the root, or room for the left children of the nodes that were split

    @property
    def outputs(self) -> int:
        """Return how many trees one iteration grows: one per class where there are more than two."""
        classes = len(self.columns.classes)
        return classes if self.loss == "log_loss" and classes > 2 else 1

    @property
    def bins(self) -> int:
        """Return how many bins a feature has, that of missing values last."""
        return self.edges[1] + 2


@functools.lru_cache(maxsize=64)
def level_task(shape: Level) -> Task:
    """Return the task of one level; its parameters are zeros, for the study to put its own in."""
    return _Writer(shape).task()


class _Writer:
    def __init__(self, shape: Level) -> None:
        self.shape, outputs, depth = shape, shape.outputs, shape.depth
        self.p = p = Program(
            shape.columns, target="values" if shape.loss == "squared_error" else "classes", missing=True
        )
        self.e = e = p.e
        self.width = 2**depth - 1
        self.edges = p.parameter(EDGES, np.zeros(shape.edges))
        self.base = p.parameter(BASE, np.zeros((1, outputs)))
        self.scale = p.parameter(SCALE, np.zeros(1))
        self.count = p.parameter(TREES, np.zeros(1, np.int64))
        self.splits = p.parameter(SPLITS, np.zeros((shape.room, outputs, self.width), np.int32))
        self.leaves = p.parameter(LEAVES, np.zeros((shape.room, outputs, self.width + 1), np.float32))
        self.plain = emit_bins(e, p.x, self.edges, shape=shape.edges)  # missing values are above all others
        next_ = e.op("Add", self.plain, _int(e, 1))
        lacks = e.op("Equal", self.plain, _int(e, shape.bins - 1))
        below = e.op("Where", lacks, _int(e, 0), next_)  # and here below: a split that sends them left asks these
        self.bins = e.op("Concat", self.plain, below, axis=1)
        self.first = e.op("Mul", e.op("Gather", self.bins, e.vector(0), axis=1), _int(e, 0))  # zeros (n, 1)

    def task(self) -> Task:
        e, shape = self.e, self.shape
        raw = self._raw()
        gradient, hessian, loss = self._derivatives(raw)
        index, kept = self._index()
        ones = e.op("ConstantOfShape", e.op("Shape", index), value=_ones())
        self._histogram(COUNT, ones, index)
        self._histogram(GRADIENT, self._spread(gradient, kept), index)
        if hessian:
            self._histogram(HESSIAN, self._spread(hessian, kept), index)
        if shape.level == 0:
            self.p.output(LOSS, e.op("ReduceSum", loss, keepdims=0), ())
        return self.p.task("statistics", f"boosting.{shape.loss}")

    def _raw(self) -> str:
        """Return float64 (n, outputs): base and all trees so far, one turn of a loop each."""
        e, outputs = self.e, self.shape.outputs
        start = e.op("Add", e.op("Cast", self.first, to=TensorProto.DOUBLE), self.base)
        feature, threshold = self._decoded(self.splits, (self.shape.room, -1))
        body = Emitter("tree/", self.p.constants)
        tests = [body.op("Gather", part, "tree/index", axis=0) for part in (feature, threshold)]
        leaves = body.op("Reshape", body.op("Gather", self.leaves, "tree/index", axis=0), body.vector(-1))
        place = self._walk(body, (tests[0], tests[1]), levels=self.shape.depth)
        offsets = np.arange(outputs, dtype=np.int32) * (self.width + 1)
        value = body.op("Gather", leaves, body.op("Add", place, body.value(offsets[np.newaxis])))
        total = body.op("Add", "tree/raw", body.op("Cast", value, to=TensorProto.DOUBLE))
        more = body.op("Identity", "tree/more")
        graph = helper.make_graph(
            body.nodes,
            "tree",
            [
                helper.make_tensor_value_info("tree/index", TensorProto.INT64, []),
                helper.make_tensor_value_info("tree/more", TensorProto.BOOL, []),
                helper.make_tensor_value_info("tree/raw", TensorProto.DOUBLE, [None, outputs]),
            ],
            [
                helper.make_tensor_value_info(more, TensorProto.BOOL, []),
                helper.make_tensor_value_info(total, TensorProto.DOUBLE, [None, outputs]),
            ],
        )
        turns = e.op("Squeeze", self.count, e.vector(0))
        return e.op("Loop", turns, e.value(np.array(True)), start, body=graph)

    def _decoded(self, codes: str, shape: tuple[int, ...]) -> tuple[str, str]:
        """Return the column of `self.bins` that each split asks, and the bin above which rows go right."""
        e = self.e
        left = e.op("Mod", codes, _int(e, 2))
        feature = e.op("Div", codes, _int(e, 2 << BIN_BITS))
        feature = e.op("Add", feature, e.op("Mul", left, _int(e, self.shape.edges[0])))
        threshold = e.op("Mod", e.op("Div", codes, _int(e, 2)), _int(e, 1 << BIN_BITS))
        threshold = e.op("Add", threshold, left)
        return e.op("Reshape", feature, e.vector(*shape)), e.op("Reshape", threshold, e.vector(*shape))

    def _walk(self, e: Emitter, tests: tuple[str, str], *, levels: int) -> str:
        """Return int32 (n, outputs): the place of each row in its level after `levels` of trees given flat."""
        feature, threshold = tests
        trees = np.arange(self.shape.outputs, dtype=np.int32)
        width = self.width if levels == self.shape.depth else 2**levels - 1
        roots = e.value(trees * width)
        found = e.op("Gather", self.bins, e.op("Gather", feature, roots), axis=1)
        place = e.op("Cast", e.op("Greater", found, e.op("Gather", threshold, roots)), to=TensorProto.INT32)
        for level in range(1, levels):
            at = e.op("Add", place, e.value((trees * width + 2**level - 1)[np.newaxis].astype(np.int32)))
            found = e.op("GatherElements", self.bins, e.op("Gather", feature, at), axis=1)
            right = e.op("Cast", e.op("Greater", found, e.op("Gather", threshold, at)), to=TensorProto.INT32)
            place = e.op("Add", e.op("Add", place, place), right)
        return place

    def _derivatives(self, raw: str) -> tuple[str, str, str]:
        """Return gradient and hessian in units of 1 / scale, and the losses, each (n, outputs)."""
        e, one = self.e, self.e.real(1.0)
        if self.shape.loss == "squared_error":
            residual = e.op("Sub", raw, self.p.column(self.p.y))
            return self._whole(residual), "", e.op("Mul", e.op("Mul", residual, residual), e.real(0.5))
        if self.shape.outputs == 1:
            share, truth = e.op("Sigmoid", raw), self.p.column(e.op("Cast", self.p.y, to=TensorProto.DOUBLE))
            small = e.op("Log", e.op("Add", one, e.op("Exp", e.op("Neg", e.op("Abs", raw)))))
            softplus = e.op("Add", small, e.op("Max", raw, e.real(0.0)))
            loss = e.op("Sub", softplus, e.op("Mul", truth, raw))
        else:
            share, truth = e.op("Softmax", raw, axis=1), self.p.one_hot(self.p.y, self.shape.outputs)
            loss = e.op("Neg", e.op("Mul", truth, e.op("LogSoftmax", raw, axis=1)))
        spread = e.op("Mul", share, e.op("Sub", one, share))
        return self._whole(e.op("Sub", share, truth)), self._whole(spread), loss

    def _whole(self, tensor: str) -> str:
        return self.e.op("Round", self.e.op("Mul", tensor, self.scale))

    def _index(self) -> tuple[str, str]:
        """Return int32 (m, features), where each kept pair of row and output counts, and which are kept."""
        e, shape = self.e, self.shape
        features, size = shape.edges[0], shape.bins
        outputs = np.arange(shape.outputs, dtype=np.int32)[np.newaxis]
        columns = e.op("Add", self.plain, e.value((np.arange(features, dtype=np.int32) * size)[np.newaxis]))
        slot, kept = e.op("Add", self.first, e.value(outputs * shape.nodes)), ""
        if shape.level:
            width = 2**shape.level - 1
            grown = self.p.parameter(GROWN, np.zeros((shape.outputs, width), np.int32))
            place = self._walk(e, self._decoded(grown, (-1,)), levels=shape.level)
            above = (width + 1) // 2
            slots = e.op("Reshape", self.p.parameter(SLOTS, np.zeros((shape.outputs, above), np.int32)), e.vector(-1))
            parent = e.op("Add", e.op("Div", place, _int(e, 2)), e.value(outputs * above))
            own = e.op("Gather", slots, parent)  # -1 where the node above was not split
            left = e.op("Equal", e.op("Mod", place, _int(e, 2)), _int(e, 0))
            kept = e.op("Reshape", e.op("And", left, e.op("GreaterOrEqual", own, _int(e, 0))), e.vector(-1))
            slot = e.op("Add", slot, own)
        start = e.op("Unsqueeze", e.op("Mul", slot, _int(e, features * size)), e.vector(2))
        index = e.op("Reshape", e.op("Add", start, e.op("Unsqueeze", columns, e.vector(1))), e.vector(-1, features))
        return (e.op("Compress", index, kept, axis=0) if kept else index), kept

    def _spread(self, tensor: str, kept: str) -> str:
        """Return (m, features): the number of each kept pair of row and output, once per feature."""
        e = self.e
        flat = e.op("Reshape", tensor, e.vector(-1, 1))
        if kept:
            flat = e.op("Compress", flat, kept, axis=0)
        return e.op("Mul", flat, e.value(np.ones((1, self.shape.edges[0]))))

    def _histogram(self, name: str, numbers: str, index: str) -> None:
        e, shape = self.e, self.shape
        axes = (shape.outputs, shape.nodes, shape.edges[0], shape.bins)
        flat, where = e.op("Reshape", numbers, e.vector(-1)), e.op("Reshape", index, e.vector(-1))
        zeros = e.op("ConstantOfShape", e.vector(int(np.prod(axes))), value=_zeros())
        total = e.op("ScatterElements", zeros, where, flat, axis=0, reduction="add")
        self.p.output(name, e.op("Reshape", total, e.vector(*axes)), axes)


def _int(e: Emitter, value: int) -> str:
    return e.value(np.array(value, dtype=np.int32))


def _ones() -> object:
    return helper.make_tensor("value", TensorProto.DOUBLE, [1], [1.0])


def _zeros() -> object:
    return helper.make_tensor("value", TensorProto.DOUBLE, [1], [0.0])
