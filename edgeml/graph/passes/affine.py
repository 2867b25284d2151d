"""Scaling of the columns, folded into the linear layer behind it.

    y = W ((x - m) / s) + b   becomes   y = (W / s) x + (b - W m / s)

Computed in float64 and rounded once. Where a column's mean is more than 30 of its deviations away the sum would cancel
digits, so nothing is folded: answers stay within 1e-5 of the largest value. Weights called `layerN.` can be trained on
a device and stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, helper

from edgeml.graph.passes.wiring import Wiring, remove
from edgeml.graph.proto import attribute

FARTHEST = 30.0  # of |mean / deviation|: beyond, float32 loses a digit and a half
STEPS = {  # x * factor + shift, by operator and the constant on the right
    "Sub": lambda c: (np.ones_like(c), -c),
    "Add": lambda c: (np.ones_like(c), c),
    "Mul": lambda c: (c, np.zeros_like(c)),
    "Div": lambda c: (1.0 / c, np.zeros_like(c)),
}
TRAINABLE = "layer"


@dataclass(frozen=True)
class _Scaling:
    """Nodes that together are x * factor + shift by column; `source` is x."""

    source: str
    nodes: list[NodeProto]
    factor: np.ndarray
    shift: np.ndarray


def affine(proto: ModelProto) -> list[str]:
    """Fold scalers into the Gemm, MatMul with an Add, LinearClassifier or LinearRegressor that alone reads them."""
    notes = []
    for node in list(proto.graph.node):
        wiring = Wiring(proto.graph)
        fold = FOLDS.get(node.op_type)
        if fold is None or not node.input or (width := _width(wiring, node)) is None:
            continue
        scaling = _scaling(wiring, node, width)
        if scaling is None or not fold(wiring, node, scaling):
            continue
        node.input[0] = scaling.source
        remove(proto.graph, scaling.nodes)
        notes.append(f"folded {len(scaling.nodes)} scaling operators into {node.op_type}")
    return notes


def _width(wiring: Wiring, node: NodeProto) -> int | None:
    """Return how many columns the linear node reads, None where it is none that can be folded into."""
    if node.op_type in ("Gemm", "MatMul"):
        weight = wiring.constant(node.input[1])
        if weight is None or weight.ndim != 2 or weight.dtype != np.float32 or node.input[1].startswith(TRAINABLE):
            return None
        return int(weight.shape[1] if attribute(node, "transB", 0) else weight.shape[0])
    targets = len(np.atleast_1d(np.asarray(attribute(node, "intercepts", []))))
    coefficients = len(np.atleast_1d(np.asarray(attribute(node, "coefficients", []))))
    return coefficients // targets if targets and coefficients % targets == 0 else None


def _scaling(wiring: Wiring, node: NodeProto, width: int) -> _Scaling | None:
    """Return the scaling in front of `node`, from its first operator to its last."""
    name, nodes = node.input[0], []
    factor, shift = np.ones(width), np.zeros(width)
    reader = node
    while (maker := wiring.producer.get(name)) is not None and wiring.only_reader(name) is reader:
        step = _step(wiring, maker, width)
        if step is None:
            break
        shift = factor * step[1] + shift
        factor = factor * step[0]
        nodes.append(maker)
        name, reader = maker.input[0], maker
    good = np.isfinite(factor).all() and np.isfinite(shift).all() and (np.abs(shift) <= FARTHEST).all()
    return _Scaling(name, nodes, factor, shift) if nodes and good and (factor != 0).all() else None


def _step(wiring: Wiring, node: NodeProto, width: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return factor and shift of one operator, (width,) each, None for anything else."""
    if node.op_type == "Scaler":
        offset, scale = (
            np.asarray(attribute(node, name, default)) for name, default in (("offset", [0.0]), ("scale", [1.0]))
        )
        if {len(offset), len(scale)} <= {1, width}:
            scale = np.broadcast_to(scale, width).astype(np.float64)
            return scale, -np.broadcast_to(offset, width).astype(np.float64) * scale
        return None
    if node.op_type not in STEPS or node.domain not in ("", "ai.onnx"):
        return None
    constant = wiring.constant(node.input[1])
    flat = constant is not None and constant.dtype == np.float32 and constant.size in (1, width)
    if constant is None or not flat or constant.ndim > 2 or (constant.ndim == 2 and constant.shape[0] != 1):
        return None
    with np.errstate(divide="ignore"):
        return STEPS[node.op_type](np.broadcast_to(constant.reshape(-1), width).astype(np.float64))


def _into_product(wiring: Wiring, node: NodeProto, scaling: _Scaling) -> bool:
    """Fold into Gemm, or into MatMul and the Add with a constant behind it, which is put there where it is missing."""
    weight = np.asarray(wiring.constant(node.input[1]), dtype=np.float64)
    across = weight.T if attribute(node, "transB", 0) else weight  # (columns, outputs)
    moved = scaling.shift @ across
    gemm = node.op_type == "Gemm"
    adder = None if gemm else wiring.only_reader(node.output[0])
    if gemm and (
        attribute(node, "transA", 0) or attribute(node, "alpha", 1.0) != 1 or attribute(node, "beta", 1.0) != 1
    ):
        return False
    holder, at = (node, 2) if gemm else (adder, 1)
    plain = holder is None or (not gemm and (holder.op_type != "Add" or holder.input[0] != node.output[0]))
    bias = None if plain or holder is None or len(holder.input) <= at else wiring.constant(holder.input[at])
    if holder is not None and bias is not None:
        trained = holder.input[at].startswith(TRAINABLE)
        if trained or bias.dtype != np.float32 or bias.size != len(moved):
            return False
    scaled = across * scaling.factor[:, None]
    folded = scaled.T if attribute(node, "transB", 0) else scaled
    node.input[1] = wiring.add(f"{node.input[1]}.scaled", folded.astype(np.float32))
    if moved.any() and not gemm and bias is None:
        _add_behind(wiring, node, moved)
    elif moved.any() and holder is not None:
        total = (np.zeros(len(moved)) if bias is None else bias.astype(np.float64).reshape(-1)) + moved
        name = wiring.add(f"{node.input[1]}.shift", total.astype(np.float32))
        holder.input[:] = [*holder.input[:at], name, *holder.input[at + 1 :]]
    return True


def _add_behind(wiring: Wiring, node: NodeProto, shift: np.ndarray) -> None:
    """Put an Add of `shift` between `node` and its readers."""
    graph, output = wiring.graph, node.output[0]
    inner = f"{output}.unshifted"
    adder = helper.make_node("Add", [inner, wiring.add(f"{output}.shift", shift.astype(np.float32))], [output])
    position = next(index for index, one in enumerate(graph.node) if one.output[:1] == [output])
    node.output[0] = inner
    graph.node.insert(position + 1, adder)


def _into_linear(_wiring: Wiring, node: NodeProto, scaling: _Scaling) -> bool:
    """Fold into the attributes of an ai.onnx.ml linear model, coefficients by output."""
    intercepts = np.asarray(attribute(node, "intercepts"), dtype=np.float64)
    weights = np.asarray(attribute(node, "coefficients"), dtype=np.float64).reshape(len(intercepts), -1)
    new = {"coefficients": (weights * scaling.factor).ravel(), "intercepts": intercepts + weights @ scaling.shift}
    kept = [AttributeProto.FromString(a.SerializeToString()) for a in node.attribute if a.name not in new]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(name, v.astype(np.float32).tolist()) for name, v in new.items())
    return True


FOLDS = {"Gemm": _into_product, "MatMul": _into_product} | dict.fromkeys(
    ("LinearClassifier", "LinearRegressor"), _into_linear
)
