"""Bad input gets one clear line with the numbers and the way out, and nothing is half-written."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Command, command_in

TABLE = "a,b,kind\n" + "".join(f"{i % 7},{(i * 3) % 11},{'yes' if i % 3 else 'no'}\n" for i in range(60))


def a_project(folder: Path, *, table: str = TABLE, more: str = "", target: str = "kind") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "data.csv").write_text(table, encoding="utf-8")
    text = (
        f"name: small\ndata: {{train: data.csv, target: {target}}}\n"
        f"search: {{estimators: [linear], trials: 1}}\ntrack: {{mlflow: off}}\n{more}"
    )
    (folder / "edgeml.yaml").write_text(text, encoding="utf-8")
    return folder


CASES = {  # name -> what is wrong with the project, what the line must say
    "an unknown column": ({"target": "knid"}, "knid.*kind"),
    "an unknown key": ({"more": "serch: {}\n"}, r"line 5.*serch.*search"),
    "an empty table": ({"table": ""}, "empty|no rows"),
    "a table of only a header": ({"table": "a,b,kind\n"}, "no rows|0 rows"),
    "a target of one class": ({"table": re.sub("no\n", "yes\n", TABLE)}, "one class|only"),
    "text where numbers were": ({"table": TABLE.replace("\n3,", "\nthree,", 1)}, "three"),
    "a missing target": ({"table": TABLE.replace(",yes\n", ",\n", 1)}, "kind"),
    "a row of the wrong width": ({"table": TABLE.replace("\n4,", "\n4,9,9,", 1)}, r"5.*3|3.*5"),
    "an unknown board": ({"more": "devices: [{board: raspberry-pi-44}]\n"}, "raspberry-pi-4"),
    "an unknown estimator": ({"more": "federated: {enabled: true}\n"}, "linear.*mlp"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_project_is_refused_in_one_line(edgeml: Command, tmp_path: Path, name: str) -> None:
    changes, says = CASES[name]
    said = edgeml("build", a_project(tmp_path / "project", **changes))
    assert said.code == 1, said.err
    assert re.search(says, said.error)
    assert not list((tmp_path / "project").glob("**/summary.json"))


def test_a_missing_file_is_named(edgeml: Command, tmp_path: Path) -> None:
    folder = a_project(tmp_path / "project")
    (folder / "data.csv").unlink()
    said = edgeml("build", folder)
    assert said.code == 1 and "data.csv" in said.error


def test_a_missing_project_says_how_to_begin(edgeml: Command, tmp_path: Path) -> None:
    said = edgeml("build", tmp_path / "nowhere")
    assert said.code == 1 and "edgeml init" in said.error


@pytest.mark.parametrize("data", [b"", b"this is no model", b"\x08\x0a\x12\x00" * 50], ids=["empty", "text", "noise"])
def test_a_model_file_that_is_no_model_is_refused(edgeml: Command, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(data)
    said = edgeml("compile", tmp_path / "model.onnx")
    assert said.code == 1 and "model.onnx" in said.error


def test_a_pickle_is_not_read_without_trust(edgeml: Command, tmp_path: Path) -> None:
    (tmp_path / "model.pkl").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    said = edgeml("compile", tmp_path / "model.pkl")
    assert said.code == 1 and "--trust" in said.error
    assert not (tmp_path / "owned").exists()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose registry holds the release `small`, built once for all that only read it."""
    folder = tmp_path_factory.mktemp("home")
    said = command_in(folder)("build", a_project(folder / "project"), "--json")
    assert said.code == 0, said.err
    shutil.copytree(said.json["bundle"], folder / "bundle")
    return folder


@pytest.fixture
def bundle(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "bundle", tmp_path / "bundle"))


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_blob_is_named_with_its_sizes(edgeml: Command, bundle: Path, how: str) -> None:
    blob = max((bundle / "blobs").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    said = edgeml("verify", bundle)
    assert said.code == 3 and blob.name[:12] in said.error and f"{len(data):,}" in said.error


@pytest.mark.parametrize(
    ("table", "says"),
    [("a,b\n1,two\n", "two"), ("a\n1\n", "b"), ("a,b\n1,2,3\n", "3"), ("", "empty|no rows")],
    ids=["text", "missing column", "too wide", "empty"],
)
def test_rows_that_do_not_fit_are_refused_at_predict(
    edgeml: Command, bundle: Path, tmp_path: Path, table: str, says: str
) -> None:
    (tmp_path / "new.csv").write_text(table, encoding="utf-8")
    said = edgeml("predict", bundle, tmp_path / "new.csv")
    assert said.code == 1 and re.search(says, said.error)


def test_a_wrong_shape_at_predict_shows_both_shapes(edgeml: Command, bundle: Path, tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "new.npy", np.zeros((4, 5), dtype=np.float32))
    said = edgeml("predict", bundle, tmp_path / "new.npy")
    assert said.code == 1 and "5" in said.error and "2" in said.error


def test_a_gate_that_refuses_ends_with_three_and_names_the_nearest_miss(edgeml: Command, tmp_path: Path) -> None:
    more = "devices: [{board: raspberry-pi-zero-2w, memory_mb: 1}]\n"
    said = edgeml("build", a_project(tmp_path / "project", more=more))
    assert said.code == 3 and "1 MB" in said.error
    assert edgeml("registry", "list", "--json").json == []


def test_a_deploy_without_a_server_says_how_to_start_one(home: Path) -> None:
    said = command_in(home)("deploy", "small", "--to", "all")
    assert said.code == 4 and "edgeml server" in said.error


def test_a_server_without_a_broker_ends_with_the_way_out(edgeml: Command) -> None:
    said = edgeml("server", "--broker", "127.0.0.1:9")
    assert said.code == 4 and "127.0.0.1:9" in said.error and "edgeml broker" in said.error


def test_an_unknown_release_lists_the_known(home: Path) -> None:
    said = command_in(home)("registry", "show", "smal")
    assert said.code == 1 and "small" in said.error


def test_a_wrong_option_is_usage(edgeml: Command) -> None:
    assert edgeml("build", "--fast").code == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"cannot mount a small tmpfs here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.fault
def test_a_full_disk_is_one_line_and_leaves_no_release(edgeml: Command, tmp_path: Path, small_disk: Path) -> None:
    project = a_project(tmp_path / "project")
    said = edgeml("build", project, "--registry", small_disk)
    assert said.code == 1
    assert re.search("No space left|disk is full", said.error) and "make room" in said.error
    assert not list(small_disk.rglob(".*.????????")), "a temporary file was left behind"
    assert edgeml("build", project).code == 0


@pytest.mark.fault
def test_a_project_on_a_full_disk_is_one_line_too(edgeml: Command, small_disk: Path) -> None:
    project = a_project(small_disk / "project")
    (small_disk / "filler").write_bytes(bytes(40_000))
    said = edgeml("build", project)
    assert said.code == 1 and "No space left" in said.error
    assert not list(project.glob("**/summary.json")) and edgeml("registry", "list", "--json").json == []
