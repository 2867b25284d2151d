"""Loops that learn: backpropagation through turns, against the same network with its turns written out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from edgeml.artifacts import TrainingGraph
from edgeml.autodiff import training_step
from edgeml.errors import UnsupportedModel
from edgeml_runtime.session import Session

node = helper.make_node
RNG = np.random.default_rng(5)
F32 = np.float32
TURNS, WIDTH = 5, 3
CONSTANTS: dict[str, np.ndarray] = {
    "w": (RNG.normal(size=(WIDTH, WIDTH)) / 2).astype(F32),
    "b": RNG.normal(size=WIDTH).astype(F32),
    "out": RNG.normal(size=(WIDTH, 2)).astype(F32),
    "start": np.zeros((1, WIDTH), F32),
    "turns": np.array(TURNS),
    "yes": np.array(True),
    "axis": np.array([0]),
    "half": np.array(0.5, F32),
}
HEAD = [node("MatMul", ["h", "out"], ["z"]), node("Identity", ["z"], ["prediction"])]
X = RNG.normal(size=(4, TURNS, WIDTH)).astype(F32)
TARGET = RNG.normal(size=(4, 2)).astype(F32)


def a_model(nodes: Sequence[NodeProto], *, opset: int = 18, constants: dict[str, np.ndarray] = CONSTANTS) -> bytes:
    graph = helper.make_graph(
        [*nodes, *HEAD],
        "model",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", TURNS, WIDTH])],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["n", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def a_body(nodes: Sequence[NodeProto], *, more: str = "more", outputs: Sequence[str] = ("next",)) -> GraphProto:
    value = helper.make_tensor_value_info
    inputs = [
        value("turn", TensorProto.INT64, []),
        value("more", TensorProto.BOOL, []),
        value("h", TensorProto.FLOAT, None),
    ]
    results = [value("go", TensorProto.BOOL, []), *(value(name, TensorProto.FLOAT, None) for name in outputs)]
    return helper.make_graph([*nodes, node("Identity", [more], ["go"])], "body", inputs, results)


CELL = [node("MatMul", ["h", "w"], ["hw"]), node("Add", ["hw", "b"], ["hwb"]), node("Add", ["hwb", "entry"], ["sum"])]
STEP = [node("Gather", ["x", "turn"], ["entry"], axis=1), *CELL, node("Tanh", ["sum"], ["next"])]
START = [node("ReduceMean", ["x", "one"], ["h0"], keepdims=0), node("Mul", ["h0", "start"], ["zero"])]
CONSTANTS["one"] = np.array([1])


def a_loop(body: GraphProto, *outputs: str) -> list[NodeProto]:
    return [*START, node("Loop", ["turns", "yes", "zero"], outputs or ["h"], body=body)]


def written_out() -> bytes:
    nodes, h = list(START), "zero"
    for turn in range(TURNS):
        names = [f"{name}.{turn}" for name in ("at", "entry", "hw", "hwb", "sum", "next")]
        at, entry, hw, hwb, total, after = names
        nodes += [
            node("Constant", [], [at], value=numpy_helper.from_array(np.array(turn))),
            node("Gather", ["x", at], [entry], axis=1),
            node("MatMul", [h, "w"], [hw]),
            node("Add", [hw, "b"], [hwb]),
            node("Add", [hwb, entry], [total]),
            node("Tanh", [total], [after]),
        ]
        h = after
    return a_model([*nodes, node("Identity", [h], ["h"])])


def steps(graph: TrainingGraph, count: int = 3) -> dict[str, np.ndarray]:
    variables: dict[str, np.ndarray] = {**graph.parameters, **graph.state}
    session = Session(graph.data)
    for _ in range(count):
        got = session.run({**variables, "x": X, "target": TARGET, "lr": np.array(0.1, F32)})
        variables = {name: got[f"new.{name}"] for name in variables}
    return {**variables, "loss": got["loss"]}


def same(one: bytes, other: bytes, *, trainable: Sequence[str] | None = None) -> None:
    a, b = (steps(training_step(model, loss="mse", trainable=trainable)) for model in (one, other))
    assert a.keys() == b.keys() and len(a) > 2
    for name in a:
        np.testing.assert_allclose(a[name], b[name], atol=2e-6)


@pytest.mark.parametrize("opset", [18, 21])
def test_a_loop_learns_like_its_turns_written_out(opset: int) -> None:
    same(a_model(a_loop(a_body(STEP)), opset=opset), written_out())


def test_a_condition_that_is_always_true_does_not_matter() -> None:
    same(a_model(a_loop(a_body(STEP, more="yes"))), written_out())


def counting(limit: str, nodes: Sequence[NodeProto] = STEP) -> GraphProto:
    """Return a body that stops when a counter of its own, from 10 by 2, reaches `limit`."""
    body = a_body(
        [*nodes, node("Add", ["at", "two"], ["later"]), node("Less", ["later", limit], ["below"])], more="below"
    )
    body.input.append(helper.make_tensor_value_info("at", TensorProto.INT32, []))
    body.output.append(helper.make_tensor_value_info("later", TensorProto.INT32, []))
    return body


COUNTED = {**CONSTANTS, "ten": np.array(10, np.int32), "two": np.array(2, np.int32), "last": np.array(20, np.int32)}


@pytest.mark.parametrize("most", ["", "turns", "many"])
def test_a_condition_that_counters_decide_is_counted(most: str) -> None:
    constants = {**COUNTED, "many": np.array(99)}
    begins = [node("Less", ["ten", "last"], ["first"])]
    loop = node("Loop", [most, "first", "zero", "ten"], ["h", "at.end"], body=counting("last"))
    same(a_model([*START, *begins, loop], constants=constants), written_out())


def test_a_loop_without_states_and_condition_is_counted_too() -> None:
    """It only collects."""
    value = helper.make_tensor_value_info
    row = [node("Gather", ["x", "turn"], ["entry"], axis=1), node("MatMul", ["entry", "w"], ["element"])]
    body = helper.make_graph(
        [*row, node("Identity", ["more"], ["go"])],
        "body",
        [value("turn", TensorProto.INT64, []), value("more", TensorProto.BOOL, [])],
        [value("go", TensorProto.BOOL, []), value("element", TensorProto.FLOAT, None)],
    )
    means = [
        node("Loop", ["turns", ""], ["every"], body=body),
        node("ReduceMean", ["every", "axis"], ["h"], keepdims=0),
    ]
    plain = [node("ReduceMean", ["x", "one"], ["total"], keepdims=0), node("MatMul", ["total", "w"], ["h"])]
    same(a_model(means), a_model(plain), trainable=["w", "out"])


@pytest.mark.parametrize(
    ("limit", "most"), [("computed", ""), ("far", "")], ids=["the run decides", "more turns than are tried"]
)
def test_a_counter_that_cannot_be_followed_is_refused(limit: str, most: str) -> None:
    begins = [node("Shape", ["x"], ["sizes"]), node("ReduceSum", ["sizes"], ["size"], keepdims=0)]
    begins.append(node("Cast", ["size"], ["computed"], to=TensorProto.INT32))
    constants = {**COUNTED, "far": np.array(10**6, np.int32)}
    loop = node("Loop", [most, "yes", "zero", "ten"], ["h", "at.end"], body=counting(limit))
    with pytest.raises(UnsupportedModel, match="fixed number of turns"):
        training_step(a_model([*START, *begins, loop], constants=constants), loss="mse")


def test_what_a_loop_collects_has_a_gradient_as_its_last_state_has() -> None:
    last = node("Gather", ["every", "end"], ["h"], axis=0)
    constants = {**CONSTANTS, "end": np.array(TURNS - 1)}
    collected = [*STEP, node("Identity", ["next"], ["element"])]
    loop = a_loop(a_body(collected, outputs=("next", "element")), "unread", "every")
    same(a_model([*loop, last], constants=constants), written_out())


def test_a_loop_inside_a_loop_learns() -> None:
    inner = helper.make_graph(
        [
            node("Mul", ["g", "half"], ["g.half"]),
            node("Add", ["g.half", "hw"], ["g.next"]),
            node("Identity", ["inner.more"], ["inner.go"]),
        ],
        "inner",
        [
            helper.make_tensor_value_info("inner.turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("inner.more", TensorProto.BOOL, []),
            helper.make_tensor_value_info("g", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("inner.go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("g.next", TensorProto.FLOAT, None),
        ],
    )
    nested = [
        node("MatMul", ["h", "w"], ["hw"]),
        node("Loop", ["two", "yes", "h"], ["g.last"], body=inner),
        node("Add", ["g.last", "b"], ["sum"]),
        node("Tanh", ["sum"], ["next"]),
    ]
    nodes, h = list(START), "zero"
    for turn in range(TURNS):  # g = (h / 2 + hw) / 2 + hw
        a, b, c, d, e, f, after = (f"{name}.{turn}" for name in ("a", "b.", "c", "d", "e", "f", "after"))
        nodes += [
            node("MatMul", [h, "w"], [a]),
            node("Mul", [h, "half"], [b]),
            node("Add", [b, a], [c]),
            node("Mul", [c, "half"], [d]),
            node("Add", [d, a], [e]),
            node("Add", [e, "b"], [f]),
            node("Tanh", [f], [after]),
        ]
        h = after
    constants = {**CONSTANTS, "two": np.array(2), "start": np.ones((1, WIDTH), F32)}
    plain = a_model([*nodes, node("Identity", [h], ["h"])], constants=constants)
    same(a_model(a_loop(a_body(nested)), constants=constants), plain, trainable=["w", "b", "out"])


def test_a_loop_that_reads_no_sequence_learns() -> None:
    scaled = [node("MatMul", ["h", "w"], ["next"])]
    nodes, h = list(START), "zero"
    for turn in range(TURNS):
        nodes.append(node("MatMul", [h, "w"], [f"next.{turn}"]))
        h = f"next.{turn}"
    constants = {**CONSTANTS, "start": np.ones((1, WIDTH), F32)}
    plain = a_model([*nodes, node("Identity", [h], ["h"])], constants=constants)
    same(a_model(a_loop(a_body(scaled)), constants=constants), plain, trainable=["w", "out"])
    same(a_model(a_loop(a_body(scaled)), constants=constants), plain, trainable=["start"])


def test_a_loop_that_stops_by_what_it_computes_is_refused_with_the_way_out() -> None:
    stop = [*STEP, node("ReduceMax", ["next"], ["most"], keepdims=0), node("Less", ["most", "half"], ["small"])]
    model = a_model(a_loop(a_body(stop, more="small")))
    with pytest.raises(UnsupportedModel, match=r"Loop \(node 'h'\).*stop by what they compute.*fixed number of turns"):
        training_step(model, loss="mse")


def test_the_number_of_turns_may_come_with_the_rows() -> None:
    """As many turns as the sequence has entries, which only the run knows."""
    sizes = [node("Shape", ["x"], ["sizes"]), node("Gather", ["sizes", "one"], ["count"])]
    loop = [*START, node("Loop", ["count", "", "zero"], ["h"], body=a_body(STEP))]
    same(a_model([*sizes, *loop]), written_out())


@pytest.mark.parametrize("taken", ["then_branch", "else_branch"])
def test_a_branch_whose_condition_is_constant_is_decided(taken: str) -> None:
    step = [
        node("MatMul", ["zero", "w"], ["zw"]),
        node("Constant", [], ["two"], value_float=2.0),
        node("Mul", ["zw", "two"], ["r"]),
    ]
    right = helper.make_graph(step, "right", [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)])
    other = helper.make_graph([node("Det", ["w"], ["r"])], "other", [], list(right.output))
    branches = {"then_branch": other, "else_branch": other} | {taken: right}
    constants = {**CONSTANTS, "start": np.ones((1, WIDTH), F32), "choice": np.array(taken == "then_branch")}
    branch = [*START, node("If", ["choice"], ["h"], **branches)]
    plain = [*START, node("MatMul", ["zero", "w"], ["zw"]), node("Add", ["zw", "zw"], ["h"])]
    same(a_model(branch, constants=constants), a_model(plain, constants=constants), trainable=["w", "out"])
