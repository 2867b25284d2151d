"""What a network has to do on a CPU, by the kind of kernel that does it: what rooflines are fitted to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from edgeml.graph import Cost, Layer

# kinds of multiplying kernels; a `winograd` window is the 3x3 of stride 1 that Winograd's method speeds up
KINDS = ("pointwise", "winograd", "dense", "depthwise", "gemv", "gemm")
FEW_CHANNELS = 16  # below it neither Winograd's method nor its like pays


@dataclass(frozen=True)
class Work:
    """Millions of multiply-accumulates by kind, of activation elements, of weights, and the number of operators."""

    mmacs: Mapping[str, float] = field(default_factory=dict)
    melements: float = 0.0  # activations that multiplying operators read and write
    mmoved: float = 0.0  # activations that the others read and write
    mweights: float = 0.0
    nodes: float = 0.0

    @property
    def macs(self) -> float:
        return 1e6 * sum(self.mmacs.values())

    def plain(self) -> dict[str, float]:
        """Return the columns of a table of works."""
        kinds = {kind: round(self.mmacs.get(kind, 0.0), 4) for kind in KINDS}
        rest = {"melements": self.melements, "mmoved": self.mmoved, "mweights": self.mweights}
        return kinds | {name: round(value, 4) for name, value in rest.items()} | {"nodes": round(self.nodes)}

    def row(self) -> np.ndarray:
        """Return the numbers in the order of COLUMNS."""
        return np.array([*(self.mmacs.get(kind, 0.0) for kind in KINDS), *(getattr(self, name) for name in REST)])


REST = ("melements", "mmoved", "mweights", "nodes")
COLUMNS = (*KINDS, *REST)


def work_of(cost: Cost, *, int8: bool | None = None) -> Work:
    """Return the work of a graph, or only of its operators that are `int8`, or that are not."""
    layers = [layer for layer in cost.layers if int8 is None or ("." in layer.macs_class) is int8]
    mmacs = dict.fromkeys(KINDS, 0.0)
    for layer in layers:
        mmacs[kind_of(layer)] += layer.macs / 1e6
    elements = sum(layer.elements for layer in layers) / 1e6
    weights = sum(_weights(layer) for layer in layers) / 1e6
    others = 0 if int8 else cost.nodes - len(cost.layers)
    moved = 0.0 if int8 else cost.moved_bytes / 4e6
    return Work(mmacs, elements, moved, weights, len(layers) + max(others, 0))


def of_plain(row: Mapping[str, str]) -> Work:
    """Return the work that is written in a row of a table."""
    numbers = {name: float(row[name]) for name in COLUMNS}
    return Work({kind: numbers[kind] for kind in KINDS}, *(numbers[name] for name in REST))


def kind_of(layer: Layer) -> str:
    """Return the kind of kernel that computes `layer`."""
    operator = layer.macs_class.partition(".")[0]
    if operator != "conv":
        return operator
    if all(side == 1 for side in layer.window):
        return "pointwise"
    small = layer.channels < FEW_CHANNELS or layer.stride > 1
    return "dense" if small or set(layer.window) != {3} else "winograd"


def _weights(layer: Layer) -> float:
    return layer.weights / (1 if "." in layer.macs_class else 4)
