"""A model as a numpy program: the same answers as onnxruntime, and nothing that a file says is believed unchecked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.artifacts import OnnxModel, Rows
from edgeml.quantize.plain import plain
from edgeml.quantize.recipe import Options
from edgeml_runtime.errors import ModelRefused, ShapeMismatch
from edgeml_runtime.plain_program import MAGIC, MAX_STEPS, Program, Step, write_program
from edgeml_runtime.session import Session, is_program
from edgeml_runtime.wire.manifest import TensorSpec
from tests.runtime.graphs import mlp

ROWS = np.random.default_rng(3).normal(size=(9, 64)).astype(np.float32)
X, Y = (TensorSpec(name=name, dtype="float32", shape=(-1, 2)) for name in "xy")
RELU = Step(op="Relu", takes=("x",), gives=("y",))


def a_program() -> bytes:
    return plain(OnnxModel(mlp(), "t"), Rows({}), Options()).model.data


def written(*steps: Step, inputs: tuple[TensorSpec, ...] = (X,), **constants: np.ndarray) -> bytes:
    symbols = (("rows", ""),) * len(inputs)
    return write_program(Program(inputs=inputs, outputs=(Y,), steps=steps, symbols=symbols), constants)


def test_it_answers_like_the_graph_it_was_made_from(tmp_path: Path) -> None:
    (tmp_path / "graph").write_bytes(a_program())
    graph, program = Session(mlp()), Session(tmp_path / "graph")
    assert program.plain and not graph.plain and (program.inputs, program.outputs) == (graph.inputs, graph.outputs)
    wanted, got = graph.run({"numeric": ROWS}), program.run({"numeric": ROWS})
    np.testing.assert_allclose(got["probabilities"], wanted["probabilities"], atol=1e-6)
    assert (got["label"] == wanted["label"]).all() and got["label"].dtype == wanted["label"].dtype
    assert program.predict(ROWS[0])["label"] == graph.predict(ROWS[0])["label"]


def test_what_does_not_fit_is_refused_in_the_words_of_any_session() -> None:
    session = Session(a_program())
    for feeds in ({"numeric": ROWS[:, :3]}, {"other": ROWS}, {"numeric": ROWS.astype(str)}):
        with pytest.raises(ShapeMismatch) as program:
            session.run(feeds)
        with pytest.raises(ShapeMismatch) as graph:
            Session(mlp()).run(feeds)
        assert str(program.value) == str(graph.value)
    with pytest.raises(ShapeMismatch, match="one row"):
        session.predict(ROWS)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ((), "0 steps; 1 to"),
        ((RELU,) * (MAX_STEPS + 1), f"{MAX_STEPS + 1} steps"),
        ((Step(op="__import__", takes=("x",), gives=("y",)),), "operator '__import__' is not among"),
        ((Step(op="Relu", takes=("z",), gives=("y",)),), "Relu takes 'z' before it is made"),
        ((RELU, RELU), "gives no array, or one that is there already"),
        ((Step(op="Relu", takes=("x",), gives=("x",)),), "one that is there already"),
        ((Step(op="Relu", takes=("x",), gives=("z",)),), "no step makes the output 'y'"),
        ((Step(op="Softmax", takes=("x",), gives=("y",), arrays={"axis": "none"}),), "none"),
    ],
)
def test_a_program_that_cannot_run_is_refused_before_it_runs(steps: tuple[Step, ...], message: str) -> None:
    with pytest.raises(ModelRefused, match=message):
        Session(written(*steps))


def test_an_array_that_would_fill_the_memory_ends_the_run_in_words() -> None:
    shape = np.array([1 << 26, 2], dtype=np.int64)
    session = Session(written(Step(op="Expand", takes=("x", "shape"), gives=("y",)), shape=shape))
    with pytest.raises(ShapeMismatch, match="are the most"):
        session.run({"x": ROWS[:1, :2]})


@pytest.mark.parametrize("tree", [{"true": 0}, {"true": 99}])
def test_trees_that_go_in_circles_or_nowhere_are_refused(tree: dict[str, int]) -> None:
    child = tree["true"]
    columns: dict[str, np.ndarray] = {
        "nodes_treeids": np.zeros(2, np.int64),
        "nodes_nodeids": np.arange(2),
        "nodes_featureids": np.zeros(2, np.int64),
        "nodes_values": np.zeros(2, np.float32),
        "nodes_modes": np.array(["BRANCH_LEQ", "LEAF"], dtype=object),
        "nodes_truenodeids": np.array([child, 0]),
        "nodes_falsenodeids": np.array([child, 0]),
        **{f"target_{name}": np.array([0]) for name in ("treeids", "ids")},
        "target_nodeids": np.array([1]),
        "target_weights": np.ones(1, np.float32),
    }
    arrays = {name: name for name in columns}
    step = Step(op="ai.onnx.ml.TreeEnsembleRegressor", takes=("x",), gives=("y",), arrays=arrays)
    with pytest.raises(ModelRefused, match=r"circle|which is not there"):
        Session(written(step, **columns)).run({"x": ROWS[:, :2]})


@given(st.binary(max_size=300))
def test_any_bytes_behind_the_magic_are_a_program_or_refused(data: bytes) -> None:
    with pytest.raises(ModelRefused, match="not a numpy program"):
        Session(MAGIC + data)


@given(st.data())
def test_a_program_with_a_changed_document_is_refused_or_runs(data: st.DataObject) -> None:
    whole = a_program()
    length = int.from_bytes(whole[8:12], "little")
    text = bytearray(whole[12 : 12 + length])
    text[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(0, 255))
    try:
        Session(whole[:12] + bytes(text) + whole[12 + length :]).run({"numeric": ROWS[:2]})
    except (ModelRefused, ShapeMismatch) as error:
        assert str(error)


def test_a_graph_is_no_program_and_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    assert is_program(a_program()) and not is_program(mlp()) and not is_program(tmp_path / "none")
    with pytest.raises(ModelRefused, match="no such model file"):
        Session(tmp_path / "none")


def test_importing_and_serving_it_opens_no_onnxruntime(tmp_path: Path) -> None:
    (tmp_path / "graph").write_bytes(a_program())
    code = (
        "import json, sys, numpy, edgeml_runtime.agent, edgeml_runtime.local, edgeml_runtime.probe; "
        "from edgeml_runtime.session import Session; "
        "found = Session(sys.argv[1]).predict(numpy.ones(64, numpy.float32)); "
        "print(json.dumps([int(found['label'][0]), 'onnxruntime' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "graph")], capture_output=True, check=True)
    label, opened = json.loads(done.stdout)
    assert label == int(Session(mlp()).predict(np.ones(64, np.float32))["label"][0]) and not opened
