"""A project's table becomes a Dataset, or one clear line."""

from __future__ import annotations

import gzip
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml import data
from edgeml.data.splits import split
from edgeml.data.table import SEPARATORS, read_table
from edgeml.errors import DataError, NotFound, ProjectError, UserError
from edgeml.project import Read

ROWS = "".join(f"{i},{i % 7},{'red' if i % 3 else 'blue'},{'yes' if i % 2 else 'no'}\n" for i in range(40))
TABLE = "size,weight,colour,good\n" + ROWS


def test_a_mixed_table_gets_numeric_features_first_and_classes_by_name(csv, project):
    dataset = data.load(project(csv(TABLE), "good"))
    assert [(f.name, f.kind) for f in dataset.features] == [
        ("size", "numeric"),
        ("weight", "numeric"),
        ("colour", "categorical"),
    ]
    assert dataset.classes == ("no", "yes")
    assert dataset.train.inputs["numeric"].dtype == np.float32
    assert set(dataset.train.inputs["categorical"][:, 0]) == {"red", "blue"}
    assert len(dataset.train) + len(dataset.valid) + len(dataset.test) == 40


def test_gzip_and_other_separators_and_decimal_commas_read_the_same(csv, project, tmp_path):
    plain = data.load(project(csv(TABLE), "good"))
    packed = tmp_path / "rows.csv.gz"
    packed.write_bytes(gzip.compress(TABLE.encode()))
    semicolons = csv(TABLE.replace(",", ";"), "rows.tsv")
    for path in (packed, semicolons):
        again = data.load(project(path, "good"))
        assert np.array_equal(again.train.inputs["numeric"], plain.train.inputs["numeric"])
    table = read_table(csv("a;b\n1,5;2\n2,5;3\n", "comma.csv"), Read(decimal=","))
    assert list(table.frame["a"]) == ["1,5", "2,5"]


def test_missing_values_are_nan_in_numbers_and_empty_in_categories(real_data, project):
    dataset = data.load(project(real_data("penguins/penguins.csv"), "species"))
    every = [dataset.train, dataset.valid, dataset.test]
    assert sum(np.isnan(rows.inputs["numeric"]).sum() for rows in every) == 8  # two birds without four measures
    assert sum((rows.inputs["categorical"] == "").sum() for rows in every) == 11  # eleven of unknown sex
    assert dataset.classes == ("Adelie", "Chinstrap", "Gentoo")


def test_titanic_leaves_out_names_tickets_and_the_row_number_and_says_so(real_data, project):
    dataset = data.load(project(real_data("titanic/titanic.csv"), "Survived"))
    kept = {feature.name for feature in dataset.features}
    assert kept == {"Pclass", "Sex", "Age", "SibSp", "Parch", "Fare", "Embarked"}
    for name in ("PassengerId", "Name", "Ticket", "Cabin"):
        assert any(name in note for note in dataset.notes)
    assert dataset.metric == "accuracy"


def test_an_official_test_set_with_row_names_is_read_as_it_is(real_data, project):
    train, test = real_data("occupancy/datatraining.txt.gz"), real_data("occupancy/datatest.txt.gz")
    dataset = data.load(project(train, "Occupancy", test=str(test), drop=["date"]))
    assert (len(dataset.train) + len(dataset.valid), len(dataset.test)) == (8143, 2665)
    assert len(dataset.features) == 5


def test_blank_separated_files_without_a_header_are_read_by_position(real_data, project):
    path = real_data("cmapss_fd001/test_FD001.txt.gz")
    dataset = data.load(project(path, "column_26", drop=["column_2"], group="column_1", read={"header": False}))
    assert dataset.task == "regression"
    assert len(np.unique(dataset.train_groups)) < 100


def test_rows_of_one_group_stay_on_one_side(real_data, project):
    path = real_data("wisdm_v1_features/wisdm_transformed.csv.gz")
    table = read_table(path)
    target, users = table.frame["class"].to_numpy(), table.frame["user"].to_numpy()
    _, codes = np.unique(target, return_inverse=True)
    kept, held = split(codes, np.random.default_rng(0), stratify=True, groups=users)
    assert not set(users[kept]) & set(users[held])
    assert 0.1 < len(held) / len(users) < 0.3
    assert set(codes[kept]) == set(codes)


@given(st.lists(st.integers(0, 3), min_size=5, max_size=200), st.integers(0, 9))
def test_a_stratified_split_loses_no_row_and_no_class(classes, seed):
    target = np.array(classes)
    kept, held = split(target, np.random.default_rng(seed), stratify=True)
    assert sorted([*kept, *held]) == list(range(len(target)))
    assert set(target[kept]) == set(target)
    for c in set(classes):
        if classes.count(c) >= 10:
            assert abs(np.mean(target[held] == c) * len(held) - classes.count(c) / 5) <= 1


def test_the_same_seed_gives_the_same_splits_and_digest_and_another_seed_does_not(csv, project):
    path = csv(TABLE)
    first, again = (data.load(project(path, "good")) for _ in range(2))
    other = data.load(project(path, "good", top={"search": {"seed": 1}}))
    assert np.array_equal(first.test.inputs["numeric"], again.test.inputs["numeric"])
    assert first.digest == again.digest != other.digest
    assert not np.array_equal(first.test.inputs["numeric"], other.test.inputs["numeric"])


def test_one_changed_byte_or_option_changes_the_digest(csv, project):
    path = csv(TABLE)
    before = data.source_digest(project(path, "good"))
    assert before != data.source_digest(project(path, "good", drop=["size"]))
    csv(TABLE.replace("39,", "38,"))
    assert before != data.source_digest(project(path, "good"))


def test_asking_for_the_digest_imports_no_pandas_and_no_scikit_learn():
    code = "import sys; from edgeml import data; data.source_digest; print({'pandas', 'sklearn'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("name", ["breast_cancer", "diabetes", "digits", "iris", "wine"])
def test_every_scikit_learn_set_loads_with_all_its_columns(name, project):
    dataset = data.load(project(f"sklearn:{name}"))
    assert dataset.train.inputs["numeric"].shape[1] == {"digits": 64, "iris": 4}.get(name, len(dataset.features))
    assert dataset.target == "target"
    assert dataset.task == ("regression" if name == "diabetes" else "classification")


def test_a_rare_positive_class_is_judged_by_average_precision(real_data, project):
    dataset = data.load(project(real_data("vehicle_claims_fraud/fraud_oracle.csv.gz"), "FraudFound_P"))
    assert dataset.metric == "average_precision"


def test_a_float_target_is_a_regression_and_twenty_whole_numbers_are_classes(csv, project):
    lines = "".join(f"{i % 9},{i / 3}\n" for i in range(60))
    assert data.load(project(csv("a,b\n" + lines), "b")).task == "regression"
    assert data.load(project(csv("a,b\n" + lines), "a")).classes == tuple(str(i) for i in range(9))


BAD = {  # text of the table, target -> what the error says
    "empty": ("", "good", "rows.csv is empty"),
    "header only": ("size,good\n", "good", "has a header and no rows"),
    "unknown target": (TABLE, "goof", "data.target: rows.csv has no column 'goof'; did you mean 'good'?"),
    "one class": ("a,good\n" + "".join(f"{i},yes\n" for i in range(9)), "good", r"one class only \('yes' in all 9"),
    "missing target": (TABLE.replace("7,0,red,yes", "7,0,red,"), "good", "1 of 40 rows .* rows.csv line 9"),
    "wide row": (
        TABLE.replace("7,0,red", "7,0,0,red"),
        "good",
        "line 9: a row of the wrong width: 5 fields, .* 4",
    ),
    "short row": (
        TABLE.replace("7,0,red,yes", "7,0"),
        "good",
        "line 9: a row of the wrong width: 2 fields, .* 4",
    ),
    "text": (TABLE.replace("7,0,red", "seven,0,red"), "good", "line 9: column 'size' holds 'seven' where numbers are"),
    "infinite": (TABLE.replace("7,0,red", "inf,0,red"), "good", "line 9: column 'size' holds inf, which is infinite"),
    "beyond float32": (TABLE.replace("7,0,red", "1e300,0,red"), "good", "line 9: column 'size' holds 1e300"),
    "twice": (TABLE.replace("weight", "size"), "good", "line 1: column 'size' appears twice"),
    "nothing left": ("a,good\n" + "".join(f"1,{i % 2}\n" for i in range(9)), "good", "no column to learn from"),
    "few rows": ("a,good\n1,0\n2,1\n", "good", "2 rows cannot be split"),
    "too many classes": ("a,b\n" + "".join(f"{i % 5},name{i}\n" for i in range(80)), "b", "80 classes in 80 rows"),
}


@pytest.mark.parametrize("case", sorted(BAD))
def test_a_table_that_cannot_be_used_is_refused_with_the_place(case, csv, project):
    text, target, says = BAD[case]
    with pytest.raises(DataError, match=says) as caught:
        data.load(project(csv(text), target))
    assert "\n" not in str(caught.value)


def test_a_text_listed_as_na_is_a_missing_value(csv, project):
    dataset = data.load(project(csv(TABLE.replace("7,0,red", "?,0,red")), "good", read={"na": ["?"]}))
    every = (dataset.train, dataset.valid, dataset.test)
    assert sum(np.isnan(rows.inputs["numeric"]).sum() for rows in every) == 1


def test_line_numbers_count_quoted_line_breaks_like_an_editor(csv, project):
    text = 'a,b\n"one\ntwo",1\n3\n'
    with pytest.raises(DataError, match="line 4: a row of the wrong width: 1 fields, expected 2"):
        data.load(project(csv(text), "b"))


def test_files_that_are_not_there_or_not_text_are_named(tmp_path, csv, project):
    csv(TABLE, "train.csv")
    with pytest.raises(NotFound, match=r"did you mean 'train\.csv'"):
        data.load(project(tmp_path / "trian.csv", "good"))
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(TABLE.encode())[:60])
    with pytest.raises(DataError, match=r"cut\.csv\.gz is damaged gzip"):
        data.load(project(tmp_path / "cut.csv.gz", "good"))
    (tmp_path / "latin.csv").write_bytes(TABLE.replace("red", "rot", 1).encode() + b"1,2,gr\xfcn,no\n")
    with pytest.raises(DataError, match=r"latin\.csv line 42 is not UTF-8"):
        data.load(project(tmp_path / "latin.csv", "good"))
    with pytest.raises(NotFound, match="sklearn:digit: no such data set"):
        data.load(project("sklearn:digit"))
    with pytest.raises(DataError, match=r"no reader for \.parquet"):
        data.load(project(csv("x", "a.parquet"), "good"))


def test_unknown_columns_in_drop_and_group_and_no_target_at_all_are_named(csv, project):
    path = csv(TABLE)
    with pytest.raises(DataError, match=r"data\.drop: .*did you mean 'size'"):
        data.load(project(path, "good", drop=["sizes"]))
    with pytest.raises(DataError, match=r"data\.group: .*no column 'user'"):
        data.load(project(path, "good", group="user"))
    with pytest.raises(ProjectError, match=r"data\.target is not set"):
        data.load(project(path))
    with pytest.raises(UserError, match="'rmse' is no metric of classification"):
        data.load(project(path, "good", top={"search": {"metric": "rmse"}}))


CELL = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters='"'), min_size=1, max_size=8)


@given(st.sampled_from(SEPARATORS[:4]), st.integers(2, 4), st.data())
def test_any_cells_come_back_whatever_the_separator(tmp_path_factory, sep, width, draw):
    cells = CELL.map(str.strip).filter(lambda cell: cell and not set(cell) & set(SEPARATORS))
    rows = draw.draw(st.lists(st.lists(cells, min_size=width, max_size=width), min_size=1, max_size=6))
    path = tmp_path_factory.mktemp("cells") / "t.csv"
    header = [f"c{i}" for i in range(width)]
    path.write_text("\n".join(sep.join(row) for row in [header, *rows]), encoding="utf-8")
    missing = {"NA", "NaN", "nan", "null"}
    wanted = [["" if cell in missing else cell for cell in row] for row in rows]
    assert read_table(path, Read(sep=sep)).frame.to_numpy().tolist() == wanted


def test_a_validation_file_leaves_the_training_rows_whole_but_for_the_test_share(csv, project):
    valid = csv("good,colour,weight,size\nyes,red,1,2\nno,blue,3,4\n", "valid.csv")
    dataset = data.load(project(csv(TABLE), "good", valid=str(valid)))
    assert (len(dataset.train), len(dataset.test)) == (32, 8)
    assert dataset.valid.inputs["numeric"].tolist() == [[2, 1], [4, 3]]
    assert dataset.valid.target.tolist() == [1, 0]
    csv("good,colour,weight\nyes,red,1\n", "valid.csv")
    with pytest.raises(DataError, match=r"valid\.csv has no column 'size'"):
        data.load(project(csv(TABLE), "good", valid=str(valid)))


def test_a_device_column_says_whose_rows_they_are_and_keeps_nothing_together(csv, project):
    text = "who,size,kind\n" + "".join(f"{'abc'[i % 3]},{i * 0.7:.1f},{'uv'[i % 2]}\n" for i in range(60))
    dataset = data.load(project(csv(text), "kind", device="who"))
    assert [feature.name for feature in dataset.features] == ["size"] and dataset.train_groups is None
    owners = np.round(dataset.train.inputs["numeric"].ravel() / 0.7).astype(int) % 3
    assert np.array_equal(dataset.train_devices, owners)
    assert any("'who' says which device holds a row" in note for note in dataset.notes)
    with pytest.raises(DataError, match=r"data\.device: .*no column 'whom'; did you mean 'who'"):
        data.load(project(csv(text), "kind", device="whom"))
