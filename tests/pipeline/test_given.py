"""Rows given with a finished model are held to what it takes: shape, type, range, count and truth, in one line each."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from edgeml import graph
from edgeml.artifacts import OnnxModel, Rows
from edgeml.errors import DataError, NotFound
from edgeml.pipeline.given import Given, rows_given
from tests import networks
from tests.cli.conftest import Command, edgeml

__all__ = ["edgeml"]  # the fixture

RNG = np.random.default_rng(0)
TABLE = RNG.standard_normal((64, networks.FEATURES)).astype(np.float32)
IMAGES = RNG.random((64, 3, 16, 16)).astype(np.float32)
LABELS = RNG.integers(0, networks.CLASSES, 64)


def given(folder: Path, model: OnnxModel, *, calibration=None, labels=None, precisions=("fp32", "int8")) -> Given:
    """Write the arrays of each file, or the bytes, and read them as compile does."""
    paths = {}
    for name, content in (("calibration", calibration), ("labels", labels)):
        if content is None:
            paths[name] = None
            continue
        suffix = "npz" if isinstance(content, dict) else "csv" if isinstance(content, str) else "npy"
        path = paths[name] = folder / f"{name}.{suffix}"
        if isinstance(content, dict):
            np.savez(path, **content)
        elif isinstance(content, str):
            path.write_text(content, encoding="utf-8")
        else:
            np.save(path, content, allow_pickle=True)
    return rows_given(model, paths["calibration"], paths["labels"], precisions=precisions)


def spoilt(array: np.ndarray, value: float, rows: int = 3) -> np.ndarray:
    copy = array.copy()
    copy[5 : 5 + rows].reshape(rows, -1)[:, 0] = value
    return copy


def an_embedding() -> OnnxModel:
    node = helper.make_node("Gather", ["table", "words"], ["scores"])
    proto = networks.a_graph(
        [node],
        inputs={"words": (TensorProto.INT64, ["rows"])},
        outputs={"scores": (TensorProto.FLOAT, ["rows", 4])},
        weights={"table": np.eye(10, 4, dtype=np.float32)},
    )
    return graph.serialize(proto, source="test")


CONV, MLP, REGRESSOR = networks.a_conv_net(), networks.an_mlp(), networks.a_regressor()
WRONG = {  # what is given -> what the line says
    "images of another size": (
        CONV,
        {"calibration": IMAGES[:, :, :8]},
        r"\(64, 3, 8, 16\), the model takes \(n, 3, 16",
    ),
    "a flat image": (CONV, {"calibration": IMAGES.reshape(64, -1)}, r"\(64, 768\)"),
    "text for numbers": (CONV, {"calibration": IMAGES.astype("<U4")}, "holds <U4, the model takes float32"),
    "objects, a pickle": (CONV, {"calibration": np.array([{}] * 64, dtype=object)}, "a pickle, which can run code"),
    "objects among arrays": (CONV, {"calibration": {"image": np.array([{}], dtype=object)}}, "a pickle"),
    "another name": (
        CONV,
        {"calibration": {"picture": IMAGES, "more": IMAGES}},
        "holds picture, more; the model takes",
    ),
    "infinite values": (CONV, {"calibration": spoilt(IMAGES, np.inf)}, "3 infinite values"),
    "missing values": (CONV, {"calibration": spoilt(IMAGES, np.nan)}, r"3 of 64 rows have NaN \(the first is row 5\)"),
    "fractions for words": (an_embedding(), {"calibration": np.arange(64) / 2}, "holds fractions"),
    "a word too many": (an_embedding(), {"calibration": np.arange(64) % 11}, "does not run on these rows.*10"),
    "values that overflow": (CONV, {"calibration": IMAGES * np.float32(1e38)}, "NaN or infinity to 64 of 64.*e\\+37"),
    "pixels of 255": (CONV, {"calibration": IMAGES * 255, "labels": {"image": IMAGES, "y": LABELS}}, "25. times apart"),
    "too few rows": (CONV, {"calibration": IMAGES[:5]}, "has 5 rows, int8-static-u8s8 needs 32"),
    "no rows": (CONV, {"calibration": IMAGES[:0]}, "0 rows|no rows"),
    "no truth": (MLP, {"labels": {"numeric": TABLE}}, "has no truth: add an array y"),
    "too few labels": (MLP, {"labels": {"numeric": TABLE, "y": LABELS[:60]}}, "different lengths.*64.*60"),
    "a class too many": (
        MLP,
        {"labels": {"numeric": TABLE, "y": LABELS + 1}},
        r"is 3, the model has 3 classes, 0 to 2",
    ),
    "a class below none": (MLP, {"labels": {"numeric": TABLE, "y": LABELS - 1}}, r"is -1, the model has 3 classes"),
    "a column a class": (MLP, {"labels": {"numeric": TABLE, "y": np.eye(3)[LABELS]}}, r"y has shape \(64, 3\)"),
    "half a class": (MLP, {"labels": {"numeric": TABLE, "y": LABELS + 0.5}}, "which is no class"),
    "a missing class": (
        MLP,
        {"labels": {"numeric": TABLE, "y": np.where(LABELS, LABELS, np.nan)}},
        "nan, which is no",
    ),
    "an unknown name": (
        MLP,
        {"labels": {"numeric": TABLE, "y": np.array(["cat"] * 64)}},
        "'cat', no class of this model",
    ),
    "a missing value": (
        REGRESSOR,
        {"labels": {"numeric": TABLE, "y": np.where(LABELS, TABLE[:, 0], np.nan)}},
        "values NaN or infinite",
    ),
    "names for values": (REGRESSOR, {"labels": {"numeric": TABLE, "y": np.array(["cat"] * 64)}}, "holds <U3, numbers"),
    "two values a row": (REGRESSOR, {"labels": {"numeric": TABLE, "y": TABLE[:, :2]}}, r"y has shape \(64, 2\)"),
    "a table too narrow": (MLP, {"calibration": "1,2,3\n4,5,6\n"}, r"\(2, 3\), the model takes \(n, 8\)"),
    "text in a table": (MLP, {"calibration": "a,b,c,d,e,f,g,h\n1,2,3,4,5,6,7,eight\n"}, "eight"),
    "a table for images": (CONV, {"calibration": "1,2\n3,4\n"}, "a table cannot feed"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_rows_are_refused_in_one_line_with_the_numbers(case, tmp_path):
    model, files, says = WRONG[case]
    with pytest.raises(DataError, match=says) as caught:
        given(tmp_path, model, **files)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 420
    assert str(caught.value).startswith(("calibration.", "labels."))


def test_a_file_that_is_not_there_or_no_array_is_named(tmp_path):
    with pytest.raises(NotFound, match=r"no data at .*none\.npy"):
        rows_given(CONV, tmp_path / "none.npy", None, precisions=["int8"])
    for name, content in (("a.npy", b"\x93NUMPY"), ("b.npz", b"PK\x03\x04"), ("c.npy", b""), ("d.npy", b"\x80\x04}.")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=name):
            rows_given(CONV, tmp_path / name, None, precisions=["int8"])


def test_an_npz_that_unpacks_to_terabytes_is_refused_by_what_it_says(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w") as packed:
        packed.writestr("image.npy", b"")
    data = bytearray(path.read_bytes())
    start = data.index(b"PK\x01\x02")
    data[start + 24 : start + 28] = (0xFFFFFFF0).to_bytes(4, "little")  # the size it claims to have unpacked
    entries = data[start : data.index(b"PK\x05\x06")] * 3
    end = bytearray(data[data.index(b"PK\x05\x06") :])
    end[8:12] = (3).to_bytes(2, "little") * 2
    end[12:16] = len(entries).to_bytes(4, "little")
    path.write_bytes(bytes(data[:start]) + bytes(entries) + bytes(end))
    with pytest.raises(DataError, match=r"bomb\.npz unpacks to 12,884,901,840 bytes"):
        rows_given(CONV, path, None, precisions=["int8"])


def test_good_rows_of_every_form_come_in(tmp_path):
    found = given(tmp_path, MLP, calibration=TABLE, labels={"numeric": TABLE, "y": LABELS})
    assert found.task == "classification" and found.calibration is not None and found.labelled is not None
    assert np.array_equal(found.labelled.target, LABELS) and len(found.calibration) == 64
    for truth in (LABELS.astype(np.float64), LABELS[:, None], LABELS.astype(np.uint8), LABELS.astype(str)):
        again = given(tmp_path, MLP, labels={"x": TABLE, "y": truth}).labelled
        assert again is not None and np.array_equal(again.target, LABELS)


@pytest.mark.parametrize("column", ["y", "target"])
def test_a_table_may_hold_its_truth_in_a_column(column, tmp_path):
    names = ",".join([*(f"f{k}" for k in range(networks.FEATURES)), column])
    lines = "\n".join(
        ",".join(map(repr, [*map(float, row), int(label)])) for row, label in zip(TABLE, LABELS, strict=True)
    )
    found = given(tmp_path, MLP, labels=f"{names}\n{lines}\n")
    assert found.labelled is not None and np.array_equal(found.labelled.target, LABELS)
    assert np.allclose(found.labelled.inputs["numeric"], TABLE)


def test_missing_values_are_fine_where_the_model_fills_them(tmp_path):
    proto = graph.load(MLP)
    proto.graph.node[0].attribute.append(helper.make_attribute("replaced_value_float", float("nan")))
    filled = graph.serialize(proto, source="test")
    assert given(tmp_path, filled, calibration=spoilt(TABLE, np.nan)).calibration is not None
    for other in (REGRESSOR, MLP):  # the Imputer of the second fills in for zeros
        with pytest.raises(DataError, match="nothing in the model fills a missing value"):
            given(tmp_path, other, calibration=spoilt(TABLE, np.nan))


def test_few_rows_are_fine_where_no_recipe_needs_many(tmp_path):
    found = given(tmp_path, CONV, calibration=IMAGES[:5], precisions=["fp32", "fp16"])
    assert isinstance(found.calibration, Rows)


def test_without_files_there_is_nothing_to_refuse():
    found = rows_given(CONV, None, None, precisions=["int8"])
    assert (found.task, found.calibration, found.labelled) == ("tensor", None, None)


def test_compile_says_it_in_one_line_and_writes_nothing(edgeml: Command, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(CONV.data)
    np.save(tmp_path / "rows.npy", spoilt(IMAGES, np.nan))
    said = edgeml("compile", tmp_path / "m.onnx", "--calibration", tmp_path / "rows.npy", "-o", tmp_path / "out")
    assert said.code == 1 and "rows.npy: 3 of 64 rows have NaN" in said.error
    assert not (tmp_path / "out").exists()
