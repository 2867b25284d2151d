"""A bad .onnx file is refused in one line that names what is wrong, before anything of it runs or is opened."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml import convert, graph
from edgeml.errors import EdgeMLError, UnsupportedModel
from edgeml_runtime.session import Session
from tests import networks

FLOAT, INT64, BOOL = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
node, value = helper.make_node, helper.make_tensor_value_info
X, Y = {"x": (FLOAT, ["n", 4])}, {"y": (FLOAT, ["n", 4])}
WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)


def a(*nodes, inputs=X, outputs=Y, weights=None, **changes):
    return networks.a_graph(nodes, inputs=inputs, outputs=outputs, weights=weights or {}, **changes)


def refusal(path: Path, *, seconds: float = 20) -> str:
    """Return the one line with which the file at `path` is refused."""
    began = time.perf_counter()
    with pytest.raises(EdgeMLError) as caught:
        convert.read_model(path)
    assert time.perf_counter() - began < seconds
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    return str(caught.value)


def refused(proto, tmp_path: Path) -> str:
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    said = refusal(tmp_path / "m.onnx")
    assert said.startswith("m.onnx"), said
    return said


def kept_outside(folder: Path, **entries: object) -> Path:
    """Write y = x @ w with w in another file, as `entries` say."""
    proto = a(node("MatMul", ["x", "w"], ["y"]), weights={"w": WEIGHT})
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, entry in entries.items():
        tensor.external_data.add(key=key, value=str(entry))
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_weights_beside_the_model_are_read_in_and_count_in_its_digest(tmp_path):
    (tmp_path / "w.bin").write_bytes(bytes(8) + WEIGHT.tobytes())
    path = kept_outside(tmp_path, location="w.bin", offset=8, length=64)
    model = convert.read_model(path)
    row = np.float32([[1, 2, 3, 4]])
    assert np.array_equal(Session(model.data).run({"x": row})["y"], row @ WEIGHT)
    (tmp_path / "w.bin").write_bytes(bytes(8) + (2 * WEIGHT).tobytes())
    assert convert.read_model(path).source != model.source


def test_a_folder_of_weights_and_a_link_within_the_folder_are_fine(tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "w.bin").write_bytes(WEIGHT.tobytes())
    (tmp_path / "w").symlink_to("parts/w.bin")
    for location in ("parts/w.bin", "./parts/w.bin", "w"):
        model = convert.read_model(kept_outside(tmp_path, location=location))
        assert graph.initializers(model).keys() == {"w"}


PLACES = {  # what a weight says of where it is -> what the refusal says
    "/etc/passwd": "absolute",
    "C:\\weights.bin": "absolute",
    "\\\\server\\share\\w": "absolute",
    "../w.bin": "outside the model's folder",
    "parts/../../w.bin": "outside the model's folder",
    "parts\\..\\..\\w.bin": "outside the model's folder",
    "../../etc/passwd": "outside the model's folder",
    "": "without a file name",
    "w\0.bin": "without a file name",
    "nothing.bin": "not there",
    "pipe": "a pipe",
    "parts": "a folder",
    "zero": "outside the model's folder",
    "out": "outside the model's folder",
    "circle": "not there",
}


@pytest.mark.parametrize("location", PLACES)
def test_weights_anywhere_else_are_refused_unopened(location, tmp_path):
    folder = tmp_path / "model"
    (folder / "parts").mkdir(parents=True)
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    os.mkfifo(folder / "pipe")  # to open it would wait for ever
    (folder / "zero").symlink_to("/dev/zero")
    (folder / "out").symlink_to("../w.bin")
    (folder / "circle").symlink_to("circle")
    said = refusal(kept_outside(folder, location=location))
    assert PLACES[location] in said and "'w'" in said and "m.onnx" in said


def test_a_device_file_in_the_very_folder_is_refused(tmp_path):
    try:
        os.mknod(tmp_path / "null", 0o600 | 0o020000, os.makedev(1, 3))
    except PermissionError:  # not root: the links above went the same way
        return
    assert "a device file" in refusal(kept_outside(tmp_path, location="null"))


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"offset": 1}, r"ends at byte 65, the file has 64"),
        ({"offset": 1 << 50}, r"the file has 64"),
        ({"length": 60}, r"60 bytes there, its shape needs 64"),
        ({"offset": -1}, r"offset '-1', which is no number"),
        ({"length": "many"}, r"length 'many', which is no number"),
        ({"offset": "9" * 40}, r"no number of bytes"),
    ],
)
def test_weights_that_end_elsewhere_are_refused_with_the_numbers(entries, says, tmp_path):
    (tmp_path / "w.bin").write_bytes(WEIGHT.tobytes())
    said = refusal(kept_outside(tmp_path, location="w.bin", **entries))
    assert says in said


def test_a_weight_of_terabytes_is_refused_before_its_file_is_looked_at(tmp_path):
    path = kept_outside(tmp_path, location="w.bin")
    proto = onnx.load(path, load_external_data=False)
    proto.graph.initializer[0].dims[:] = [1 << 20, 1 << 20]
    path.write_bytes(proto.SerializeToString())
    assert "4,398,046,511" in refusal(path) and "2,147,483,647 at most" in refusal(path)


def looped(trips: int, depth: int):
    """Return `depth` loops in each other, each of `trips` steps, around s + s."""
    inner, made = node("Add", ["s0", "s0"], ["t0"]), "t0"
    for k in range(depth):
        given = [value(f"i{k}", INT64, []), value(f"go{k}", BOOL, []), value(f"s{k}", FLOAT, None)]
        keep = node("Identity", [f"go{k}"], [f"keep{k}"])
        body = helper.make_graph([keep, inner], "body", given, [value(f"keep{k}", BOOL, []), value(made, FLOAT, None)])
        state, made = ("x", "y") if k == depth - 1 else (f"s{k + 1}", f"t{k + 1}")
        inner = node("Loop", ["trips", "", state], [made], body=body)
    return a(inner, weights={"trips": np.array(trips)})


def constant(name: str, *numbers: int):
    return node("Constant", [], [name], value=numpy_helper.from_array(np.array(numbers, np.int64)))


def doubled(times: int):
    nodes = [node("Concat", [f"a{k}", f"a{k}"], [f"a{k + 1}"], axis=1) for k in range(times)]
    nodes[0].input[:] = ["x", "x"]
    return a(*nodes, node("ReduceMax", [f"a{times}"], ["y"], keepdims=1))


BOMBS = {
    "nested loops": (looped(10_000, 3), "operator calls"),
    "one long loop": (looped(1 << 40, 1), "operator calls"),
    "a constant of terabytes": (
        a(constant("s", 1 << 20, 1 << 20), node("ConstantOfShape", ["s"], ["c"]), node("Add", ["x", "c"], ["y"])),
        "4.4 TB",
    ),
    "expanded to terabytes": (a(constant("s", 1 << 40, 4), node("Expand", ["x", "s"], ["y"])), "TB"),
    "tiled to terabytes": (a(constant("s", 1 << 20, 1 << 20), node("Tile", ["x", "s"], ["y"])), "TB"),
    "doubled until it is terabytes": (doubled(45), "TB"),
    "resized to terabytes": (
        a(
            node("Resize", ["x", "", "s"], ["y"]),
            inputs={"x": (FLOAT, [1, 1, 8, 8])},
            weights={"s": np.float32([1, 1, 1e5, 1e5])},
        ),
        "TB",
    ),
}


@pytest.mark.parametrize("case", BOMBS)
def test_a_bomb_is_refused_with_its_numbers_before_it_runs(case, tmp_path):
    proto, says = BOMBS[case]
    assert says in refused(proto, tmp_path)


def test_a_loop_of_a_few_steps_comes_in(tmp_path):
    (tmp_path / "m.onnx").write_bytes(looped(3, 2).SerializeToString())
    model = convert.read_model(tmp_path / "m.onnx")
    assert Session(model.data).run({"x": np.ones((1, 4), np.float32)})["y"][0, 0] == 2.0**9


def within(depth: int):
    """Return `depth` Ifs in each other."""
    inner = node("Relu", ["x"], ["z0"])
    for level in range(depth):
        simple = helper.make_graph([node("Relu", ["x"], ["e"])], "else", [], [value("e", FLOAT, None)])
        branch = helper.make_graph([inner], "then", [], [value(inner.output[0], FLOAT, None)])
        made = "y" if level == depth - 1 else f"z{level + 1}"
        inner = node("If", ["c"], [made], then_branch=branch, else_branch=simple)
    return a(inner, weights={"c": np.array(True)})


def called(depth: int, *, itself: bool = False):
    """Return functions that call the next one twice."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = []
    for level in range(depth):
        name = "f0" if itself else f"f{level + 1}"
        ends = level == depth - 1 and not itself
        steps = [
            node("Relu" if ends else name, ["a"], ["t"], domain="" if ends else "own"),
            node("Relu" if ends else name, ["t"], ["b"], domain="" if ends else "own"),
        ]
        functions.append(helper.make_function("own", f"f{level}", ["a"], ["b"], steps, opsets))
    proto = a(node("f0", ["x"], ["y"], domain="own"))
    proto.opset_import.append(helper.make_opsetid("own", 1))
    proto.functions.extend(functions)
    return proto


def test_functions_of_its_own_are_put_in_place(tmp_path):
    (tmp_path / "m.onnx").write_bytes(called(3).SerializeToString())
    model = convert.read_model(tmp_path / "m.onnx")
    proto = onnx.load_from_string(model.data)
    assert [n.op_type for n in proto.graph.node] == ["Relu"] * 8 and not proto.functions
    assert "3 functions of its own were put in place of their calls" in model.notes


def with_sparse(dims, indices):
    values = numpy_helper.from_array(np.ones(len(indices), np.float32), "w")
    proto = a(node("MatMul", ["x", "w"], ["y"]))
    where = numpy_helper.from_array(np.array(indices, np.int64), "i")
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, where, dims))
    return proto


def test_sparse_weights_are_made_dense(tmp_path):
    (tmp_path / "m.onnx").write_bytes(with_sparse([4, 4], [0, 5, 10]).SerializeToString())
    model = convert.read_model(tmp_path / "m.onnx")
    assert Session(model.data).run({"x": np.float32([[1, 2, 3, 4]])})["y"].tolist() == [[1, 2, 3, 0]]
    assert "1 sparse weights made dense" in model.notes


def a_typed(kind: int):
    return a(node("Identity", ["x"], ["y"]), inputs={"x": (kind, ["n", 4])}, outputs={"y": (kind, ["n", 4])})


def hollow(**changes):
    proto = a(node("MatMul", ["x", "w"], ["y"]), weights={"w": WEIGHT})
    for name, changed in changes.items():
        if name == "dims":
            proto.graph.initializer[0].dims[:] = changed
        else:
            setattr(proto.graph.initializer[0], name, changed)
    return proto


def with_more(what: str):
    proto = a(node("Relu", ["x"], ["y"]), weights={"w": WEIGHT})
    group = getattr(proto.graph, what)
    group.append(group[0])
    return proto


def a_sequence():
    proto = a(node("SequenceConstruct", ["x", "x"], ["y"]))
    proto.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", FLOAT, None))
    return proto


WRONG = {  # a graph -> what the refusal says of it
    "a circle": (a(node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])), "Add 'a'"),
    "a circle of one": (a(node("Add", ["x", "y"], ["y"], name="me")), "circle: Add 'me' -> Add 'me'"),
    "a name from nowhere": (a(node("Add", ["x", "ghost"], ["y"])), "reads 'ghost', which nothing makes"),
    "an output from nowhere": (a(node("Relu", ["x"], ["z"])), "nothing makes its output 'y'"),
    "a tensor made twice": (a(node("Relu", ["x"], ["y"]), node("Abs", ["x"], ["y"])), "'y' is made twice"),
    "an input made again": (a(node("Relu", ["x"], ["x"]), node("Abs", ["x"], ["y"])), "'x' is made twice"),
    "an input listed twice": (with_more("input"), "input 'x' twice"),
    "an output listed twice": (with_more("output"), "output 'y' twice"),
    "a weight listed twice": (with_more("initializer"), "weight 'w' twice"),
    "no outputs": (a(node("Relu", ["x"], ["y"]), outputs={}), "no outputs"),
    "deep in each other": (within(14), "nested deeper than 12"),
    "functions that explode": (called(40), "1,099,511,627,776 operators"),
    "a function that calls itself": (called(1, itself=True), "'f0' calls itself"),
    "a sparse weight of terabytes": (with_sparse([1 << 20, 1 << 20], [0]), "values at most"),
    "a sparse weight outside its shape": (with_sparse([4, 4], [0, 16]), "outside its shape"),
    "more declared than there is": (hollow(dims=[1 << 40, 4]), "64 bytes, its shape [1099511627776, 4] needs"),
    "negative axes": (hollow(dims=[-4, -4]), "has the shape [-4, -4]"),
    "an unknown type of weight": (hollow(data_type=99), "unknown type 99"),
    "complex numbers": (a_typed(TensorProto.COMPLEX64), "type complex64, devices take"),
    "brain floats": (a_typed(TensorProto.BFLOAT16), "type bfloat16"),
    "unsigned 64 bits": (a_typed(TensorProto.UINT64), "type uint64"),
    "no type at all": (a_typed(0), "type undefined"),
    "a sequence": (a_sequence(), "output 'y' is a sequence"),
    "an operator ONNX lacks": (a(node("Erfc", ["x"], ["y"])), "Erfc"),
    "a custom domain": (a(node("Magic", ["x"], ["y"], domain="my.own")), "my.own:Magic"),
    "a graph for another processor": (
        a(node("Conv", ["x", "x"], ["y"], domain="com.microsoft.nchwc")),
        "optimised for another processor",
    ),
    "contradicting shapes": (
        a(node("MatMul", ["x", "w"], ["y"]), weights={"w": np.ones((3, 3), np.float32)}),
        "m.onnx",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_graph_is_refused_by_name(case, tmp_path):
    proto, says = WRONG[case]
    assert says in refused(proto, tmp_path)


@pytest.mark.parametrize("kind", [TensorProto.DOUBLE, TensorProto.STRING, TensorProto.INT32, TensorProto.FLOAT16])
def test_types_that_devices_feed_come_in(kind, tmp_path):
    (tmp_path / "m.onnx").write_bytes(a_typed(kind).SerializeToString())
    assert Session(convert.read_model(tmp_path / "m.onnx").data).inputs[0].shape == (-1, 4)


def test_what_can_be_put_right_is_put_right_with_a_note(tmp_path):
    proto = a(
        node("Relu", ["b"], ["y"], name="n"),
        node("Add", ["a", "w"], ["b"], name="n"),
        node("Abs", ["x"], ["a"], name="n"),
        weights={"w": np.ones(4, np.float32)},
    )
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 15))
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    model = convert.read_model(tmp_path / "m.onnx")
    assert Session(model.data).run({"x": np.float32([[-1, 0, 1, 2]])})["y"].tolist() == [[2, 1, 2, 3]]
    read = onnx.load_from_string(model.data)
    assert [n.op_type for n in read.graph.node] == ["Abs", "Add", "Relu"]
    assert len({n.name for n in read.graph.node}) == 3 and len(read.opset_import) == 1
    said = [note.split(":")[1].strip() for note in model.notes[1:4]]
    assert said == [
        "the newest of them counts",
        "sorted",
        "renamed",
    ]


def test_what_is_no_plain_file_is_refused_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "zero.onnx").symlink_to("/dev/zero")
    (tmp_path / "gone.onnx").symlink_to("nowhere")
    assert "is a pipe" in refusal(tmp_path / "pipe.onnx")
    assert "a folder" in refusal(tmp_path / "folder.onnx")
    assert "a device file" in refusal(tmp_path / "zero.onnx")
    assert "no model at" in refusal(tmp_path / "gone.onnx")


def test_a_file_larger_than_an_onnx_file_can_be_is_refused_unread(tmp_path):
    with (tmp_path / "m.onnx").open("wb") as file:
        file.truncate(3 << 30)  # takes no room
    assert "3,221,225,472 bytes" in refusal(tmp_path / "m.onnx", seconds=1)


def test_a_file_that_may_not_be_read_says_so(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(a(node("Relu", ["x"], ["y"])).SerializeToString())
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if not folder.stat().st_mode & 0o001:  # pytest keeps its folders to itself
            folder.chmod(0o711)
    was = os.geteuid()
    os.seteuid(was or 65534)  # root reads everything
    try:
        assert "m.onnx cannot be read: permission denied" in refusal(path)
    finally:
        os.seteuid(was)


@pytest.mark.parametrize("length", [0, 1, 10, 100])
def test_a_file_cut_short_is_refused(length, tmp_path):
    whole = a(node("MatMul", ["x", "w"], ["y"]), weights={"w": WEIGHT}).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(whole[:length])
    with pytest.raises(UnsupportedModel, match=r"m\.onnx"):
        convert.read_model(tmp_path / "m.onnx")


def test_a_file_of_graphs_within_graphs_without_end_is_refused(tmp_path):
    def field(number: int, content: bytes) -> bytes:
        size, length = len(content), b""
        while size > 127:
            size, length = size >> 7, length + bytes([size & 127 | 128])
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(500):  # graph.node.attribute.g
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "m.onnx").write_bytes(field(7, graph))
    assert "not an ONNX model" in refusal(tmp_path / "m.onnx")
