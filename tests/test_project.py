"""edgeml.yaml: what is written is what is meant, and what is wrong is named with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import NotFound, ProjectError
from edgeml.project import ROADMAP, Project, json_schema, parse_project, read_project

SMALL = "name: small\ndata: {train: data.csv, target: y}\n"


def test_everything_but_the_name_and_the_data_has_a_default() -> None:
    project = parse_project(SMALL)
    assert (project.search.folds, project.compile.max_accuracy_drop) == (5, 0.01)
    assert not project.federated.enabled and project.devices == []


WRONG = {  # what is wrong -> (text, what the line must say)
    "unknown key": (SMALL + "serch: {}\n", r"line 3: unknown key 'serch'; did you mean 'search'"),
    "unknown inner key": (SMALL + "search:\n  folds: 3\n  trails: 2\n", r"line 5: .*'search.trails'.*'trials'"),
    "unknown key in a list": (SMALL + "devices:\n  - {board: a}\n  - {board: b, thr: 1}\n", r"line 5: .*'threads'"),
    "nothing near": (SMALL + "zzz: 1\n", r"line 3: unknown key 'zzz'; known keys: name, task"),
    "a later key": (SMALL + "monitor: {}\n", r"line 3: monitor is not built yet"),
    "no data": ("name: small\n", r"data is required"),
    "a bad number": (SMALL + "search: {folds: 1}\n", r"line 3: search.folds: .*got 1"),
    "a bad choice": (SMALL + "task: guess\n", r"line 3: task: .*got 'guess'"),
    "a bad name": (SMALL.replace("small", "a b"), r"line 1: name: "),
    "a list": ("- a\n", r"expected keys like name and data, got list"),
    "no YAML": ("name: [\n", r"line \d+: not YAML"),
    "a variable that is not set": (
        SMALL.replace("data.csv", "'${NOWHERE_SET}/d.csv'"),
        r"\$\{NOWHERE_SET\} is not set",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_project_is_named_with_its_line(name: str) -> None:
    text, says = WRONG[name]
    with pytest.raises(ProjectError) as caught:
        parse_project(text)
    assert re.search(says, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_variables_expand_and_defaults_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHERE", "here")
    text = SMALL.replace("data.csv", "'${WHERE}/${WHICH:-rows}.csv'")
    assert parse_project(text).data.train == "here/rows.csv"


def test_off_means_off_although_yaml_reads_it_as_false() -> None:
    assert parse_project(SMALL + "track: {mlflow: off}\n").track.mlflow == "off"


def test_a_folder_without_a_project_says_how_to_begin(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="edgeml init"):
        read_project(tmp_path)


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "edgeml.yaml").write_text(SMALL, encoding="utf-8")
    for given_path in (tmp_path, tmp_path / "edgeml.yaml"):
        project = read_project(given_path)
        assert project.path("data.csv") == tmp_path / "data.csv"


def test_the_schema_for_editors_knows_every_section_and_nothing_of_the_roadmap() -> None:
    properties = set(json_schema()["properties"])
    assert {"name", "data", "search", "compile", "devices", "federated", "track"} <= properties
    assert not properties & ROADMAP


@given(
    st.fixed_dictionaries(
        {
            "folds": st.integers(2, 50),
            "trials": st.integers(1, 500),
            "timeout_s": st.floats(0.1, 1e6),
            "seed": st.integers(0, 2**31),
        }
    )
)
def test_what_is_written_is_what_is_read(search: dict[str, float]) -> None:
    project = parse_project(yaml.safe_dump({"name": "p", "data": {"train": "x.csv"}, "search": search}))
    assert isinstance(project, Project)
    assert {name: getattr(project.search, name) for name in search} == search
