"""Does a rewritten graph say what its file says? Both run operator by operator, on the same made-up rows.

    bytes of the file -> Original;  Original, graph -> apart -> Distance

The file's own answers are those of onnxruntime without its optimisations. Where the graph is small, onnx's reference
evaluator, which shares no code with onnxruntime, is asked for a second opinion.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto
from onnx.reference import ReferenceEvaluator

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.errors import UnsupportedModel
from edgeml.graph.bounds import OPEN
from edgeml.graph.proto import walk
from edgeml_runtime.session import Session
from edgeml_runtime.wire import DeviceError
from edgeml_runtime.wire.manifest import Settings

ROWS = 16
REFERENCE_ROWS = 2  # the reference evaluator is plain Python
REFERENCE_MACS = 5_000_000  # a row; about a second of it
REFERENCE_NODES = 400
ALLOWED = 1e-4  # of the largest value; a rewrite moves float32 sums by less
FLOAT16 = 1e-2


@dataclass(frozen=True)
class Distance:
    """How far two sets of answers are apart: `relative` to the largest value, `unequal` values that are no floats."""

    absolute: float = 0.0
    relative: float = 0.0
    unequal: int = 0

    def within(self, allowed: float) -> bool:
        return self.relative <= allowed and not self.unequal  # NaN is not within

    def __str__(self) -> str:
        return f"{self.absolute:.1e} apart" + (f" and {self.unequal} labels differ" if self.unequal else "")


@dataclass(frozen=True)
class Original:
    """A file's own answers to made-up rows; no rows when it ran on none, and `why` then says why."""

    rows: Mapping[str, np.ndarray]
    answers: Mapping[str, np.ndarray]
    why: str = ""

    @property
    def count(self) -> int:
        return max((len(array) for array in self.answers.values() if array.ndim), default=1)


def original(data: bytes, model: OnnxModel) -> Original:
    """Return what the graph in `data` answers to rows made up for `model`, which has the same inputs.

    Raises UnsupportedModel when it cannot be loaded, or answers one row twice differently.
    """
    try:
        session = Session(data, Settings(graph_level="disabled"))
    except DeviceError as error:
        raise UnsupportedModel(f"cannot run on a device: {' '.join(str(error).split())[:240]}") from error
    why = ""
    for rows in _made_up(model):
        try:
            answers = session.run(rows)
            again = session.run(rows)
        except DeviceError as error:
            why = why or " ".join(str(error).split())[:200]
            continue
        if not apart(answers, again).within(0.0):
            raise UnsupportedModel("answers the same rows differently each time: export it for inference")
        return Original(rows, answers)
    return Original({}, {}, why)


def _made_up(model: OnnxModel) -> list[dict[str, np.ndarray]]:
    """Return rows to try in turn: as any model takes them, then with indices that every table has, then one row."""
    usual = graph.random_rows(model, ROWS)
    zeros = {name: np.zeros_like(array) if array.dtype.kind in "iub" else array for name, array in usual.items()}
    return [usual, zeros, {name: array[:1] for name, array in zeros.items() if array.ndim} or zeros]


def apart(found: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> Distance:
    """Return the farthest that `found` is from `wanted` in any output; NaN where only one of them is NaN."""
    worst = Distance()
    for name, want in wanted.items():
        have = found.get(name)
        if have is None or have.shape != want.shape:
            return Distance(float("inf"), float("inf"), want.size)
        if want.dtype.kind != "f":
            worst = Distance(worst.absolute, worst.relative, worst.unequal + int(np.sum(have != want)))
            continue
        with np.errstate(all="ignore"):
            same = (have == want) | (np.isnan(have) & np.isnan(want))
            off = np.where(same, 0.0, np.abs(have.astype(np.float64) - want.astype(np.float64)))
        finite = np.abs(want[np.isfinite(want)].astype(np.float64))
        far = float(np.max(off, initial=0.0))
        relative = far / max(float(finite.max(initial=0.0)), 1e-3)
        if not relative <= worst.relative:
            worst = Distance(far, relative, worst.unequal)
    return worst


def rerun(data: bytes, source: Original, *, optimize: bool) -> Distance:
    """Return how far the graph in `data` is from its file; infinitely where it does not run."""
    try:
        settings = Settings(graph_level="all" if optimize else "disabled")
        return apart(Session(data, settings).run(source.rows), source.answers)
    except DeviceError:
        return Distance(float("inf"), float("inf"))


def second_opinion(proto: ModelProto, source: Original) -> str:
    """Return what onnx's reference evaluator says of the file's answers, "" where it cannot or would take long."""
    nodes = walk(proto.graph)
    foreign = any(node.op_type in OPEN or node.domain == "com.microsoft" for node in nodes)
    if not source.rows or foreign or len(nodes) > REFERENCE_NODES:
        return ""
    try:
        if graph.cost(proto.SerializeToString()).macs > REFERENCE_MACS:
            return ""
        few = {name: array[:REFERENCE_ROWS] if array.ndim else array for name, array in source.rows.items()}
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = ReferenceEvaluator(proto).run(None, few)
    except Exception:
        return ""
    names = [value.name for value in proto.graph.output]
    answers = {name: np.asarray(array) for name, array in zip(names, found, strict=True)}
    wanted = {name: array[: len(answers[name])] if array.ndim else array for name, array in source.answers.items()}
    far = apart(answers, wanted)
    if far.within(ALLOWED * 10):
        return f"onnx's reference evaluator says the same: {far}"
    return f"onnx's reference evaluator says otherwise: {far}; one of the two reads the file wrongly"
