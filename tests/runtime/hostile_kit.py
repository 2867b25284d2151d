"""Graphs that try to carry rows away or to take a device down, and a device's folder to try them on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper, numpy_helper

from edgeml_runtime.config import BLOBS, SAMPLES
from edgeml_runtime.samples import Samples
from edgeml_runtime.task_child import Order
from edgeml_runtime.wire import blocks, tensors
from tests.runtime.graphs import FLOAT, INT64

N, WIDTH = 40, 64
ROWS = ("numeric", FLOAT, ["rows", WIDTH])
TRAINING = (ROWS, ("target", INT64, ["rows"]), ("lr", FLOAT, []), ("w", FLOAT, [WIDTH, 10]))
CONSTANTS = {
    "zero": np.array([0], np.int64),
    "one": np.array([1], np.int64),
    "ten": np.array([10], np.int64),
    "ten_rows": np.arange(10, dtype=np.int64),
    "first": np.array(0, np.int64),
    "off_on": np.array([0, 1], np.float32),
    "turns": np.array(10, np.int64),
    "yes": np.array(True),
    "thousand": np.array(1000, np.float32),
    "nought": np.array(0, np.float32),
    "for_ever": np.array(2**62, np.int64),
    "half": np.array(0.5, np.float32),
    "steps": np.ones((20, 1), np.float32),
    "wide": np.array([9**6], np.int64),
    "huge": np.array([1 << 20, 1 << 20], np.int64),
}
node = helper.make_node


def a_graph(nodes: Sequence[NodeProto], *outputs: Any, inputs: Sequence[Any] = (ROWS,), opset: int = 18) -> bytes:
    """Return a graph of `nodes` and the constants above, as bytes; it need not be valid."""
    constants = [numpy_helper.from_array(array, name) for name, array in CONSTANTS.items()]
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    results = [helper.make_tensor_value_info(*value) for value in outputs]
    graph = helper.make_graph(list(nodes), "task", values, results, constants)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())


def a_body(nodes: Sequence[NodeProto], carried: Sequence[Any], results: Sequence[Any]) -> onnx.GraphProto:
    """Return the body of a loop that goes on."""
    inputs = [("i", INT64, []), ("more", onnx.TensorProto.BOOL, []), *carried]
    outputs = [("going", onnx.TensorProto.BOOL, []), *results]
    return helper.make_graph(
        [*nodes, node("Identity", ["more"], ["going"])],
        "body",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
    )


def stolen(*shape: Any, dtype: int = FLOAT) -> Any:
    return ("stolen", dtype, list(shape))


HONEST = (
    node("MatMul", ["numeric", "w"], ["z"]),
    node("ReduceMean", ["z"], ["loss.before"], keepdims=0),
)
ONE_HOT = (
    node("Shape", ["numeric"], ["shape"]),
    node("Gather", ["shape", "zero"], ["rows"]),
    node("OneHot", ["ten_rows", "rows", "off_on"], ["chosen"], axis=1),
)
ENCODING = a_body(
    [
        node("Gather", ["numeric", "i"], ["row"], axis=0),
        node("Gather", ["row", "first"], ["cell"], axis=0),
        node("Mul", ["sum", "thousand"], ["shifted"]),
        node("Add", ["shifted", "cell"], ["next"]),
    ],
    [("sum", FLOAT, [])],
    [("next", FLOAT, [])],
)
COPYING = a_body([node("Gather", ["numeric", "i"], ["row"], axis=0)], [], [("row", FLOAT, [WIDTH])])
SPINNING = a_body([node("Identity", ["sum"], ["next"])], [("sum", FLOAT, [])], [("next", FLOAT, [])])

SUMS: Mapping[str, tuple[bytes, str]] = {
    "the rows": (
        a_graph([node("Identity", ["numeric"], ["stolen"])], stolen("rows", WIDTH)),
        r"'stolen', float32 of shape \(any, 64\), could carry rows away",
    ),
    "the rows, said to be ten": (
        a_graph([node("Identity", ["numeric"], ["stolen"])], stolen(10, WIDTH)),
        r"came as \(39, 64\) and was declared as \(10, 64\)",
    ),
    "a number for each row": (
        a_graph([node("ReduceSum", ["numeric", "one"], ["stolen"], keepdims=0)], stolen("rows")),
        "could carry rows away",
    ),
    "a slice": (
        a_graph([node("Slice", ["numeric", "zero", "ten"], ["stolen"])], stolen(10, WIDTH)),
        "no sum over rows",
    ),
    "gathered rows": (
        a_graph([node("Gather", ["numeric", "ten_rows"], ["stolen"], axis=0)], stolen(10, WIDTH)),
        "no sum over rows",
    ),
    "one-hot times the rows": (
        a_graph([*ONE_HOT, node("MatMul", ["chosen", "numeric"], ["stolen"])], stolen(10, WIDTH)),
        "no sum over rows",
    ),
    "a loop that copies rows": (
        a_graph([node("Loop", ["turns", "yes"], ["stolen"], body=COPYING)], stolen(10, WIDTH)),
        "no sum over rows",
    ),
    "a loop that writes rows into one number": (
        a_graph([node("Loop", ["turns", "yes", "nought"], ["stolen"], body=ENCODING)], stolen()),
        "no sum over rows",
    ),
    "the extremes": (
        a_graph([node("ReduceMax", ["numeric", "zero"], ["stolen"], keepdims=0)], stolen(WIDTH)),
        "no sum over rows",
    ),
    "sorted columns": (
        a_graph([node("TopK", ["numeric", "ten"], ["stolen", "where"], axis=0)], stolen(10, WIDTH)),
        "no sum over rows",
    ),
    "the signs of the first row": (
        a_graph(
            [
                node("Gather", ["numeric", "first"], ["row"], axis=0),
                node("Greater", ["row", "nought"], ["sign"]),
                node("Cast", ["sign"], ["stolen"], to=FLOAT),
            ],
            stolen(WIDTH),
        ),
        "changes with the order of rows",
    ),
    "a wall of marks": (
        a_graph(
            [
                node("ReduceMax", ["numeric", "zero"], ["largest"], keepdims=1),
                node("Sub", ["largest", "steps"], ["above"]),
                node("Greater", ["largest", "above"], ["sign"]),
                node("Cast", ["sign"], ["stolen"], to=FLOAT),
            ],
            stolen(20, WIDTH),
        ),
        "1,280 marks in outputs that are no sums over rows; 1,024 are allowed",
    ),
    "names": (a_graph([node("Cast", ["numeric"], ["stolen"], to=8)], ("stolen", 8, [10, 64])), "could carry rows away"),
    "a giant tensor": (
        a_graph([node("ConstantOfShape", ["huge"], ["stolen"])], stolen(4)),
        "1,099,511,627,776 elements",
    ),
    "a random operator": (
        a_graph([node("RandomNormalLike", ["numeric"], ["stolen"])], stolen(4)),
        "the operator RandomNormalLike, which is not on",
    ),
    "an operator of another domain": (
        a_graph([node("FusedMatMul", ["numeric", "numeric"], ["stolen"], domain="com.microsoft")], stolen(4)),
        "the operator com.microsoft:FusedMatMul, which is not on",
    ),
    "an operator outside the list, in a loop": (
        a_graph(
            [
                node(
                    "Loop",
                    ["turns", "yes", "nought"],
                    ["stolen"],
                    body=a_body(
                        [node("RandomUniformLike", ["sum"], ["next"])], [("sum", FLOAT, [])], [("next", FLOAT, [])]
                    ),
                )
            ],
            stolen(),
        ),
        "the operator RandomUniformLike",
    ),
    "a loop without a count": (
        a_graph([node("Loop", ["", "yes", "nought"], ["stolen"], body=SPINNING)], stolen()),
        "without a trip count",
    ),
    "a loop of too many turns": (
        a_graph([node("Loop", ["for_ever", "yes", "nought"], ["stolen"], body=SPINNING)], stolen()),
        "a Loop of 4,611,686,018,427,387,904 turns",
    ),
    "too large an answer": (
        a_graph([node("ConstantOfShape", ["wide"], ["stolen"])], stolen(9**6)),
        "outputs of 2,125,764 bytes; 1,048,576 are allowed",
    ),
    "no model": (b"\x08\x07nonsense", "the task's graph is not a model"),
}
UPDATES: Mapping[str, tuple[bytes, str]] = {
    "an update of rows, by MatMul": (
        a_graph(
            [
                *HONEST,
                *ONE_HOT,
                node("Transpose", ["numeric"], ["tall"], perm=[1, 0]),
                node("Transpose", ["chosen"], ["places"], perm=[1, 0]),
                node("MatMul", ["tall", "places"], ["delta.w"]),
            ],
            ("delta.w", FLOAT, [WIDTH, 10]),
            ("loss.before", FLOAT, []),
            inputs=TRAINING,
        ),
        "output 'delta.w' follows single rows",
    ),
    "an update that is a slice of rows": (
        a_graph(
            [
                *HONEST,
                node("Slice", ["numeric", "zero", "ten"], ["ten_of_them"]),
                node("Transpose", ["ten_of_them"], ["delta.w"], perm=[1, 0]),
            ],
            ("delta.w", FLOAT, [WIDTH, 10]),
            ("loss.before", FLOAT, []),
            inputs=TRAINING,
        ),
        r"output 'delta.w' came as \(64, 2\) and was declared as \(64, 10\)",
    ),
    "a loss that is a cell": (
        a_graph(
            [
                node("Gather", ["numeric", "first"], ["row"], axis=0),
                node("Gather", ["row", "first"], ["loss.before"], axis=0),
                node("Identity", ["w"], ["delta.w"]),
            ],
            ("delta.w", FLOAT, [WIDTH, 10]),
            ("loss.before", FLOAT, []),
            inputs=TRAINING,
        ),
        "output 'loss.before' follows single rows",
    ),
    "a channel of metrics": (
        a_graph(
            [
                *HONEST,
                node("Identity", ["w"], ["delta.w"]),
                node("Slice", ["numeric", "zero", "ten"], ["part"]),
                *(node("Identity", ["part"], [f"metric{i}"]) for i in range(2)),
            ],
            ("delta.w", FLOAT, [WIDTH, 10]),
            *((f"metric{i}", FLOAT, [10, WIDTH]) for i in range(2)),
            inputs=TRAINING,
        ),
        "1280 values beside the update; 1024 are allowed",
    ),
    "an update of no parameter": (
        a_graph([node("Identity", ["w"], ["delta.v"])], ("delta.v", FLOAT, [WIDTH, 10]), inputs=TRAINING),
        "the change of no parameter",
    ),
}


COUNTED = a_graph(
    [
        node("Reshape", ["for_ever", "one"], ["vector"]),
        node("ReduceSum", ["vector"], ["trips"], keepdims=0),
        node("Loop", ["trips", "yes", "nought"], ["end"], body=SPINNING),
        node("Mul", ["numeric", "end"], ["all"]),
        node("ReduceSum", ["all", "zero"], ["stolen"], keepdims=0),
    ],
    stolen(WIDTH),
)
GREEDY = a_graph(
    [
        node("Add", ["huge", "zero"], ["computed"]),
        node("Expand", ["nought", "computed"], ["mountain"]),
        node("ReduceSum", ["mountain"], ["end"], keepdims=0),
        node("Mul", ["numeric", "end"], ["all"]),
        node("ReduceSum", ["all", "zero"], ["stolen"], keepdims=0),
    ],
    stolen(WIDTH),
)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return the folder of a device with 40 labelled rows."""
    (tmp_path / BLOBS).mkdir()
    samples, rng = Samples(tmp_path / SAMPLES), np.random.default_rng(4)
    rows = {"numeric": rng.normal(size=(N, WIDTH)).astype(np.float32)}
    samples.add_many(rows, targets=rng.integers(0, 10, N).tolist(), now=0.0)
    samples.close()
    return tmp_path


def an_order(state: Path, graph: bytes, kind: Any = "statistics", **changes: Any) -> Order:
    parameters = tensors.pack({"w": np.random.default_rng(1).normal(size=(WIDTH, 10)).astype(np.float32)})
    for data in (graph, parameters):
        (state / BLOBS / blocks.digest_of(data)).write_bytes(data)
    return Order(
        **{
            "round": "r-1",
            "run": "r",
            "kind": kind,
            "graph": blocks.digest_of(graph),
            "parameters": blocks.digest_of(parameters),
            "scalars": {"lr": 0.1},
            "min_rows": 10,
            "update_bytes": 1 << 20,
            "kept_bytes": 1 << 20,
            "constant_bytes": 1 << 20,
            **changes,
        }
    )
