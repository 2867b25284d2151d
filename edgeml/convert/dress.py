"""The last step of every door: names and axes as the rest of edgeml expects them.

ModelProto -> dress -> OnnxModel, checked
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from edgeml import graph
from edgeml.artifacts import OnnxModel
from edgeml.graph import passes

ROWS = "rows"  # the name of the axis of rows


def dress(
    proto: onnx.ModelProto,
    *,
    source: str,
    outputs: Mapping[str, str],
    notes: tuple[str, ...] = (),
    only: Iterable[str] | None = None,
) -> OnnxModel:
    """Return `proto` as an artifact with `outputs` renamed and an open first axis called rows.

    `only` names the passes that may rewrite it, all of them by default.

    Raises UnsupportedModel when the graph is not valid.
    """
    for value in [*proto.graph.input, *proto.graph.output]:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = ROWS
    del proto.graph.value_info[:]  # may name the axis otherwise; every tool infers them again
    inner = {name for node in proto.graph.node for name in node.output} - outputs.keys()
    aside = {name: f"{name}.inner" for name in outputs.values() if name in inner}
    names = {old: new for old, new in {**aside, **outputs}.items() if old != new}
    renamed = graph.load(graph.rename(graph.serialize(proto, source=source), names))
    rewritten = passes.optimize(renamed, only)
    return graph.serialize(renamed, source=source, notes=(*notes, *rewritten))
