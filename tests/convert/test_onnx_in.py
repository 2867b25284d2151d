"""ONNX files of any opset come in, are written for the boards, and answer as the file itself does."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeml import convert, graph
from edgeml.artifacts import OnnxModel
from edgeml.convert.onnx_parity import apart, original
from edgeml.convert.trial import refuse_unbounded
from edgeml.errors import UnsupportedModel
from edgeml.graph.proto import opset_imports
from edgeml_runtime.session import Session
from edgeml_runtime.wire.manifest import Settings
from tests import networks
from tests.cli.conftest import Command, edgeml

__all__ = ["edgeml"]  # the fixture
FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node, value = helper.make_node, helper.make_tensor_value_info
DRAW = np.random.default_rng(0)
KERNEL = DRAW.standard_normal((4, 3, 3, 3)).astype(np.float32)
MATRIX = DRAW.standard_normal((6, 5)).astype(np.float32)
IMAGE, TABLE = ("n", 3, 8, 8), ("n", 6)


def a(*nodes, shape=TABLE, opset=17, **weights):
    given = {"inputs": {"x": (FLOAT, shape)}, "outputs": {"y": (FLOAT, [None] * 2)}}
    proto = networks.a_graph(nodes, weights=weights, opset=opset, ir=7, **given)
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    return proto


def write(proto, tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


OLD = {  # how each operator was written in its time: name -> opset, graph
    "batch norm of 7": a(
        node("BatchNormalization", ["x", "s", "s", "s", "v"], ["y"]),
        shape=IMAGE,
        opset=7,
        s=np.float32([1, 2, 3]),
        v=np.float32([1, 4, 9]),
    ),
    "upsample of 7": a(node("Upsample", ["x"], ["y"], scales=[1.0, 1.0, 2.0, 2.0]), shape=IMAGE, opset=7),
    "upsample of 9": a(node("Upsample", ["x", "s"], ["y"]), shape=IMAGE, opset=9, s=np.float32([1, 1, 2, 2])),
    "resize of 10": a(node("Resize", ["x", "s"], ["y"]), shape=IMAGE, opset=10, s=np.float32([1, 1, 2, 2])),
    "pad of 8": a(node("Pad", ["x"], ["y"], pads=[0, 0, 1, 1, 0, 0, 1, 1]), shape=IMAGE, opset=8),
    "clip of 6": a(node("Clip", ["x"], ["y"], min=-0.5, max=0.5), opset=8),
    "slice of 9": a(node("Slice", ["x"], ["y"], axes=[1], starts=[1], ends=[4]), opset=9),
    "softmax of 11": a(node("Softmax", ["x"], ["y"]), shape=("n", 3, 4), opset=11),
    "log softmax of 9": a(node("LogSoftmax", ["x"], ["y"], axis=1), opset=9),
    "dropout of 10": a(node("Dropout", ["x"], ["y"], ratio=0.5), opset=10),
    "sum of 11": a(node("ReduceSum", ["x"], ["y"], axes=[1], keepdims=1), opset=11),
    "mean of 13": a(node("ReduceMean", ["x"], ["y"], axes=[1], keepdims=1), opset=13),
    "squeeze of 12": a(node("Unsqueeze", ["x"], ["z"], axes=[1]), node("Squeeze", ["z"], ["y"], axes=[1]), opset=12),
    "gemm of 8": a(node("Gemm", ["x", "w", "b"], ["y"]), opset=8, w=MATRIX, b=np.ones(5, np.float32)),
    "gemm of 7, broadcast": a(node("Gemm", ["x", "w", "b"], ["y"]), opset=7, w=MATRIX, b=np.ones((1, 5), np.float32)),
    "convolution of 8": a(node("Conv", ["x", "w"], ["y"], pads=[1] * 4), shape=IMAGE, opset=8, w=KERNEL),
    "pool of 9": a(node("MaxPool", ["x"], ["y"], kernel_shape=[2, 2]), shape=IMAGE, opset=9),
    "lstm of 7": a(
        node("LSTM", ["x", "w", "r"], ["y"], hidden_size=2),
        shape=(4, "n", 6),
        opset=7,
        w=DRAW.standard_normal((1, 8, 6)).astype(np.float32),
        r=DRAW.standard_normal((1, 8, 2)).astype(np.float32),
    ),
    "gelu of 20": a(node("Gelu", ["x"], ["y"]), opset=20),
    "layer norm of 17": a(node("LayerNormalization", ["x", "s"], ["y"]), opset=17, s=np.ones(6, np.float32)),
    "split of 12": a(node("Split", ["x"], ["y", "z"], axis=1, split=[4, 2]), opset=12),
    "identity of 25": a(node("Reshape", ["x", "s"], ["y"]), opset=25, s=np.array([-1, 2, 3])),
    "convolution of 22": a(node("Conv", ["x", "w"], ["y"]), shape=IMAGE, opset=22, w=KERNEL),
    "pad of 25": a(node("Pad", ["x", "p"], ["y"]), opset=25, p=np.array([0, 1, 0, 1])),
}


@pytest.mark.parametrize("name", OLD)
def test_every_opset_comes_in_and_answers_as_before(name, tmp_path):
    proto = OLD[name]
    model = convert.read_model(write(proto, tmp_path))
    written = opset_imports(graph.load(model))[""]
    assert written == 21, model.notes
    rows = graph.random_rows(model, 7)
    found, wanted = (
        Session(model.data).run(rows),
        Session(proto.SerializeToString(), Settings(graph_level="disabled")).run(rows),
    )
    assert apart(found, wanted).within(1e-5) and "agrees with the file" in " ".join(model.notes)
    assert [v.name for v in graph.load(model).graph.output] == ["y"]


def test_what_no_converter_rewrites_stays_as_it_is_when_boards_load_it(tmp_path):
    body = [value("i", INT64, []), value("go", BOOL, []), value("s", FLOAT, ["n", 6])]
    steps = [node("Identity", ["go"], ["keep"]), node("Softmax", ["s"], ["t"], axis=1)]
    loop = helper.make_graph(steps, "body", body, [value("keep", BOOL, []), value("t", FLOAT, ["n", 6])])
    proto = a(node("Loop", ["trips", "", "x"], ["y"], body=loop), opset=12, trips=np.array(3))
    model = convert.read_model(write(proto, tmp_path))
    rows = graph.random_rows(model, 5)
    found, wanted = (
        Session(model.data).run(rows),
        Session(proto.SerializeToString(), Settings(graph_level="disabled")).run(rows),
    )
    assert apart(found, wanted).within(1e-5)


def test_open_axes_get_names_and_fixed_ones_stay(tmp_path):
    proto = a(node("Relu", ["x"], ["y"]), shape=(None, None, 3))
    model = graph.load(convert.read_model(write(proto, tmp_path)))
    axes = model.graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["rows", "x_1", 3]
    named = a(node("Relu", ["x"], ["y"]), shape=("batch", "time", 3))
    axes = graph.load(convert.read_model(write(named, tmp_path))).graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param or axis.dim_value for axis in axes] == ["batch", "time", 3]


def test_an_output_that_is_declared_wrongly_is_corrected(tmp_path):
    proto = a(node("Gemm", ["x", "w"], ["y"]), w=MATRIX)
    proto.graph.output[0].CopyFrom(value("y", FLOAT, ["n", 3]))
    model = convert.read_model(write(proto, tmp_path))
    assert graph.outputs(model)[0].shape == (-1, 5)
    assert "output 'y' was declared otherwise than it is: corrected" in model.notes


def test_a_graph_that_answers_at_random_is_refused(tmp_path):
    noise = node("RandomNormalLike", ["x"], ["r"])
    path = write(a(noise, node("Add", ["x", "r"], ["y"])), tmp_path)
    with pytest.raises(UnsupportedModel, match=r"m\.onnx answers the same rows differently each time"):
        convert.read_model(path)


def test_a_table_of_three_words_gets_indices_that_it_has(tmp_path):
    proto = a(node("Gather", ["w", "x"], ["y"]), w=np.eye(3, dtype=np.float32))
    proto.graph.input[0].CopyFrom(value("x", INT64, ["n", 2]))
    assert "agrees with the file" in " ".join(convert.read_model(write(proto, tmp_path)).notes)


def test_a_graph_that_no_made_up_row_suits_comes_in_and_says_so(tmp_path):
    proto = a(node("Reshape", ["x", "s"], ["y"]), shape=("n", "m"), s=np.array([-1, 7]))
    notes = " ".join(convert.read_model(write(proto, tmp_path)).notes)
    assert "does not run on made-up rows" in notes and "give --labels" in notes


def test_the_reference_evaluator_gives_a_second_opinion_where_it_can(tmp_path):
    notes = convert.read_model(write(OLD["convolution of 22"], tmp_path)).notes
    assert any(note.startswith("onnx's reference evaluator says the same") for note in notes)
    own = a(
        node("FusedGemm", ["x", "w", "b"], ["y"], domain="com.microsoft", activation="Relu"),
        w=MATRIX,
        b=np.ones(5, np.float32),
    )
    own.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert not any("reference" in note for note in convert.read_model(write(own, tmp_path)).notes)


def test_the_distance_counts_labels_apart_and_never_passes_nan():
    one = {"p": np.float32([[1, 2]]), "l": np.int64([1])}
    assert apart(one, one).within(0)
    assert not apart({**one, "l": np.int64([0])}, one).within(1)
    assert not apart({**one, "p": np.float32([[np.nan, 2]])}, one).within(1)
    assert not apart({"l": one["l"]}, one).within(1)
    assert apart({**one, "p": np.float32([[np.nan, 2]])}, {**one, "p": np.float32([[np.nan, 2]])}).within(0)


def until(trips: int) -> OnnxModel:
    """Return a loop whose trip count is an input, so that no reading of the graph bounds it."""
    body = [value("i", INT64, []), value("go", BOOL, []), value("s", FLOAT, ["n", 6])]
    steps = [node("Identity", ["go"], ["keep"]), node("Sin", ["s"], ["t"])]
    loop = helper.make_graph(steps, "body", body, [value("keep", BOOL, []), value("t", FLOAT, ["n", 6])])
    proto = a(node("Loop", ["trips", "", "x"], ["y"], body=loop))
    proto.graph.output[0].CopyFrom(value("y", FLOAT, ["n", 6]))
    proto.graph.input.append(value("trips", INT64, []))
    return graph.serialize(proto, source="test")


def test_a_loop_that_only_running_bounds_is_run_under_limits():
    row = {"x": np.ones((1, 6), np.float32)}
    refuse_unbounded(until(3).data, {**row, "trips": np.array(3)}, "m.onnx", seconds=5)
    began = time.perf_counter()
    with pytest.raises(UnsupportedModel, match=r"m\.onnx did not answer one row of made-up values within 1 s"):
        refuse_unbounded(until(3).data, {**row, "trips": np.array(1 << 50)}, "m.onnx", seconds=1)
    assert time.perf_counter() - began < 10


def test_a_shape_that_only_running_bounds_is_run_under_limits():
    proto = a(node("ConstantOfShape", ["s"], ["c"]), node("ReduceMax", ["c"], ["m"]), node("Add", ["x", "m"], ["y"]))
    proto.graph.input.append(value("s", INT64, [2]))
    proto.graph.output[0].CopyFrom(value("y", FLOAT, None))
    row = {"x": np.ones((1, 6), np.float32), "s": np.array([1 << 16, 1 << 16])}
    with pytest.raises(UnsupportedModel, match=r"asks for more than 1\.1 GB of memory for one row"):
        refuse_unbounded(proto.SerializeToString(), row, "m.onnx", memory=1 << 30)


@pytest.mark.slow
def test_an_endless_loop_in_a_file_is_found_by_the_door(tmp_path):
    body = [value("i", INT64, []), value("go", BOOL, []), value("s", FLOAT, ["n", 6])]
    steps = [node("Identity", ["go"], ["keep"]), node("Sin", ["s"], ["t"])]
    loop = helper.make_graph(steps, "body", body, [value("keep", BOOL, []), value("t", FLOAT, ["n", 6])])
    path = write(a(node("Loop", ["", "on", "x"], ["y"], body=loop), on=np.array(True)), tmp_path)
    with pytest.raises(UnsupportedModel, match="did not answer one row"):
        convert.read_model(path)


def test_the_answers_of_a_file_are_those_without_optimisations():
    model = networks.a_conv_net()
    source = original(model.data, model)
    assert source.count == 16 and np.array_equal(
        source.answers["scores"], Session(model.data, Settings(graph_level="disabled")).run(source.rows)["scores"]
    )


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.fault
def test_a_model_larger_than_the_disk_is_one_line_with_the_numbers(
    edgeml: Command, tmp_path: Path, small_disk: Path
) -> None:
    large = {"w": np.ones((6, 200_000), np.float32)}
    path = write(a(node("Gemm", ["x", "w"], ["y"]), **large), tmp_path)
    said = edgeml("compile", path, "-o", small_disk / "out")
    assert said.code == 1 and "needs about 19.2 MB on disk" in said.error and "2.1 MB free" in said.error
    assert not list(small_disk.iterdir())


def test_three_gigabytes_of_weights_beside_a_model_are_refused_by_size_alone(tmp_path):
    proto = a(node("Gemm", ["x", "w"], ["y"]), w=np.ones((6, 2), np.float32))
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.dims[:] = [6, 125_000_000]
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as file:
        file.truncate(3_000_000_000)  # takes no room
    with pytest.raises(UnsupportedModel, match=r"3,000,000,\d+ bytes, boards load one file of 2,147,483,647 at most"):
        convert.read_model(write(proto, tmp_path))
