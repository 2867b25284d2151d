"""A Loop that is a recurrent layer becomes that operator; a Loop that is nearly one stays."""

import numpy as np
import onnx
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeml.graph.passes import optimize
from edgeml_runtime.session import Session

SIZES = st.integers(1, 5)


def a_loop(
    weights: dict[str, np.ndarray], nodes: list[tuple[str, list[str], list[str], dict]], *, start: bool
) -> bytes:
    """Return a model that loops over `x` (rows, steps, d); `nodes` make `next` from `row` and `h`."""
    units = weights["R"].shape[0]
    f, i, b = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    body = helper.make_graph(
        [
            helper.make_node("Gather", ["steps_first", "i"], ["row"]),
            *[helper.make_node(kind, given, made, **attributes) for kind, given, made, attributes in nodes],
            helper.make_node("Identity", ["c"], ["c_out"]),
            helper.make_node("Identity", ["next"], ["collected"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("i", i, []),
            helper.make_tensor_value_info("c", b, []),
            helper.make_tensor_value_info("h", f, [None, units]),
        ],
        [
            helper.make_tensor_value_info("c_out", b, []),
            helper.make_tensor_value_info("next", f, [None, units]),
            helper.make_tensor_value_info("collected", f, [None, units]),
        ],
    )
    zeros = [helper.make_node("Expand", ["nought", "size"], ["h0"])]
    begin = [helper.make_node("Identity", ["start"], ["h0"])] if start else zeros
    graph = helper.make_graph(
        [
            helper.make_node("Transpose", ["x"], ["steps_first"], perm=[1, 0, 2]),
            helper.make_node("Shape", ["steps_first"], ["shape"]),
            helper.make_node("Gather", ["shape", "zero"], ["count"]),
            helper.make_node("Gather", ["shape", "one"], ["rows"]),
            helper.make_node("Concat", ["rows_", "units"], ["size"], axis=0),
            *begin,
            helper.make_node("Loop", ["count", "", "h0"], ["last", "every"], body=body),
        ],
        "g",
        [helper.make_tensor_value_info("x", f, ["rows", "steps", weights["W"].shape[0]])]
        + ([helper.make_tensor_value_info("start", f, ["rows", units])] if start else []),
        [
            helper.make_tensor_value_info("last", f, ["rows", units]),
            helper.make_tensor_value_info("every", f, ["steps", "rows", units]),
        ],
        [numpy_helper.from_array(value, name) for name, value in weights.items()]
        + [numpy_helper.from_array(np.array(value), name) for name, value in (("zero", 0), ("one", 1))]
        + [numpy_helper.from_array(np.float32(0), "nought"), numpy_helper.from_array(np.array([units]), "units")]
        + [numpy_helper.from_array(np.array([0]), "axis")],
    )
    graph.node.insert(4, helper.make_node("Unsqueeze", ["rows", "axis"], ["rows_"]))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def a_gru(units: int, width: int, *, start: bool = False, keeps: float = 1.0, gate: str = "keeps") -> bytes:
    """Return a GRU that resets after the product; `keeps` other than 1 makes it something else."""
    rng = np.random.default_rng(units * 7 + width)
    weights = {"W": (width, 3 * units), "R": (units, 3 * units), "b": (3 * units,)}
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in weights.items()}
    arrays |= {"keeps": np.float32(keeps), "unit": np.float32(1)}
    split = {"axis": 1, "num_outputs": 3}
    return a_loop(
        arrays,
        [
            ("MatMul", ["row", "W"], ["xw"], {}),
            ("Add", ["xw", "b"], ["xb"], {}),
            ("MatMul", ["h", "R"], ["hr"], {}),
            ("Split", ["xb"], ["xz", "xr", "xh"], split),
            ("Split", ["hr"], ["hz", "hrr", "hh"], split),
            ("Add", ["xz", "hz"], ["z_"], {}),
            ("Sigmoid", ["z_"], ["z"], {}),
            ("Add", ["xr", "hrr"], ["r_"], {}),
            ("Sigmoid", ["r_"], ["r"], {}),
            ("Mul", ["r", "hh"], ["rh"], {}),
            ("Add", ["xh", "rh"], ["n_"], {}),
            ("Tanh", ["n_"], ["n"], {}),
            ("Sub", ["unit", "z"], ["rest"], {}),
            ("Mul", ["rest", "n"], ["new"], {}),
            ("Mul", ["z", "h"], ["old_"], {}),
            ("Mul", ["old_", gate], ["old"], {}),
            ("Add", ["new", "old"], ["next"], {}),
        ],
        start=start,
    )


def operators(proto: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in proto.graph.node]


@settings(max_examples=25)
@given(SIZES, SIZES, SIZES, SIZES, st.booleans())
def test_a_gru_of_any_size_becomes_the_operator_and_answers_the_same(units, width, steps, rows, start):
    data = a_gru(units, width, start=start)
    proto = onnx.load_from_string(data)
    assert optimize(proto, ["recurrent"]) == [f"a loop became GRU, {units} units"]
    assert "GRU" in operators(proto) and "Loop" not in operators(proto)
    rng = np.random.default_rng(steps)
    feeds = {"x": rng.normal(size=(rows, steps, width)).astype(np.float32)}
    if start:
        feeds["start"] = rng.normal(size=(rows, units)).astype(np.float32)
    before, after = Session(data).run(feeds), Session(proto.SerializeToString()).run(feeds)
    for name in ("last", "every"):
        assert np.allclose(before[name], after[name], atol=1e-5)


def test_a_loop_that_is_nearly_a_gru_stays_one():
    proto = onnx.load_from_string(a_gru(4, 3, keeps=0.99))
    assert optimize(proto, ["recurrent"]) == []
    assert "Loop" in operators(proto)


def test_a_step_that_reads_more_than_the_sequence_stays_a_loop():
    data = a_gru(4, 3, start=True, gate="start")  # multiplied by an input of the model in every step
    proto = onnx.load_from_string(data)
    assert optimize(proto, ["recurrent"]) == []
    assert operators(proto) == operators(onnx.load_from_string(data))
