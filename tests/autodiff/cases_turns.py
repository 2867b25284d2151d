"""Uses of Scan whose bodies read nothing but their inputs, as `loops.close` leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnx import GraphProto, NodeProto, helper

from tests.autodiff.case import Case, normal

node = helper.make_node


def a_body(
    nodes: Sequence[NodeProto], inputs: Sequence[str], outputs: Sequence[str], *, name: str = "turn"
) -> GraphProto:
    """A body whose tensors have the types of what comes in."""
    given = [helper.make_empty_tensor_value_info(name) for name in inputs]
    results = [helper.make_empty_tensor_value_info(name) for name in outputs]
    return helper.make_graph(nodes, name, given, results)


CELL = a_body(  # h = tanh(h w + x), written twice
    [
        node("MatMul", ["h", "w"], ["product"]),
        node("Add", ["product", "x"], ["sum"]),
        node("Tanh", ["sum"], ["next"]),
        node("Identity", ["w"], ["w.kept"]),
        node("Identity", ["next"], ["element"]),
    ],
    ["h", "w", "x"],
    ["next", "w.kept", "element"],
    name="cell",
)
RUNNING = a_body(  # two states that cross: a = b x, b = sin(a) + x
    [
        node("Mul", ["b", "x"], ["a.next"]),
        node("Sin", ["a"], ["bent"]),
        node("Add", ["bent", "x"], ["b.next"]),
    ],
    ["a", "b", "x"],
    ["a.next", "b.next"],
    name="running",
)
MAPPED = a_body([node("Sigmoid", ["x"], ["s"]), node("Mul", ["s", "z"], ["y"])], ["x", "z"], ["y"], name="mapped")


def reading(name: str) -> GraphProto:
    """Return a body that reads a tensor from outside."""
    return a_body([node("Mul", ["x", name], ["y"])], ["x"], ["y"])


def scans(body: GraphProto, *, sequences: int, **ways: Any) -> dict[str, Any]:
    return {"body": body, "num_scan_inputs": sequences, **ways}


def _cells() -> list[Case]:
    inputs = {"h": normal(2, 3), "w": normal(3, 3) / 2, "x": normal(4, 2, 3)}
    turned = {"scan_input_directions": [1], "scan_output_directions": [1]}
    return [
        Case(inputs, attributes=scans(CELL, sequences=1), outputs=3),
        Case(inputs, attributes=scans(CELL, sequences=1, **turned), outputs=3),
    ]


TURNS: dict[str, list[Case]] = {
    "Scan": [
        *_cells(),
        Case({"a": normal(3), "b": normal(3), "x": normal(4, 3)}, attributes=scans(RUNNING, sequences=1), outputs=2),
        Case({"x": normal(4, 3), "z": normal(4, 3)}, attributes=scans(MAPPED, sequences=2), outputs=1),
        Case({"x": normal(4, 3)}, ("x", "z"), {"z": normal(4, 3)}, scans(MAPPED, sequences=2), outputs=1),
    ],
}
