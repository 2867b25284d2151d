"""The table of runtimes is what onnxruntime really loads; a graph is written in the newest opset all boards load."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeml import convert, graph
from edgeml.artifacts import OnnxModel
from edgeml.errors import UnsupportedModel, UserError
from edgeml.graph import opsets
from edgeml.graph.proto import NEWEST_OPSET, opset_imports
from edgeml_runtime.session import VERSION, Session
from edgeml_runtime.wire import DeviceError
from tests import networks

FLOAT = TensorProto.FLOAT
node = helper.make_node
HERE = opsets.runtime_of(VERSION)


def stamped(*nodes, opset=17, ml=0, ir=8, shape=("n", 4), **weights) -> bytes:
    values = {"inputs": {"x": (FLOAT, shape)}, "outputs": {"y": (FLOAT, ["n", "m"])}}
    return networks.a_graph(nodes, weights=weights, opset=opset, ml=ml, ir=ir, **values).SerializeToString()


def loads(data: bytes) -> bool:
    try:
        Session(data)
    except DeviceError:
        return False
    return True


RELU = node("Relu", ["x"], ["y"])


@pytest.mark.skipif(VERSION.rsplit(".", 1)[0] not in opsets.RUNTIMES, reason="this onnxruntime is not in the table")
def test_the_row_of_this_very_onnxruntime_is_true():
    scaler = node("Scaler", ["x"], ["y"], domain="ai.onnx.ml", offset=[0.0], scale=[1.0])
    assert loads(stamped(RELU, opset=HERE.newest)) and not loads(stamped(RELU, opset=HERE.newest + 1))
    assert loads(stamped(RELU, ir=HERE.ir)) and not loads(stamped(RELU, ir=HERE.ir + 1))
    assert loads(stamped(scaler, ml=HERE.ml_opset)) and not loads(stamped(scaler, ml=HERE.ml_opset + 1))


def quantizing(opset: int) -> bytes:
    weights = {"s": np.float32(0.1), "z": np.uint8(0)}
    return stamped(
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        opset=opset,
        **weights,
    )


def test_every_gap_that_is_open_here_is_one_and_the_opset_below_it_is_not():
    assert loads(quantizing(HERE.opset))
    for opset in range(13, HERE.newest + 1):
        data = quantizing(opset)
        assert loads(data) == (not opsets.lacking(graph.load(data), VERSION)), opset
    normed = node("LpNormalization", ["x"], ["y"], axis=1)
    for opset in range(13, HERE.newest + 1):
        data = stamped(normed, opset=opset)
        assert loads(data) == (not opsets.lacking(graph.load(data), VERSION)), opset


def test_the_table_grows_and_ends_where_the_check_does():
    rows = list(opsets.RUNTIMES.values())
    for older, newer in itertools.pairwise(rows):
        assert older.opset <= older.newest <= newer.newest and older.ir <= newer.ir and older.ml_opset <= newer.ml_opset
        assert opsets.runtime_of(f"{newer.version}.7") == newer
    assert rows[-1].newest == NEWEST_OPSET and opsets.RUNTIMES[opsets.OLDEST].opset == graph.MAX_OPSET
    assert {gap.mended for gap in opsets.GAPS} - {""} <= opsets.RUNTIMES.keys()


@pytest.mark.parametrize(
    ("versions", "opset"),
    [([], 21), (["1.19.2"], 21), (["1.32.0", "1.22.1"], 22), (["1.99"], 27), (["1.17.3", "1.30"], 20)],
)
def test_auto_is_the_newest_that_the_oldest_board_loads(versions, opset):
    assert opsets.newest_for(versions).opset == opset


@pytest.mark.parametrize("version", ["", "new", "1", "1.x", "1.9.0", "0.5.0", "1.19-rc1"])
def test_what_is_no_version_or_too_old_is_refused(version):
    with pytest.raises(UserError, match="onnxruntime"):
        opsets.runtime_of(version)


def test_what_a_runtime_does_not_load_is_said_line_by_line():
    proto = graph.load(stamped(RELU, opset=22, ir=11))
    assert opsets.refusals(proto, "1.19.2") == [
        "opset 22, it loads at most 21",
        "IR version 11, it loads at most 10",
    ]
    assert opsets.refusals(proto, "1.23.0") == []
    blocks = stamped(
        node("MatMulNBits", ["x", "b", "s"], ["y"], domain="com.microsoft", K=4, N=1, bits=8, block_size=16)
    )
    assert "8 bits before 1.22" in opsets.refusals(graph.load(blocks), "1.19")[0]
    assert opsets.refusals(graph.load(blocks), "1.22") == []


def model(data: bytes) -> OnnxModel:
    return graph.serialize(graph.load(data), source="test")


@pytest.mark.parametrize(("runtime", "written"), [("1.17", 20), ("1.19", 21), ("1.23", 22), ("1.24", 25), ("1.32", 27)])
def test_a_model_is_written_for_its_boards_and_answers_the_same(runtime, written):
    plain = networks.an_mlp()
    fitted = convert.fit_runtimes(plain, [runtime])
    assert opset_imports(graph.load(fitted))[""] == written
    assert graph.load(fitted).ir_version <= opsets.RUNTIMES[runtime].ir
    assert fitted.notes[0] == f"opset 17 rewritten as {written} for onnxruntime {runtime}"
    rows = networks.some_rows(20).inputs
    found, wanted = Session(fitted.data).run(rows), Session(plain.data).run(rows)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    assert convert.fit_runtimes(fitted, [runtime]) is fitted


def test_an_operator_that_lost_its_kernel_keeps_the_graph_below_that_opset():
    fitted = convert.fit_runtimes(model(stamped(node("LpNormalization", ["x"], ["y"], axis=1))), ["1.24"])
    assert opset_imports(graph.load(fitted))[""] == 17


def test_a_product_of_bytes_is_written_below_the_opset_where_an_old_runtime_lost_it():
    weights = {"s": np.float32(0.1), "z": np.uint8(0), "w": np.ones((4, 2), np.uint8)}
    product = [
        node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        node("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], ["p"]),
        node("DequantizeLinear", ["p", "s", "z"], ["y"]),
    ]
    fitted = convert.fit_runtimes(model(stamped(*product, opset=21, **weights)), ["1.19"])
    assert opset_imports(graph.load(fitted))[""] == 20
    assert convert.fit_runtimes(model(stamped(*product, opset=21, **weights)), ["1.20"]).notes == ()


def test_an_opset_can_be_asked_for_within_what_the_boards_load():
    assert opset_imports(graph.load(convert.fit_runtimes(networks.an_mlp(), ["1.19"], opset=15)))[""] == 15
    with pytest.raises(UnsupportedModel, match=r"opset 22 was asked for, onnxruntime 1\.19 loads 7 to 21"):
        convert.fit_runtimes(networks.an_mlp(), ["1.19"], opset=22)


def test_what_an_old_runtime_cannot_run_is_refused_with_the_reason():
    swish = model(stamped(node("Swish", ["x"], ["y"]), opset=24))
    with pytest.raises(UnsupportedModel, match=r"does not run on onnxruntime 1\.19: opset 24, it loads at most 21"):
        convert.fit_runtimes(swish, ["1.19"])
