"""What a session takes, gives and refuses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_runtime.errors import ModelRefused, ShapeMismatch
from edgeml_runtime.session import Session, allowed_threads

ROWS = np.random.default_rng(7).normal(size=(5, 64)).astype(np.float32)


def test_a_session_describes_its_inputs_and_outputs(models: SimpleNamespace) -> None:
    session = Session(models.mlp())
    assert [(spec.name, spec.dtype, spec.shape) for spec in session.inputs] == [("numeric", "float32", (-1, 64))]
    assert [spec.name for spec in session.outputs] == ["label", "probabilities"]
    assert session.outputs[0].dtype == "int64"


def test_run_answers_as_the_same_network_in_numpy(models: SimpleNamespace) -> None:
    data = models.mlp()
    answers = Session(data).run({"numeric": ROWS})
    expected = models.mlp_in_numpy(data, ROWS)
    assert np.allclose(answers["probabilities"], expected, atol=1e-5)
    assert answers["label"].tolist() == expected.argmax(axis=1).tolist()


def test_loading_from_a_path_and_from_bytes_answers_alike(models: SimpleNamespace, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.mlp())
    one, other = Session(path).run({"numeric": ROWS}), Session(models.mlp()).run({"numeric": ROWS})
    assert np.array_equal(one["probabilities"], other["probabilities"])


@pytest.mark.parametrize("rows", ["rows", 1], ids=["symbolic batch", "fixed batch"])
def test_predict_answers_as_run_row_by_row(models: SimpleNamespace, rows: int | str) -> None:
    session = Session(models.mlp(rows=rows))
    for row in ROWS:
        expected = session.run({"numeric": row[np.newaxis]})
        for form in (row, row[np.newaxis], row.astype(np.float64)):
            answers = session.predict(form)
            assert answers["label"].tolist() == expected["label"].tolist()
            assert np.array_equal(answers["probabilities"], expected["probabilities"])


def test_the_hot_path_reuses_its_buffers_as_documented(models: SimpleNamespace) -> None:
    session = Session(models.mlp())
    first = session.predict(ROWS[0])["probabilities"]
    before = first.copy()
    second = session.predict(ROWS[1])["probabilities"]
    assert first is second
    assert not np.array_equal(before, second)


@pytest.mark.parametrize("shape", [(63,), (65,), (2, 64), (1, 63), (64, 1), (1, 1, 64), ()])
def test_predict_refuses_a_row_of_another_shape_and_shows_both(models: SimpleNamespace, shape: tuple[int, ...]) -> None:
    session = Session(models.mlp())
    for _ in range(2):  # before and after the hot path is bound
        with pytest.raises(ShapeMismatch, match=r"'numeric' takes float32 of shape \(rows, 64\), got \("):
            session.predict(np.zeros(shape, np.float32))
        session.predict(ROWS[0])


def test_predict_refuses_text(models: SimpleNamespace) -> None:
    with pytest.raises(ShapeMismatch, match="takes float32, got"):
        Session(models.mlp(features=1)).predict(np.array(["warm"]))


@pytest.mark.parametrize("shape", [(5, 63), (64,), (1, 5, 64)])
def test_run_refuses_rows_of_another_width_or_rank(models: SimpleNamespace, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeMismatch, match=r"\(rows, 64\), got \("):
        Session(models.mlp()).run({"numeric": np.zeros(shape, np.float32)})


def test_run_names_missing_and_unknown_inputs(models: SimpleNamespace) -> None:
    session = Session(models.mlp())
    with pytest.raises(ShapeMismatch, match="takes the inputs numeric; got nothing"):
        session.run({})
    with pytest.raises(ShapeMismatch, match="takes the inputs numeric; got numeric, pixels"):
        session.run({"numeric": ROWS, "pixels": ROWS})


@pytest.mark.parametrize("dtype", ["float64", "float16", "int64", "uint8"])
def test_numbers_of_other_types_are_taken_as_float32(models: SimpleNamespace, dtype: str) -> None:
    rows = np.ones((3, 64), dtype)
    session = Session(models.mlp())
    expected = session.run({"numeric": rows.astype(np.float32)})["probabilities"]
    assert np.array_equal(session.run({"numeric": rows})["probabilities"], expected)


def test_floats_are_not_cut_to_integers(models: SimpleNamespace) -> None:
    nodes = [models.node("Identity", ["index"], ["same"])]
    session = Session(
        models.model(nodes, [("index", models.INT64, ["rows"])], outputs=[("same", models.INT64, ["rows"])])
    )
    assert session.run({"index": np.array([3], np.int32)})["same"].tolist() == [3]
    with pytest.raises(ShapeMismatch, match="takes int64, got float64"):
        session.run({"index": np.array([3.5])})


def test_strings_and_several_inputs_take_the_plain_run(models: SimpleNamespace) -> None:
    session = Session(models.colours())
    numbers, words = np.array([[1, 2], [3, 4]], np.float32), np.array([["red"], ["green"]], object)
    for text in (words, words.astype(str)):
        answers = session.run({"numeric": numbers, "categorical": text})
        assert answers["prediction"].ravel().tolist() == [4.0, 7.0]
    with pytest.raises(ShapeMismatch, match=r"this model has 2 \(numeric, categorical\): use run"):
        session.predict(numbers[0])


def test_a_missing_word_must_be_the_empty_string(models: SimpleNamespace) -> None:
    numbers, words = np.zeros((1, 2), np.float32), np.array([[None]], object)
    with pytest.raises(ShapeMismatch, match="write a missing one as ''"):
        Session(models.colours()).run({"numeric": numbers, "categorical": words})


def test_inputs_must_have_the_same_number_of_rows(models: SimpleNamespace) -> None:
    with pytest.raises(ShapeMismatch, match="'categorical' has 3 rows, another input has 2"):
        Session(models.colours()).run({"numeric": np.zeros((2, 2), np.float32), "categorical": np.full((3, 1), "red")})


def test_a_single_input_that_is_no_hot_path_still_predicts(models: SimpleNamespace) -> None:
    """NonZero gives as many columns as there are non-zero values: no buffer can be bound for it."""
    nodes = [models.node("NonZero", ["numeric"], ["where"])]
    session = Session(
        models.model(nodes, [("numeric", models.FLOAT, ["rows", 4])], outputs=[("where", models.INT64, [2, "found"])])
    )
    for row, found in (([0, 0, 0, 0], 0), ([1, 0, 2, 0], 2), ([1, 1, 1, 1], 4)):
        assert session.predict(np.array(row, np.float32))["where"].shape == (2, found)


def test_a_scalar_input_takes_no_array(models: SimpleNamespace) -> None:
    nodes = [models.node("Mul", ["x", "lr"], ["y"])]
    inputs = [("x", models.FLOAT, ["rows"]), ("lr", models.FLOAT, [])]
    session = Session(models.model(nodes, inputs, outputs=[("y", models.FLOAT, ["rows"])]))
    assert session.run({"x": np.ones(2, np.float32), "lr": np.float32(3)})["y"].tolist() == [3.0, 3.0]
    with pytest.raises(ShapeMismatch, match=r"'lr' takes float32 of shape \(\), got \(2\)"):
        session.run({"x": np.ones(2, np.float32), "lr": np.ones(2, np.float32)})


@given(st.binary(max_size=200))
def test_bytes_that_are_no_model_are_refused(data: bytes) -> None:
    with pytest.raises(ModelRefused):
        Session(data)


def test_a_text_file_and_a_missing_file_are_refused_by_name(tmp_path: Path) -> None:
    page = tmp_path / "page.onnx"
    page.write_text("<html>404 not found</html>")
    with pytest.raises(ModelRefused, match=r"page\.onnx: a model file that is not a model"):
        Session(page)
    with pytest.raises(ModelRefused, match=r"absent\.onnx: no such model file"):
        Session(tmp_path / "absent.onnx")


def test_an_operator_nobody_has_is_refused_by_name(models: SimpleNamespace) -> None:
    data = models.mlp().replace(b"Softmax", b"Sofxmat")
    with pytest.raises(ModelRefused, match="Sofxmat"):
        Session(data)


def test_a_model_that_fails_while_running_is_refused(models: SimpleNamespace) -> None:
    nodes = [models.node("Gather", ["table", "index"], ["y"])]
    inputs = [("table", models.FLOAT, ["n"]), ("index", models.INT64, ["k"])]
    session = Session(models.model(nodes, inputs, outputs=[("y", models.FLOAT, ["k"])]))
    with pytest.raises((ModelRefused, ShapeMismatch), match="out of"):
        session.run({"table": np.ones(2, np.float32), "index": np.array([9])})


def test_threads_follow_the_affinity_mask() -> None:
    assert allowed_threads(0) == 1
    assert allowed_threads(10_000) == len(os.sched_getaffinity(0))


def test_a_session_leaves_nothing_under_home(models: SimpleNamespace, tmp_path: Path) -> None:
    home, model = tmp_path / "home", tmp_path / "model.onnx"
    home.mkdir()
    model.write_bytes(models.mlp())
    code = "import sys, numpy; from edgeml_runtime.session import Session; Session(sys.argv[1]).predict(numpy.ones(64))"
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY" and not k.startswith("XDG_")}
    environment["HOME"] = str(home)
    subprocess.run([sys.executable, "-c", code, str(model)], env=environment, check=True, timeout=60)
    assert not list(home.rglob("*"))
