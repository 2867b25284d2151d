"""VJP rules of the losses that are ONNX operators: exported networks hold them when the loss was exported, too.

With w the row's weight (of its class; 0 where the class is ignored) and N the sum of weights:
    d loss / d log p[target] = -w dy        (mean: / N)
    d loss / d score         = w dy (softmax(score) - onehot(target))
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import NodeProto, TensorProto

from edgeml.autodiff.builder import GraphBuilder, attributes, describe
from edgeml.autodiff.rules import Grads, vjp, vjp_all
from edgeml.errors import UnsupportedModel


@dataclass(frozen=True)
class _Rows:
    """What every row's class gets: `share`, the gradient of its -log p with the class axis put in; `truth`, one-hot."""

    share: str
    truth: str


@vjp("NegativeLogLikelihoodLoss", refuses="class weights that are learned")
def negative_log_likelihood(g: GraphBuilder, node: NodeProto, dy: str) -> Grads:
    rows = _rows(g, node, dy)
    return g.op("Neg", g.op("Mul", rows.share, rows.truth)), *[None] * (len(node.input) - 1)


@vjp_all("SoftmaxCrossEntropyLoss", refuses="class weights that are learned; a gradient for its log_prob")
def softmax_cross_entropy(g: GraphBuilder, node: NodeProto, dys: Sequence[str | None]) -> Grads:
    if dys[0] is None or any(dys[1:]):
        raise UnsupportedModel(f"{describe(node)}: only its first output can be differentiated")
    rows = _rows(g, node, dys[0])
    slope = g.op("Sub", g.op("Softmax", node.input[0], axis=1), rows.truth)
    return g.op("Mul", rows.share, slope), *[None] * (len(node.input) - 1)


def _rows(g: GraphBuilder, node: NodeProto, dy: str) -> _Rows:
    x, target, options = node.input[0], node.input[1], attributes(node)
    weights = node.input[2] if len(node.input) > 2 else ""
    if weights in g.active:
        raise UnsupportedModel(f"{describe(node)}: class weights {weights!r} that are learned have no gradient rule")
    of, one, zero = g.dtypes[x], g.const(1, like=x), g.const(0, like=x)
    kinds = g.op("Gather", g.op("Shape", x), g.const(1, dtype=np.int64))
    place = g.op("Cast", target, to=TensorProto.INT64)
    ignored = ""
    if "ignore_index" in options:
        ignored = g.op("Equal", place, g.const(options["ignore_index"], dtype=np.int64))
        place = g.op("Where", ignored, g.const(0, dtype=np.int64), place)
    values = g.const([0.0, 1.0], dtype=np.float32)  # OneHot has no float64 kernel
    truth = g.op("Cast", g.op("OneHot", place, kinds, values, axis=1), to=of)
    by_class = g.op("Gather", weights, place, axis=0) if weights else g.op("Expand", one, g.op("Shape", place))
    if ignored:
        by_class = g.op("Where", ignored, zero, by_class)
    share = g.op("Mul", by_class, dy)
    if options.get("reduction", b"mean") == b"mean":
        share = g.op("Div", share, g.op("ReduceSum", by_class, keepdims=0))
    return _Rows(g.op("Unsqueeze", share, g.ints([1])), truth)
