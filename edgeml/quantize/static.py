"""Static int8: activation ranges from calibration rows, a graph in QDQ or QOperator form."""

from __future__ import annotations

import functools
from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any

from onnx import ModelProto

from edgeml.artifacts import ActivationRanges, OnnxModel, Rows, Variant
from edgeml.errors import UnsupportedModel
from edgeml.quantize.calibration import CUTS, Method, Range, ranges
from edgeml.quantize.prepare import finished, prepared, require
from edgeml.quantize.qdq import Form, Plan, plan, write
from edgeml.quantize.qoperator import fused
from edgeml.quantize.recipe import Maker, Options


@dataclass(frozen=True)
class Static:
    """A static recipe: the form of the numbers, how ranges are chosen, and how the graph is written."""

    form: Form = field(default_factory=Form)
    method: Method = "minmax"
    operators: bool = False  # QLinearConv and the like instead of QDQ pairs


def maker(name: str, how: Static) -> Maker:
    """Return the maker of the static recipe `name`."""

    def make(model: OnnxModel, rows: Rows, options: Options) -> Variant:
        require(model)
        proto = prepared(model)
        made = planned(proto)
        if options.field is not None:
            found = taken(options.field, proto, (made, how.method))
        else:
            found = measured(proto, rows, (made, how.method, options.threads))
        return written(proto, (made, found), how=how, model=model, name=name)

    return make


def calibration_points(model: OnnxModel) -> tuple[OnnxModel, tuple[str, ...]]:
    """Return the float graph that static recipes start from and the tensors whose ranges they need.

    Whoever has rows may find the ranges elsewhere (`edgeml.tasks.calibration`) and give them as `Options.field`.
    Raises UnsupportedModel when there is nothing to quantize.
    """
    require(model)
    proto = prepared(model)
    tensors = tuple(planned(proto).tensors)
    return OnnxModel(proto.SerializeToString(deterministic=True), model.digest), tensors


def taken(field: ActivationRanges, proto: ModelProto, what: tuple[Plan, Method]) -> dict[str, Range]:
    """Return the ranges of the tensors of a plan from those that were found elsewhere."""
    made, method = what
    digest = OnnxModel(proto.SerializeToString(deterministic=True), "").digest
    missing = [name for name in made.tensors if name not in field.ends]
    if field.graph != digest or missing:
        raise UnsupportedModel(
            f"the activation ranges are of the graph {field.graph[:12]}, this one is {digest[:12]} and lacks "
            f"{len(missing)} tensors: collect them for the graph of calibration_points"
        )
    if method != "minmax" and not field.counts:
        raise UnsupportedModel(f"{method} needs counts beside the ends of the ranges: collect them with a histogram")
    ends = {name: Range(*field.ends[name]) for name in made.tensors}
    return ends if method == "minmax" else {name: CUTS[method](field.counts[name], ends[name]) for name in made.tensors}


def planned(proto: ModelProto, floats: Set[str] = frozenset()) -> Plan:
    """Return what becomes 8-bit; raise UnsupportedModel when nothing can."""
    made = plan(proto, floats)
    if not made.products:
        raise UnsupportedModel("no Conv, Gemm or MatMul has constant float32 weights: int8 would change nothing")
    return made


def written(
    proto: ModelProto, parts: tuple[Plan, dict[str, Range]], *, how: Static, model: OnnxModel, name: str
) -> Variant:
    """Return the variant `name` of `model` for a plan and the ranges of its tensors."""
    small = write(proto, *parts, form=how.form)
    return finished(fused(small) if how.operators else small, model, name)


def measured(proto: ModelProto, rows: Rows, what: tuple[Plan, Method, int]) -> dict[str, Range]:
    """Return the ranges of the tensors of a plan; the same question is answered from memory."""
    made, method, threads = what
    return _measured(proto.SerializeToString(deterministic=True), _Same(rows), (tuple(made.tensors), method, threads))


@dataclass(frozen=True, eq=False)
class _Same:
    """Rows as a key: equal to itself only; kept alive by the memory that holds it."""

    rows: Rows

    def __hash__(self) -> int:
        return id(self.rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.rows is self.rows


@functools.lru_cache(maxsize=4)
def _measured(data: bytes, same: _Same, what: tuple[Any, ...]) -> dict[str, Range]:
    tensors, method, threads = what
    return ranges(ModelProto.FromString(data), same.rows, tensors=tensors, method=method, threads=threads)


def forget() -> None:
    """Drop the rows and ranges that `measured` remembers."""
    _measured.cache_clear()
