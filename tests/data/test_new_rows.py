"""New rows for a finished model: by name, by position, as arrays, or refused with both shapes."""

from __future__ import annotations

import numpy as np
import pytest

from edgeml import data
from edgeml.errors import DataError, NotFound
from edgeml.project import parse_project
from edgeml_runtime.wire.manifest import Bounds, Feature, Manifest, ReleaseVariant, TensorSpec, blob_of

FEATURES = (Feature(name="a", kind="numeric"), Feature(name="b", kind="numeric"), Feature(name="c", kind="categorical"))
INPUTS = (
    TensorSpec(name="numeric", dtype="float32", shape=(-1, 2)),
    TensorSpec(name="categorical", dtype="string", shape=(-1, 1)),
)


def a_manifest(**changes) -> Manifest:
    blob = blob_of(b"graph")
    variant = ReleaseVariant(name="fp32", graph=blob, bounds=Bounds(max_abs=0.0, label_flips=0))
    fields = {
        "model": "m",
        "release": "0" * 12,
        "task": "classification",
        "created": "2026-01-01T00:00:00Z",
        "inputs": INPUTS,
        "outputs": (),
        "features": FEATURES,
        "classes": ("no", "yes"),
        "variants": (variant,),
        "default_variant": "fp32",
        "boards": {},
        "goldens": blob,
        "target": "good",
    }
    return Manifest(**{**fields, **changes})


def test_columns_are_found_by_name_in_any_order_and_the_target_comes_along(csv):
    rows = data.read_rows(csv("good,c,extra,b,a\nyes,red,x,2,1\nno,,y,,3\n"), a_manifest())
    assert np.array_equal(rows.inputs["numeric"], np.array([[1, 2], [3, np.nan]], np.float32), equal_nan=True)
    assert rows.inputs["categorical"].tolist() == [["red"], [""]]
    assert rows.target is not None and rows.target.tolist() == [1, 0]


def test_a_file_without_the_target_gives_rows_without_one(csv):
    assert data.read_rows(csv("a,b,c\n1,2,red\n"), a_manifest()).target is None


def test_a_file_without_a_header_is_taken_in_order_when_the_width_fits(csv):
    rows = data.read_rows(csv("1,2,red\n3,4,blue\n"), a_manifest())
    assert rows.inputs["numeric"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match="3 columns missing: a, b, c"):
        data.read_rows(csv("1,2\n3,4\n"), a_manifest())


def test_a_missing_column_and_a_text_among_numbers_and_an_unknown_class_are_named(csv):
    with pytest.raises(DataError, match=r"rows\.csv has no column 'b'"):
        data.read_rows(csv("a,c\n1,red\n"), a_manifest())
    with pytest.raises(DataError, match="line 3: column 'a' holds 'one' where numbers are expected"):
        data.read_rows(csv("a,b,c\n1,1,x\none,1,x\n"), a_manifest())
    with pytest.raises(DataError, match="line 2: column 'good' holds 'perhaps', no class of this model"):
        data.read_rows(csv("a,b,c,good\n1,1,x,perhaps\n"), a_manifest())
    with pytest.raises(NotFound, match="no data at"):
        data.read_rows(csv("a\n").parent / "other.csv", a_manifest())


def test_arrays_are_taken_by_input_name_with_labels_by_name_or_index(tmp_path):
    path = tmp_path / "rows.npz"
    arrays = {"numeric": np.ones((2, 2)), "categorical": np.array([["x"], ["y"]])}
    np.savez(path, **arrays, y=np.array(["yes", "no"]))
    rows = data.read_rows(path, a_manifest())
    assert rows.inputs["numeric"].dtype == np.float32
    assert rows.target is not None and rows.target.tolist() == [1, 0]
    np.savez(path, **arrays, y=np.array([0, 1]))
    again = data.read_rows(path, a_manifest()).target
    assert again is not None and again.tolist() == [0, 1]


def test_arrays_of_another_shape_show_both_shapes(tmp_path):
    images = (TensorSpec(name="image", dtype="float32", shape=(-1, 8, 8, 1)),)
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((5, 8, 8)))
    with pytest.raises(DataError, match=r"image has shape \(5, 8, 8\), the model takes \(n, 8, 8, 1\)"):
        data.read_arrays(path, images)
    np.save(path, np.zeros((5, 8, 8, 1)))
    assert data.read_arrays(path, images).inputs["image"].shape == (5, 8, 8, 1)


def test_a_table_of_numbers_feeds_a_single_matrix_input(csv):
    spec = (TensorSpec(name="x", dtype="float32", shape=(-1, 2)),)
    for text in ("1,2\n3,4\n", "first,second\n1,2\n3,4\n"):
        assert data.read_arrays(csv(text), spec).inputs["x"].tolist() == [[1, 2], [3, 4]]
    with pytest.raises(DataError, match=r"x has shape \(1, 3\), the model takes \(n, 2\)"):
        data.read_arrays(csv("1,2,3\n"), spec)


def test_wrong_names_lengths_and_files_are_refused(tmp_path):
    path = tmp_path / "rows.npz"
    np.savez(path, numbers=np.ones((2, 2)))
    with pytest.raises(DataError, match=r"holds numbers; the model takes numeric \(n, 2\), categorical \(n, 1\)"):
        data.read_rows(path, a_manifest())
    np.savez(path, numeric=np.ones((2, 2)), categorical=np.array([["x"]]))
    with pytest.raises(DataError, match="arrays of different lengths"):
        data.read_rows(path, a_manifest())
    path.write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"is no \.npz file that can be read"):
        data.read_rows(path, a_manifest())


@pytest.mark.parametrize("name, target", [("titanic/titanic.csv", "Survived"), ("penguins/penguins.csv", "species")])
def test_a_guessed_project_parses_loads_and_names_what_was_left_out(name, target, real_data):
    text = data.guess(real_data(name), target)
    project = parse_project(text)
    assert project.data.target == target
    assert project.devices[0].board == "raspberry-pi-4"
    assert data.load(project).task == project.task == "classification"
    assert ("PassengerId" in text) == (target == "Survived")


def test_a_guessed_project_survives_names_that_yaml_would_read_otherwise(csv):
    path = csv("no,yes\n" + "".join(f"{i},{i % 2}\n" for i in range(20)), "123: #x.csv")
    project = parse_project(data.guess(path, "yes"))
    assert (project.name, project.data.target, project.data.train) == ("123---x", "yes", str(path))


def test_a_project_guessed_for_a_folder_names_its_table_from_there(csv, tmp_path):
    path = csv("a,b\n" + "".join(f"{i},{i % 2}\n" for i in range(20)))
    project = parse_project(data.guess(path, "b", folder=tmp_path / "first"), folder=tmp_path / "first")
    assert project.data.train == "../rows.csv"
    assert project.name == "first"
